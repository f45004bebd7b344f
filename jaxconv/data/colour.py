"""Pillow's operations on pixels, for a whole batch at once and with one value per example.

Images are [B, H, W, C] float32 that hold integers from 0 to 255. So are the results, rounded where
`ImageEnhance` and `ImageOps` round. Each example may need a different operation, and computing all
of them for each would cost fourteen passes. So there are three families, and an example selects
from each:

    MATRICES   one affine resampling: shear, translation, rotation
    BASES      one blend, base + (1 + value) * (image - base): brightness, contrast, saturation
               ("Color"), sharpness
    DIRECT     all others: posterize, solarize, autocontrast, equalize, invert

The module also has hue and AlexNet's colour shift.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# For the colours (0 to 1) of ImageNet's pixels: the eigenvectors of their covariance, one per
# column, and the size of the shift along each (Krizhevsky et al. 2012, section 4.1; numbers from
# facebook/fb.resnet.torch).
PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
PCA_VALUES = (0.2175, 0.0188, 0.0045)


def to_levels(image: jax.Array) -> jax.Array:
    """Images uint8, or floating-point from 0 to 1, as float32 integers from 0 to 255."""
    if image.dtype == jnp.uint8:
        return image.astype(jnp.float32)
    return jnp.round(255 * jnp.clip(image.astype(jnp.float32), 0, 1))


def from_levels(new: jax.Array, old: jax.Array, image: jax.Array) -> jax.Array:
    """New levels in the type and on the scale of the image, whose levels were `old`; what has not
    changed is exactly as it was.
    """
    if image.dtype == jnp.uint8:
        return new.astype(jnp.uint8)
    return jnp.where(new == old, image, (new / 255).astype(image.dtype))


def each(value: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1, 1], one value per example."""
    return value.reshape(-1, 1, 1, 1)


def grey(image: jax.Array) -> jax.Array:
    """Luminance [B, H, W, 1], ITU-R 601 in Pillow's fixed point; a single channel is unchanged."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = jnp.split(image.astype(jnp.int32), 3, axis=-1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(jnp.float32)


def mean_grey(image: jax.Array) -> jax.Array:
    """The mean luminance [B, 1, 1, 1], rounded: every pixel of an image without contrast."""
    return jnp.floor(jnp.mean(grey(image), axis=(1, 2, 3), keepdims=True) + 0.5)


def smooth(image: jax.Array) -> jax.Array:
    """Smooth with weights 5 for the pixel and 1 for its eight neighbours; borders are unchanged."""
    h, w = image.shape[1:3]
    neighbours = sum(image[:, y : h - 2 + y, x : w - 2 + x] for y in range(3) for x in range(3))
    inner = jnp.floor((neighbours + 4 * image[:, 1:-1, 1:-1]) / 13 + 0.5)
    return image.at[:, 1:-1, 1:-1].set(inner)


def blend(base: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """base + factor * (image - base), clipped: 0 is the base, 1 the image, more exaggerates it."""
    return jnp.floor(jnp.clip(base + factor * (image - base), 0, 255))


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Keep only the highest bits, an integer number [B, 1, 1, 1] of them."""
    step = jnp.exp2(8 - jnp.round(bits))
    return jnp.floor(image / step) * step


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Invert the values that are at least the threshold [B, 1, 1, 1]."""
    return jnp.where(image >= threshold, 255 - image, image)


def solarize_add(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Brighten values below 128 by an integer amount [B, 1, 1, 1]."""
    return jnp.where(image < 128, jnp.minimum(image + jnp.floor(amount), 255), image)


