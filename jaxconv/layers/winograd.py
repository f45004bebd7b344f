"""Winograd's minimal filtering (Lavin and Gray 2015, arXiv:1509.09308), for dense convolutions at
stride 1.

    F(m, r)     m outputs of a filter with r weights by n = m + r - 1 products instead of m * r:
                y = A^T [(G g) * (B^T d)], for the filter g and n inputs d
    F(2, 3)     4 products for 6; in two dimensions 16 for 36
    F(4, 3)     6 products for 12; in two dimensions 36 for 144

The image is cut into tiles of n pixels along each axis, which overlap by r - 1. One axis after the
other is transformed, each by few long sums, so that a shape compiles in a third of a second where
one sum for each of the n * n places takes three. The channels are then summed over by matrix
products [tiles, C] x [C, K], one for each place.

The largest error over the largest value, of the result and of both gradients, against float64:

    float32, 29x27 by 64, 64 filters     XLA 1.7e-6   F(2, 3) 5.1e-7   F(4, 3) 7.6e-6
    float32, 14x14 by 256, 256 filters       8.5e-7           6.3e-7           6.3e-6
    float32, 9x8x10 by 32, 32 filters        6.0e-7           5.4e-7           2.0e-5
    bfloat16, 29x27 by 64, 64 filters        2.3e-3           2.3e-3           2.3e-3

F(2, 5) was 0.9 to 1.9 times as slow as XLA's 5x5 windows, with errors of 1.3e-5: it is not used.
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.layers.windows import Geometry, Pads, output, plain, wide

# The points of Cook and Toom's algorithm in the order of use; the last one is infinity. Errors grow
# with their number.
POINTS = tuple(Fraction(p) for p in (0, 1, -1, 2, -2))

# Bytes of transformed tiles and products that are held at once, so that they stay in the cache.
# Without parts the gradient of the weights of 112x112 pixels, 64 to 128 channels, takes 1.5 times
# as long; with 4 MiB the forward pass takes 1.4 times as long.
PART = 16 * 2**20
# The fewest channels and filters that pay for the transforms: in two and three dimensions, and in
# one. Images of one or two axes with fewer than `MANY` channels and more than `LARGE` pixels, and
# signals, are convolved faster than transformed, but for the gradient of the weights.
FEWEST, FEWEST_OF_SIGNALS, MANY, LARGE = 24, 64, 128, 100**2
# The fewest multiply-adds of the direct form that pay for the time to compile another one.
LEAST = 10**8
# Transforming and reading the weights at a place costs as much as the product of a tile for this
# many weights.
WEIGHTS_PER_TILE = 1000

# m of the forward pass, of the gradient of the image and of that of the weights; 0 is XLA's own.
Sizes = tuple[int, int, int]


@functools.cache
def matrices(m: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T [m, n], G [n, r] and B^T [n, n] of F(m, r), float64; section 4.1 has F(2, 3)."""
    points = POINTS[: m + r - 2]
    if len(points) < m + r - 2:
        raise ValueError(f"F({m}, {r}) needs {m + r - 2} points; there are {len(POINTS)}")
    last = Fraction(0), Fraction(1)
    at = [[*(p**i for p in points), last[i == m - 1]] for i in range(m)]
    g, bt = [], []
    for p in points:
        others = [q for q in points if q != p]
        scale = math.prod((p - q for q in others), start=Fraction(1))
        g.append([p**k / scale for k in range(r)])
        bt.append([*_zero_at(others), 0])
    g.append([last[k == r - 1] for k in range(r)])
    bt.append(_zero_at(points))
    at, g, bt = (np.array(rows, np.float64) for rows in (at, g, bt))
    return at, g, bt


def _zero_at(points: Sequence[Fraction]) -> list[float]:
    """The coefficients, lowest first, of the polynomial that is zero at the points."""
    return np.poly(np.array(points, np.float64))[::-1].tolist()


