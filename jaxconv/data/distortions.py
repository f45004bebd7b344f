"""ImageNet-C's corruptions, one function each; see corruptions.py for their parameters.

Each is a function (key, image [H, W, 3] float32 from 0 to 1, parameters) -> the same, whose values
may leave that range. Parameters are static. Blurs, zooms and resizings are matrices of an axis,
computed once on the host.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

_GREY = (0.299, 0.587, 0.114)


def _along(matrix: np.ndarray, other: np.ndarray, image: jax.Array) -> jax.Array:
    """An image [H, W, C] with a matrix applied to its rows, and another to its columns."""
    rows, columns = jnp.asarray(matrix, jnp.float32), jnp.asarray(other, jnp.float32)
    return jnp.einsum("ih,hwc,jw->ijc", rows, image, columns, precision="highest")


def _blur_matrix(size: int, sigma: float, truncate: float, mode: Any) -> np.ndarray:
    """The Gaussian blur of an axis [size, size]; `mode` is that of `np.pad`."""
    radius = int(truncate * sigma + 0.5)
    if not radius:
        return np.eye(size)
    weight = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    source, matrix = np.pad(np.arange(size), radius, mode), np.zeros((size, size))
    for i in range(size):
        np.add.at(matrix[i], source[i : i + 2 * radius + 1], weight / weight.sum())
    return matrix


def blur(image: jax.Array, sigma: float, truncate: float = 4.0, mode: Any = "edge") -> jax.Array:
    """An image [H, W, C] blurred by a Gaussian."""
    height, width = (_blur_matrix(size, sigma, truncate, mode) for size in image.shape[:2])
    return _along(height, width, image)


def _zoom_matrix(size: int, factor: float) -> np.ndarray:
    """The middle of an axis, enlarged linearly to its size: [size, size]."""
    inside = int(np.ceil(size / factor))
    enlarged = round(inside * factor)
    first, trimmed = (size - inside) // 2, max(0, (enlarged - size) // 2)
    step = (inside - 1) / max(1, enlarged - 1)
    place = first + (np.arange(size) + trimmed) * step
    below = np.clip(np.floor(place).astype(int), 0, size - 1)
    share, matrix = place - below, np.zeros((size, size))
    np.add.at(matrix, (np.arange(size), below), 1 - share)
    np.add.at(matrix, (np.arange(size), np.minimum(below + 1, size - 1)), share)
    return matrix


def _zoomed(image: jax.Array, factor: float) -> jax.Array:
    """The middle of an image [H, W, C], enlarged to its size."""
    height, width = (_zoom_matrix(size, factor) for size in image.shape[:2])
    return _along(height, width, image)


def _box_matrix(size: int, other: int) -> np.ndarray:
    """Resizing of an axis by a box: [other, size]; each value is a mean of the nearest ones."""
    scale = size / other
    middle, half = (np.arange(other)[:, None] + 0.5) * scale, max(scale, 1) / 2
    offset = (np.arange(size)[None] + 0.5 - middle) / (2 * half)
    weight = ((offset > -0.5) & (offset <= 0.5)).astype(np.float64)
    return weight / weight.sum(axis=1, keepdims=True)


def gaussian_noise(key: jax.Array, image: jax.Array, deviation: float) -> jax.Array:
    """Normal noise."""
    return image + deviation * jax.random.normal(key, image.shape)


def shot_noise(key: jax.Array, image: jax.Array, photons: float) -> jax.Array:
    """Poisson noise: white has so many photons on average."""
    return jax.random.poisson(key, image * photons).astype(jnp.float32) / photons


def impulse_noise(key: jax.Array, image: jax.Array, share: float) -> jax.Array:
    """Salt and pepper: a share of the values is 0 or 1."""
    draw = jax.random.uniform(key, image.shape)
    image = jnp.where(draw < share / 2, 0.0, image)
    return jnp.where(draw > 1 - share / 2, 1.0, image)


def _disk(radius: float, alias_blur: float) -> np.ndarray:
    reach = 8 if radius <= 8 else int(radius)
    x, y = np.meshgrid(*[np.arange(-reach, reach + 1)] * 2)
    disk = (x**2 + y**2 <= radius**2).astype(np.float64)
    taps = 1 if radius <= 8 else 2
    soft = _blur_matrix(len(disk), alias_blur, (taps + 0.1) / alias_blur, "reflect")
    return soft @ (disk / disk.sum()) @ soft.T


def defocus_blur(key: jax.Array, image: jax.Array, radius: float, alias_blur: float) -> jax.Array:
    """The mean over a disk with a soft border."""
    kernel = _disk(radius, alias_blur)
    reach = len(kernel) // 2
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    planes = jnp.moveaxis(padded, -1, 0)[..., None]
    filters = jnp.asarray(kernel, jnp.float32)[..., None, None]
    numbers = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated(
        planes, filters, (1, 1), "VALID", dimension_numbers=numbers, precision="highest"
    )
    return jnp.moveaxis(found[..., 0], 0, -1)


def glass_blur(
    key: jax.Array, image: jax.Array, sigma: float, reach: int, rounds: int
) -> jax.Array:
    """A blur, pixels taken from their neighbourhood, and a blur.

    The authors' code visits the pixels from the last to the first and gives each the value of one
    near it, which may be a new value already. So each pixel's value is found at the end of a chain
    of visited pixels; all chains are followed at once, by doubling.
    """
    height, width = image.shape[:2]
    image = jnp.floor(blur(image, sigma) * 255) / 255
    count = height * width
    place = np.arange(count).reshape(height, width)
    inside = np.zeros((height, width), bool)
    inside[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    for number in range(rounds):
        draws = jax.random.randint(
            jax.random.fold_in(key, number), (2, height, width), -reach, reach
        )
        rows = jnp.clip(np.arange(height)[:, None] + draws[0], 0, height - 1)
        columns = jnp.clip(np.arange(width)[None] + draws[1], 0, width - 1)
        source = jnp.where(inside, rows * width + columns, place).reshape(-1)
        visited = jnp.asarray(inside).reshape(-1)[source] & (source > jnp.arange(count))
        # Old values are 0 ... count - 1, new ones come after them.
        chain = jnp.concatenate([jnp.arange(count), jnp.where(visited, source + count, source)])
        for _ in range(int(np.ceil(np.log2(count)))):
            chain = chain[chain]
        image = image.reshape(count, -1)[chain[count:]].reshape(image.shape)
    return blur(image, sigma)


def _motion(
    image: jax.Array, radius: int, sigma: float, angle: jax.Array
) -> jax.Array:  # as ImageMagick's motion blur
    """The mean along a line that starts at each pixel, with half a Gaussian as weights."""
    taps = np.arange(2 * radius + 1)
    weight = np.exp(-0.5 * (taps / sigma) ** 2)
    weight /= weight.sum()
    y, x = (jnp.ceil(taps * turn(angle) - 0.5).astype(jnp.int32) for turn in (jnp.sin, jnp.cos))
    height, width = image.shape[:2]
    found = jnp.zeros_like(image)
    for tap in taps:
        rows = jnp.clip(np.arange(height) + y[tap], 0, height - 1)
        columns = jnp.clip(np.arange(width) + x[tap], 0, width - 1)
        found += weight[tap] * image[rows][:, columns]
    return found


def _angle(key: jax.Array, low: float, high: float) -> jax.Array:
    """An angle, drawn between two of degrees, in radians."""
    return jnp.deg2rad(jax.random.uniform(key, (), minval=low, maxval=high))


def motion_blur(key: jax.Array, image: jax.Array, radius: int, sigma: float) -> jax.Array:
    """A blur along a line of a random angle of up to 45 degrees."""
    return _motion(image, radius, sigma, _angle(key, -45, 45))


def zoom_blur(key: jax.Array, image: jax.Array, most: float, step: float) -> jax.Array:
    """The mean over zooms from 1 to below `most`."""
    factors = np.arange(1, most, step)
    total = image
    for factor in factors:
        total += _zoomed(image, factor)
    return total / (len(factors) + 1)


def snow(
    key: jax.Array,
    image: jax.Array,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    kept: float,
) -> jax.Array:
    """Flakes that fall in one direction, on a paler image."""
    draws, turn = jax.random.split(key)
    flakes = mean + deviation * jax.random.normal(draws, (*image.shape[:2], 1))
    flakes = _zoomed(flakes, zoom)
    flakes = jnp.where(flakes < threshold, 0.0, jnp.clip(flakes, 0, 1))
    flakes = _motion(flakes, radius, sigma, _angle(turn, -135, -45))
    grey = jnp.einsum("hwc,c->hw", image, jnp.asarray(_GREY, jnp.float32))[..., None]
    pale = kept * image + (1 - kept) * jnp.maximum(image, grey * 1.5 + 0.5)
    return pale + flakes + jnp.rot90(flakes, k=2)


class Textures(NamedTuple):
    """Photographs of frost.

    Attributes:
      images: [T, H, W, 3] uint8, each at the top left.
      sizes: [T, 2] int32, the height and width of each.
    """

    images: Any
    sizes: Any


def frost(
    key: jax.Array, image: jax.Array, textures: Textures, kept: float, amount: float
) -> jax.Array:
    """A random part of a random texture, added to a share of the image."""
    which, place = jax.random.split(key)
    number = jax.random.randint(which, (), 0, len(textures.images))
    height, width = image.shape[:2]
    # The last possible place is not drawn, as in the authors' code.
    room = jnp.maximum(jnp.asarray(textures.sizes)[number] - np.array([height, width]), 1)
    top, left = jax.random.randint(place, (2,), 0, room)
    start = (number, top, left, 0)
    part = jax.lax.dynamic_slice(jnp.asarray(textures.images), start, (1, height, width, 3))
    return kept * image + amount * part[0].astype(jnp.float32) / 255


def plasma(key: jax.Array, side: int, decay: float) -> jax.Array:
    """Clouds [side, side] from 0 to 1 by the diamond-square algorithm; `side` is a power of 2."""
    heights, step, amount = jnp.zeros((side, side)), side, 100.0

    def mean(total: jax.Array, number: int, which: int) -> jax.Array:
        draw = jax.random.fold_in(jax.random.fold_in(key, number), which)
        noise = jax.random.uniform(draw, total.shape, minval=-amount, maxval=amount)
        return total / 4 + amount * noise

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        sums = corners + jnp.roll(corners, -1, axis=0)
        heights = heights.at[half::step, half::step].set(
            mean(sums + jnp.roll(sums, -1, axis=1), step, 0)
        )
        middles = heights[half::step, half::step]
        total = middles + jnp.roll(middles, 1, axis=0) + corners + jnp.roll(corners, -1, axis=1)
        heights = heights.at[::step, half::step].set(mean(total, step, 1))
        total = middles + jnp.roll(middles, 1, axis=1) + corners + jnp.roll(corners, -1, axis=0)
        heights = heights.at[half::step, ::step].set(mean(total, step, 2))
        step, amount = half, amount / decay
    heights -= jnp.min(heights)
    return heights / jnp.max(heights)


def fog(key: jax.Array, image: jax.Array, thickness: float, decay: float) -> jax.Array:
    """Clouds over the image, which loses its contrast."""
    height, width = image.shape[:2]
    side = 2 ** int(np.ceil(np.log2(max(height, width))))
    clouds = plasma(key, side, decay)[:height, :width, None]
    brightest = jnp.max(image)
    return (image + thickness * clouds) * brightest / (brightest + thickness)


def brightness(key: jax.Array, image: jax.Array, amount: float) -> jax.Array:
    """More of the largest of each pixel's colours, by which the others grow in proportion."""
    value = jnp.max(image, axis=-1, keepdims=True)
    brighter = jnp.clip(value + amount, 0, 1)
    return jnp.where(value > 0, image * brighter / jnp.where(value > 0, value, 1.0), brighter)