def autocontrast(image: jax.Array, _: jax.Array) -> jax.Array:
    """Stretch each channel to the range from 0 to 255."""
    low, high = (f(image, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    stretched = jnp.floor((image - low) * (255 / jnp.maximum(high - low, 1)))
    return jnp.where(high > low, stretched, image)


def equalize(image: jax.Array, _: jax.Array) -> jax.Array:
    """Equalize the histogram of each channel."""
    b, c = image.shape[0], image.shape[3]
    # One histogram for all: on a CPU, one scatter is twice as fast as a scatter per channel.
    index = image.astype(jnp.int32) + 256 * jnp.arange(b * c).reshape(b, 1, 1, c)
    histogram = jnp.zeros(b * c * 256, jnp.int32).at[index.reshape(-1)].add(1).reshape(-1, 256)
    # Pixels darker than each level, as a matrix product: XLA on the CPU would recompute jnp.cumsum
    # for each pixel that reads the table.
    darker = jnp.matmul(
        histogram.astype(jnp.float32), jnp.triu(jnp.ones((256, 256)), 1), precision="highest"
    )
    step = jnp.floor(
        (jnp.max(jnp.where(histogram > 0, darker, 0), axis=1, keepdims=True) + 0.5) / 255
    )
    # Adding 0.5 makes the quotient of integers safe to round down.
    table = jnp.minimum(jnp.floor((jnp.floor(step / 2) + darker + 0.5) / jnp.maximum(step, 1)), 255)
    return jnp.where(step > 0, table, jnp.arange(256, dtype=jnp.float32).reshape(1, -1)).reshape(
        -1
    )[index]


def hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Rotate the hue of [B, H, W, 3] by a share [B, 1, 1, 1] of the color wheel.

    The largest and the smallest value of each pixel are unchanged.
    """
    high, low = jnp.max(image, axis=-1, keepdims=True), jnp.min(image, axis=-1, keepdims=True)
    red, green, blue = jnp.split(image, 3, axis=-1)
    # Sixths of the color wheel, from red.
    from_red, from_green, from_blue = green - blue, blue - red, red - green
    nearest = jnp.where(
        red == high, from_red, jnp.where(green == high, from_green, from_blue)
    ) / jnp.maximum(high - low, 1)
    sixths = nearest + jnp.where(red == high, 0.0, jnp.where(green == high, 2.0, 4.0)) + 6 * shift
    turned = jnp.concatenate([sixths + 5, sixths + 3, sixths + 1], axis=-1) % 6
    return jnp.round(high - (high - low) * jnp.clip(jnp.minimum(turned, 4 - turned), 0, 1))


def pca_shift(image: jax.Array, amounts: jax.Array) -> jax.Array:
    """Add `amounts` [B, 3] of ImageNet's principal colour components to [B, H, W, 3], from 0 to 1.

    The result is not clipped.
    """
    vectors, values = jnp.array(PCA_VECTORS, jnp.float32), jnp.array(PCA_VALUES, jnp.float32)
    shift = (amounts * values.reshape(1, 3)) @ vectors.T
    return image + shift.reshape(-1, 1, 1, 3)


def warp(image: jax.Array, matrix: jax.Array, fill: jax.Array, interpolation: str) -> jax.Array:
    """Affine resampling like Pillow's `Image.transform`: output (x, y) is input A (x, y, 1).

    The center of the first pixel is (0.5, 0.5).

    Args:
      image: [B, H, W, C].
      matrix: A [B, 2, 3].
      fill: [C], for pixels from outside the image.
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
    """[B, 2, 3] from six entries [B]."""
    return jnp.stack([jnp.stack([a, b, c], -1), jnp.stack([d, e, f], -1)], 1)


def _rotation(degrees: jax.Array, height: int, width: int) -> jax.Array:
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    y, x = height / 2, width / 2
    return _affine(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _one_entry(place: int) -> Callable[[jax.Array, int, int], jax.Array]:
    """The identity except for one of the six entries."""

    def matrix(value: jax.Array, height: int, width: int) -> jax.Array:
        entries = [jnp.full_like(value, n in (0, 4)) for n in range(6)]
        entries[place] = value
        return _affine(*entries)

    return matrix


# Functions of a value [B]: a share for shear, whole pixels for translation, degrees
# counterclockwise for rotation.
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
    """Apply one operation to each example.

    Args:
      image: [B, H, W, C] float32.
      names: of operations, `identity` or from the tables above; only these are computed.
      choice: [B], indices into `names`.
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