def sizes(images: int, output: Sequence[int], r: int, channels: int, filters: int) -> Sizes:
    """The fastest `Sizes` for windows of side r, by the number of products; all 0: XLA's own.

    So is a batch whose size is a variable, as in a program that is exported.
    """
    if not isinstance(images, int):
        return 0, 0, 0
    pixels, axes, fewer = math.prod(output), len(output), min(channels, filters)
    work = images * pixels * r**axes * channels * filters
    few = fewer < (FEWEST if axes > 1 else FEWEST_OF_SIGNALS)
    if r != 3 or few or work < LEAST:
        return 0, 0, 0

    def cost(m: int) -> float:
        tiles = images * math.prod(-(-size // m) for size in output)
        return (m + r - 1) ** axes * (tiles + channels * filters / WEIGHTS_PER_TILE)

    m = min((2, 4), key=cost)
    large = axes == 1 or (axes == 2 and pixels > LARGE)
    return (0, 0, m) if large and fewer < MANY else (m, m, m)


@functools.partial(jax.jit, static_argnums=(2, 3))
@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, geometry: Geometry, sizes: Sizes) -> jax.Array:
    """A dense convolution at stride 1, with a window of equal sides and no dilation; see `plain`.

    Computes in float32 or wider.
    """
    return _forward(x, kernel, geometry[1], sizes[0]) if sizes[0] else plain(x, kernel, geometry)


# Reverse mode transposes the derivative. Each is therefore written as the transpose of the gradient
# that is wanted: its transpose is that gradient again. With `checkpoint` the transformed image and
# kernel, which are larger than themselves, are computed again instead of kept.
# A jitted function has `__wrapped__`, which jax's types leave out.
@convolve.__wrapped__.defjvp  # pyright: ignore[reportAttributeAccessIssue]
def _convolve_jvp(
    geometry: Geometry, sizes: Sizes, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    return convolve(x, kernel, geometry, sizes), (
        _of_image(x_tangent, kernel, geometry, sizes[1])
        + _of_weights(x, kernel_tangent, geometry, sizes[2])
    )


@functools.partial(jax.jit, static_argnums=(2, 3))
def _of_image(x: jax.Array, kernel: jax.Array, geometry: Geometry, m: int) -> jax.Array:
    """The convolution, linear in the image; its transpose is a convolution by Winograd's form."""
    if not m:
        return plain(x, kernel, geometry)
    result = jax.eval_shape(lambda: plain(x, kernel, geometry))
    beyond = kernel.shape[0] - 1
    pads = tuple((beyond - low, beyond - high) for low, high in geometry[1])

    @jax.checkpoint
    def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        turned = jnp.swapaxes(jnp.flip(kernel, range(kernel.ndim - 2)), -1, -2)
        return jax.linear_transpose(lambda y: _forward(y, turned, pads, m), result)(x)[0]

    return run(x, kernel)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _of_weights(x: jax.Array, kernel: jax.Array, geometry: Geometry, m: int) -> jax.Array:
    """The convolution, linear in the kernel; its transpose is the form of `_gradient`."""
    if not m:
        return plain(x, kernel, geometry)
    result = jax.eval_shape(lambda: plain(x, kernel, geometry))

    @jax.checkpoint
    def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        def gradient(y: jax.Array) -> jax.Array:
            return _gradient(x, y, geometry[1], m, kernel.shape[0]).astype(kernel.dtype)

        return jax.linear_transpose(gradient, result)(kernel)[0]

    return run(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array, pads: Pads, m: int) -> jax.Array:
    """[N, *spatial, C] and [r, ..., C, K] -> [N, *output, K]."""
    r, axes, images, filters = kernel.shape[0], x.ndim - 2, x.shape[0], kernel.shape[-1]
    at, g, bt = matrices(m, r)
    n, produced = m + r - 1, _output(x, pads, r)
    weights = _kronecker(g, axes) @ wide(kernel).reshape(r**axes, -1)
    weights = weights.reshape(n**axes, *kernel.shape[-2:])

    def run(x: jax.Array) -> jax.Array:
        tiles = _tiles(x, bt, m)
        y = _flat(tiles, axes) @ weights
        y = y.reshape(*tiles.shape[:-1], filters)
        for _ in range(axes):  # the results of an axis are put in front: the next one is last again
            y = [lax.index_in_dim(y, j, axes - 1, keepdims=False) for j in range(n)]
            y = jnp.stack([_sum(row, y) for row in at])
        # [*(m,) * axes, N, *tiles, K] to [N, tiles, m, tiles, m, ..., K]
        pairs = [place for axis in range(axes) for place in (axes + 1 + axis, axis)]
        y = jnp.transpose(y, (axes, *pairs, y.ndim - 1))
        return y.reshape(y.shape[0], *(t * m for t in y.shape[1:-1:2]), filters)

    plan = _plan(images, produced, x.shape[-1], filters, m, n)
    y = lax.map(run, _parts(x, pads, plan, m, r - 1))
    y = y.reshape(images, -1, *y.shape[3:])
    return lax.slice(y, (0,) * y.ndim, (images, *produced, filters)).astype(x.dtype)


def _gradient(x: jax.Array, y: jax.Array, pads: Pads, m: int, r: int) -> jax.Array:
    """The gradient of the kernel [r, ..., C, K], for the cotangent y [N, *output, K]."""
    axes, channels, filters = x.ndim - 2, x.shape[-1], y.shape[-1]
    at, g, bt = matrices(m, r)
    n, produced = m + r - 1, _output(x, pads, r)

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, y = _flat(_tiles(part[0], bt, m), axes), _flat(_tiles(part[1], at.T, m), axes)
        return total + lax.dot_general(x, y, (((1,), (1,)), ((0,), (0,)))), None

    plan = _plan(x.shape[0], produced, channels, filters, m, n)
    parts = _parts(x, pads, plan, m, r - 1), _parts(y, ((0, 0),) * axes, plan, m, 0)
    start = jnp.zeros((n**axes, channels, filters), wide(x).dtype)
    products, _ = lax.scan(add, start, parts)
    kernel = _kronecker(g, axes).T @ products.reshape(n**axes, -1)
    return kernel.reshape(*(r,) * axes, channels, filters)


def _plan(
    images: int, output: Sequence[int], channels: int, filters: int, m: int, n: int
) -> tuple[int, int, list[int]]:
    """Images and rows of tiles of a part, and the tiles along each axis.

    A part has several images, or some rows of one. It is of `PART` bytes, or as large as twice the
    transformed weights, which are read anew for each part.
    """
    tiles = [-(-size // m) for size in output]
    place = 4 * n ** len(tiles)
    size = max(PART, 2 * place * channels * filters)
    rows = max(1, size // (place * (channels + filters) * math.prod(tiles[1:])))
    if rows < tiles[0]:
        return 1, -(-tiles[0] // -(-tiles[0] // rows)), tiles
    fit = [i for i in range(1, images + 1) if images % i == 0 and i * tiles[0] <= rows]
    return max(fit, default=1), tiles[0], tiles


def _parts(
    x: jax.Array, pads: Pads, plan: tuple[int, int, list[int]], m: int, overlap: int
) -> jax.Array:
    """The padded image in parts [parts, images, rows of tiles * m + overlap, *spatial, C]."""
    images, rows, (first, *others) = plan
    bands = -(-first // rows)
    sizes = [bands * rows * m + overlap, *(count * m + overlap for count in others)]
    config = [
        (low, whole - size - low, 0)
        for whole, size, (low, _) in zip(sizes, x.shape[1:-1], pads, strict=True)
    ]
    x = lax.pad(wide(x), jnp.zeros((), wide(x).dtype), [(0, 0, 0), *config, (0, 0, 0)])
    if bands > 1:
        starts = range(0, bands * rows * m, rows * m)
        cut = [lax.slice_in_dim(x, start, start + rows * m + overlap, axis=1) for start in starts]
        x = jnp.stack(cut, 1).reshape(-1, *cut[0].shape[1:])
    return x.reshape(-1, images, *x.shape[1:])


def _tiles(x: jax.Array, matrix: np.ndarray, m: int) -> jax.Array:
    """Tiles, every m pixels, with the matrix [n, size] applied along each axis.

    [N, *spatial, C] -> [*(n,) * axes, N, *tiles, C].
    """
    size = matrix.shape[1]
    for axis in range(x.ndim - 2):
        place = 2 * axis + 1  # of the axis in x: in front are `axis` places, N, and `axis` tiles
        span = (x.shape[place] - size) // m * m + 1
        parts = [lax.slice_in_dim(x, i, i + span, m, place) for i in range(size)]
        # The barrier keeps XLA from computing the sums of this axis again in those of the next.
        x = lax.optimization_barrier(jnp.stack([_sum(row, parts) for row in matrix], axis))
    return x


def _flat(tiles: jax.Array, axes: int) -> jax.Array:
    """[*(n,) * axes, N, *tiles, C] -> [places, all tiles, C]; see `forms._product`."""
    return tiles.reshape(math.prod(tiles.shape[:axes]), -1, tiles.shape[-1])


def _output(x: jax.Array, pads: Pads, r: int) -> list[int]:
    padded = [size + low + high for size, (low, high) in zip(x.shape[1:-1], pads, strict=True)]
    ones = (1,) * len(pads)
    return output(padded, (r,) * len(pads), ones, ones)


def _kronecker(matrix: np.ndarray, axes: int) -> jax.Array:
    """The matrix for all axes at once."""
    return jnp.asarray(functools.reduce(np.kron, [matrix] * axes), jnp.float32)


def _sum(weights: np.ndarray, terms: Sequence[jax.Array]) -> jax.Array:
    """The weighted sum; weights of 0, 1 and -1 take no product."""
    pairs = [(w, t) for w, t in zip(weights.tolist(), terms, strict=True) if w]
    first, *rest = sorted(pairs, key=lambda pair: pair[0] < 0)
    total = first[1] if first[0] == 1 else first[1] * first[0]
    for weight, term in rest:
        scaled = term if abs(weight) == 1 else term * abs(weight)
        total = total + scaled if weight > 0 else total - scaled
    return total