def contrast(key: jax.Array, image: jax.Array, factor: float) -> jax.Array:
    """Each colour is nearer to its mean."""
    mean = jnp.mean(image, axis=(0, 1), keepdims=True)
    return (image - mean) * factor + mean


def elastic_transform(
    key: jax.Array, image: jax.Array, strength: float, sigma: float, shift: float
) -> jax.Array:
    """A random affine map of three points, and smooth random shifts of each pixel."""
    height, width = image.shape[:2]
    corners, rows, columns = jax.random.split(key, 3)
    middle, reach = np.array([height // 2, width // 2]), min(height, width) // 3
    points = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    before = np.concatenate([points, np.ones((3, 1))], axis=1).astype(np.float32)
    moved = jax.random.uniform(corners, (3, 2), minval=-shift, maxval=shift)
    after = jnp.asarray(before).at[:, :2].add(moved)
    back = jnp.linalg.solve(after, before[:, :2])  # [3, 2], from the new image to the old
    y, x = (jnp.asarray(axis, jnp.float32) for axis in np.mgrid[:height, :width])

    def sampled(image: jax.Array, y: jax.Array, x: jax.Array, mode: str) -> jax.Array:
        of_plane = lambda plane: map_coordinates(plane, [y, x], order=1, mode=mode)  # noqa: E731
        return jax.vmap(of_plane, in_axes=2, out_axes=2)(image)

    old_y, old_x = (y * back[0, n] + x * back[1, n] + back[2, n] for n in (0, 1))
    turned = sampled(image, old_y, old_x, "mirror")
    shifts = [
        strength
        * blur(
            jax.random.uniform(k, (height, width, 1), minval=-1, maxval=1), sigma, 3.0, "symmetric"
        )[..., 0]
        for k in (rows, columns)
    ]
    return sampled(turned, y + shifts[0], x + shifts[1], "reflect")


def _resized(image: jax.Array, height: int, width: int) -> jax.Array:
    """An image [H, W, C] of 8 bits, resized by a box."""
    rows, columns = (_box_matrix(*pair) for pair in zip(image.shape, (height, width), strict=False))
    return jnp.round(_along(rows, columns, image) * 255) / 255


def pixelate(key: jax.Array, image: jax.Array, share: float) -> jax.Array:
    """As few pixels as a share of each side."""
    height, width = image.shape[:2]
    return _resized(_resized(image, int(height * share), int(width * share)), height, width)


# ITU-T T.81, Annex K, Tables K.1 and K.2.
_LUMINANCE = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
]).reshape(8, 8)  # fmt: skip
_CHROMINANCE = np.full((8, 8), 99)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TO_YCC = np.array([_GREY, (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)])
_DCT = np.array(
    [[np.cos((2 * i + 1) * k * np.pi / 16) * (0.5 if k else 8**-0.5) for i in range(8)]
     for k in range(8)]
)  # fmt: skip


