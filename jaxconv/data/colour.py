"""Operations on the pixels of a batch: Pillow's definitions, a value an example, all examples at
once.

Images are [B, H, W, C] float32 with whole numbers from 0 to 255, as bytes hold them, and so is what
comes out, rounded off where `ImageEnhance` and `ImageOps` do. Each example may want another
operation, and computing all of them for each would cost as much as fourteen passes; so they are
three families, and an example picks its part of each:

    MATRICES   one affine resampling: shear, translation, rotation
    BASES      one blend, base + (1 + value) * (image - base): brightness, contrast, saturation
               ("Color"), sharpness
    DIRECT     the odd ones: posterize, solarize, autocontrast, equalize, invert

Besides these, hue and AlexNet's colour shift.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# Of the colours (0 to 1) of ImageNet's pixels: a column an eigenvector of their covariance, and the
# sizes of the shift along each (Krizhevsky et al. 2012, section 4.1; the numbers are those of
# facebook/fb.resnet.torch).
PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
PCA_VALUES = (0.2175, 0.0188, 0.0045)


def each(value: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1, 1], one value an example."""
    return value.reshape(-1, 1, 1, 1)


def grey(image: jax.Array) -> jax.Array:
    """Luminance [B, H, W, 1], ITU-R 601 in Pillow's fixed point; of one channel the channel
    itself.
    """
    if image.shape[-1] == 1:
        return image
    red, green, blue = jnp.split(image.astype(jnp.int32), 3, axis=-1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(jnp.float32)


def mean_grey(image: jax.Array) -> jax.Array:
    """The mean luminance [B, 1, 1, 1], rounded: what an image without contrast is made of."""
    return jnp.floor(jnp.mean(grey(image), axis=(1, 2, 3), keepdims=True) + 0.5)


def smooth(image: jax.Array) -> jax.Array:
    """Each pixel five parts, its eight neighbours one each; the pixels at the border stay."""
    h, w = image.shape[1:3]
    neighbours = sum(image[:, y : h - 2 + y, x : w - 2 + x] for y in range(3) for x in range(3))
    inner = jnp.floor((neighbours + 4 * image[:, 1:-1, 1:-1]) / 13 + 0.5)
    return image.at[:, 1:-1, 1:-1].set(inner)


def blend(base: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """base + factor * (image - base), clipped: 0 is the base, 1 the image, more is more of what
    sets it apart.
    """
    return jnp.floor(jnp.clip(base + factor * (image - base), 0, 255))


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Keep the highest bits alone, a whole number [B, 1, 1, 1] of them."""
    step = jnp.exp2(8 - jnp.round(bits))
    return jnp.floor(image / step) * step


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Invert what is at least as bright as the threshold [B, 1, 1, 1]."""
    return jnp.where(image >= threshold, 255 - image, image)


def solarize_add(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Brighten the darker half of all values by a whole amount [B, 1, 1, 1]."""
    return jnp.where(image < 128, jnp.minimum(image + jnp.floor(amount), 255), image)


def autocontrast(image: jax.Array, _: jax.Array) -> jax.Array:
    """Stretch each channel to reach from 0 to 255."""
    low, high = (f(image, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    stretched = jnp.floor((image - low) * (255 / jnp.maximum(high - low, 1)))
    return jnp.where(high > low, stretched, image)


def equalize(image: jax.Array, _: jax.Array) -> jax.Array:
    """Make each channel's values as evenly frequent as can be."""
    b, _, _, c = image.shape
    # One histogram for all: a scatter by one index is twice as fast on a CPU as one of each channel
    # by itself.
    index = image.astype(jnp.int32) + 256 * jnp.arange(b * c).reshape(b, 1, 1, c)
    histogram = jnp.zeros(b * c * 256, jnp.int32).at[index.reshape(-1)].add(1).reshape(-1, 256)
    # Pixels darker than each level, as a product: XLA on the CPU would compute jnp.cumsum anew for
    # each pixel that looks into the table.
    darker = jnp.matmul(
        histogram.astype(jnp.float32), jnp.triu(jnp.ones((256, 256)), 1), precision="highest"
    )
    step = jnp.floor(
        (jnp.max(jnp.where(histogram > 0, darker, 0), axis=1, keepdims=True) + 0.5) / 255
    )
    # The half makes the quotient of whole numbers safe to round down.
    table = jnp.minimum(jnp.floor((jnp.floor(step / 2) + darker + 0.5) / jnp.maximum(step, 1)), 255)
    return jnp.where(step > 0, table, jnp.arange(256, dtype=jnp.float32).reshape(1, -1)).reshape(
        -1
    )[index]


def hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Turn the colours [B, H, W, 3] on by a share [B, 1, 1, 1] of their circle; brightest and
    darkest channel keep their values.
    """
    high, low = jnp.max(image, axis=-1, keepdims=True), jnp.min(image, axis=-1, keepdims=True)
    red, green, blue = jnp.split(image, 3, axis=-1)
    # Sixths of the circle, from red.
    from_red, from_green, from_blue = green - blue, blue - red, red - green
    nearest = jnp.where(
        red == high, from_red, jnp.where(green == high, from_green, from_blue)
    ) / jnp.maximum(high - low, 1)
    sixths = nearest + jnp.where(red == high, 0.0, jnp.where(green == high, 2.0, 4.0)) + 6 * shift
    turned = jnp.concatenate([sixths + 5, sixths + 3, sixths + 1], axis=-1) % 6
    return jnp.round(high - (high - low) * jnp.clip(jnp.minimum(turned, 4 - turned), 0, 1))


def pca_shift(image: jax.Array, amounts: jax.Array) -> jax.Array:
    """Add the principal components of ImageNet's colours to [B, H, W, 3], from 0 to 1: `amounts`
    [B, 3] of each; not clipped.
    """
    vectors, values = jnp.array(PCA_VECTORS, jnp.float32), jnp.array(PCA_VALUES, jnp.float32)
    shift = (amounts * values.reshape(1, 3)) @ vectors.T
    return image + shift.reshape(-1, 1, 1, 3)


def warp(image: jax.Array, matrix: jax.Array, fill: jax.Array, interpolation: str) -> jax.Array:
    """Affine resampling, as Pillow's `Image.transform`: what is at (x, y) comes from A (x, y, 1);
    the first pixel's middle is (0.5, 0.5).

    Args:
      image: [B, H, W, C].
      matrix: [B, 2, 3].
      fill: [C], for what comes from outside.
      interpolation: `nearest` or `bilinear`.
    """
    b, h, w, c = image.shape
    x = jnp.arange(w, dtype=jnp.float32).reshape(1, 1, w) + 0.5
    y = jnp.arange(h, dtype=jnp.float32).reshape(1, h, 1) + 0.5
    entries = matrix.reshape(b, 6, 1, 1)
    from_x = entries[:, 0] * x + entries[:, 1] * y + entries[:, 2]
    from_y = entries[:, 3] * x + entries[:, 4] * y + entries[:, 5]
    flat = image.reshape(b, h * w, c)

    def at(rows: jax.Array, columns: jax.Array) -> jax.Array:
        index = jnp.clip(rows, 0, h - 1).astype(jnp.int32) * w + jnp.clip(columns, 0, w - 1).astype(
            jnp.int32
        )
        return jax.vmap(lambda pixels, i: pixels[i])(flat, index.reshape(b, -1)).reshape(
            image.shape
        )

    if interpolation == "nearest":
        out = at(jnp.floor(from_y), jnp.floor(from_x))
    else:
        top, left = jnp.floor(from_y - 0.5), jnp.floor(from_x - 0.5)
        down, right = (from_y - 0.5 - top)[..., None], (from_x - 0.5 - left)[..., None]
        upper = at(top, left) * (1 - right) + at(top, left + 1) * right
        lower = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
        out = jnp.floor(upper * (1 - down) + lower * down + 0.5)
    inside = (from_x >= 0) & (from_x < w) & (from_y >= 0) & (from_y < h)
    return jnp.where(inside[..., None], out, fill.reshape(1, 1, 1, -1))


def _affine(
    a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array, e: jax.Array, f: jax.Array
) -> jax.Array:
    """[B, 2, 3] of six entries [B]."""
    return jnp.stack([jnp.stack([a, b, c], -1), jnp.stack([d, e, f], -1)], 1)


def _rotation(degrees: jax.Array, height: int, width: int) -> jax.Array:
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    y, x = height / 2, width / 2
    return _affine(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _one_entry(place: int) -> Callable[[jax.Array, int, int], jax.Array]:
    """Identity, but for one of the six entries."""

    def matrix(value: jax.Array, height: int, width: int) -> jax.Array:
        entries = [jnp.full_like(value, n in (0, 4)) for n in range(6)]
        entries[place] = value
        return _affine(*entries)

    return matrix


# Of a value [B]: a share for shear, whole pixels for translation, degrees counterclockwise for
# rotation.
MATRICES = {
    "shear_x": _one_entry(1),
    "shear_y": _one_entry(3),
    "translate_x": lambda value, height, width: _one_entry(2)(-jnp.trunc(value), height, width),
    "translate_y": lambda value, height, width: _one_entry(5)(-jnp.trunc(value), height, width),
    "rotate": _rotation,
}
BASES = {
    "brightness": jnp.zeros_like,
    "contrast": mean_grey,
    "saturation": grey,
    "sharpness": smooth,
}
DIRECT = {
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": lambda image, _: 255 - image,
}


def apply(
    image: jax.Array,
    names: Sequence[str],
    choice: jax.Array,
    value: jax.Array,
    fill: jax.Array,
    interpolation: str = "nearest",
) -> jax.Array:
    """One operation an example.

    Args:
      image: [B, H, W, C] float32.
      names: of operations: `identity`, or in one of the tables above; the others are not computed.
      choice: [B], indices into them.
      value: [B], in the units of the example's operation.
      fill, interpolation: see `warp`.
    """
    h, w = image.shape[1:3]
    chosen = {name: choice == n for n, name in enumerate(names)}
    out = image
    if geometric := [name for name in names if name in MATRICES]:
        matrix = _one_entry(0)(jnp.ones_like(value), h, w)
        for name in geometric:
            matrix = jnp.where(chosen[name].reshape(-1, 1, 1), MATRICES[name](value, h, w), matrix)
        out = warp(image, matrix, fill, interpolation)
    base = image
    for name in names:
        if name in BASES:
            base = jnp.where(each(chosen[name]), BASES[name](image), base)
    if blending := [chosen[name] for name in names if name in BASES]:
        out = jnp.where(
            each(jnp.any(jnp.stack(blending), axis=0)), blend(base, image, 1 + each(value)), out
        )
    for name in names:
        if name in DIRECT:
            out = jnp.where(each(chosen[name]), DIRECT[name](image, each(value)), out)
    return out