def _coded(plane: jax.Array, table: np.ndarray) -> jax.Array:
    """A plane [H, W] from -128 to 127, both multiples of 8, after rounding its coefficients."""
    height, width = plane.shape
    blocks = plane.reshape(height // 8, 8, width // 8, 8)
    dct = jnp.asarray(_DCT, jnp.float32)
    steps = jnp.asarray(table, jnp.float32)[None, :, None, :]
    found = jnp.einsum("ki,aibj,lj->akbl", dct, blocks, dct, precision="highest")
    rounded = jnp.round(found / steps) * steps
    back = jnp.einsum("ki,akbl,lj->aibj", dct, rounded, dct, precision="highest")
    return jnp.clip(jnp.round(back.reshape(height, width)), -128, 127)


def _doubled(size: int) -> np.ndarray:
    """Linear enlargement of an axis by 2: [2 size, size]."""
    place = np.clip((np.arange(2 * size) + 0.5) / 2 - 0.5, 0, size - 1)
    below = np.floor(place).astype(int)
    matrix = np.zeros((2 * size, size))
    np.add.at(matrix, (np.arange(2 * size), below), 1 - (place - below))
    np.add.at(matrix, (np.arange(2 * size), np.minimum(below + 1, size - 1)), place - below)
    return matrix


def jpeg_compression(key: jax.Array, image: jax.Array, quality: int) -> jax.Array:
    """What JPEG loses at a quality, as libjpeg does: colours at half the size, and coefficients of
    8x8 blocks rounded to multiples of its tables.
    """
    height, width = image.shape[:2]
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    tables = [np.clip((table * scale + 50) // 100, 1, 255) for table in (_LUMINANCE, _CHROMINANCE)]
    edges = [(0, -size % 16) for size in (height, width)]
    padded = jnp.pad(jnp.round(image * 255), (*edges, (0, 0)), mode="edge")
    planes = jnp.einsum("hwc,kc->khw", padded, jnp.asarray(_TO_YCC, jnp.float32))
    light = _coded(jnp.round(planes[0]) - 128, tables[0])
    full = planes.shape[1:]
    halves = planes[1:].reshape(2, full[0] // 2, 2, full[1] // 2, 2).mean(axis=(2, 4))
    colours = jnp.stack([_coded(jnp.round(one), tables[1]) for one in halves], axis=-1)
    colours = _along(_doubled(full[0] // 2), _doubled(full[1] // 2), colours)
    back = jnp.asarray(np.linalg.inv(_TO_YCC), jnp.float32)
    joined = jnp.concatenate([light[..., None] + 128, colours], axis=-1)
    return jnp.einsum("hwk,ck->hwc", joined, back)[:height, :width] / 255
