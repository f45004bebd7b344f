"""The CPU's forms of the convolution against XLA's: values, derivatives, transformations."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxconv.layers import Conv, convolve, forms, windows, winograd
from jaxconv.layers.conv import plain

pytestmark = pytest.mark.usefixtures("strict_dtypes")

# Settings of `convolve`, the image [N, *spatial, C], the window, K.
CASES = {
    "1x1": ({}, (2, 5, 4, 3), (1, 1), 6),
    "1x1 with stride": ({"stride": 2}, (2, 5, 6, 3), (1, 1), 4),
    "1x1 with stride and padding": ({"stride": (3, 2), "padding": (1, 2)}, (2, 5, 6, 3), (1, 1), 4),
    "1x1 rounded up": ({"stride": 3, "rounding": "ceil"}, (2, 6, 5, 3), (1, 1), 4),
    "1 in 1-D": ({"stride": 2}, (2, 7, 3), (1,), 4),
    "1x1x1": ({}, (2, 3, 2, 4, 3), (1, 1, 1), 4),
    "narrower than the window": ({"padding": 1}, (2, 2, 2, 4), (3, 3), 5),
    "narrower than the window, with stride": (
        {"padding": 2, "stride": (2, 1), "rounding": "ceil"},
        (2, 4, 3, 4),
        (5, 5),
        3,
    ),
    "F(2, 3)": ({"padding": 1}, (64, 3, 4, 128), (3, 3), 128),
    "F(4, 3)": ({"padding": 1}, (8, 12, 13, 96), (3, 3), 96),
    "3x3 with stride": ({"padding": 1, "stride": 2}, (2, 9, 8, 16), (3, 3), 4),
    "2x2 with stride": ({"stride": 2}, (2, 9, 8, 5), (2, 2), 4),
    "three colours at stride 1": ({"padding": 1}, (64, 32, 32, 3), (3, 3), 64),
    "one window, dilated": ({"dilation": 2}, (2, 5, 6, 4), (3, 3), 3),
    "one window in 1-D": ({}, (2, 4, 3), (4,), 5),
    "tiny in 3-D": ({"padding": 1}, (1, 2, 1, 2, 2), (3, 2, 3), 4),
    "thin in 3-D": ({"padding": 1}, (2, 5, 6, 7, 4), (3, 3, 3), 5),
    "thin in 3-D with stride and dilation": (
        {"padding": (2, 1, 0), "stride": (2, 1, 2), "dilation": (2, 1, 1)},
        (2, 9, 6, 7, 32),
        (3, 2, 3),
        5,
    ),
    "far taps": ({"padding": 6, "dilation": 6}, (2, 9, 8, 16), (3, 3), 5),
    "taps of which some see nothing": ({"padding": 12, "dilation": 12}, (2, 9, 8, 3), (3, 3), 5),
    "far taps in 1-D": ({"padding": 5, "dilation": 5}, (2, 9, 3), (3,), 5),
    "wide padding in 1-D": ({"padding": 4}, (2, 9, 3), (5,), 4),
    "wide padding": ({"padding": (2, 1), "stride": (1, 2)}, (2, 9, 8, 3), (4, 3), 4),
    "three colours": ({"padding": 1, "stride": 2}, (2, 9, 8, 3), (3, 3), 4),
    "depthwise": ({"groups": 5, "padding": 1}, (2, 6, 7, 5), (3, 3), 5),
    "depthwise with stride": ({"groups": 5, "padding": 1, "stride": 2}, (2, 6, 7, 5), (3, 3), 5),
    "depthwise 7x7": ({"groups": 2, "padding": 3}, (2, 5, 9, 2), (7, 7), 2),
    "depthwise wide with stride and dilation": (
        {"groups": 2, "padding": 4, "dilation": 2, "stride": (2, 3)},
        (2, 7, 9, 2),
        (5, 4),
        2,
    ),
    "depthwise wide in 1-D": ({"groups": 2, "padding": 2}, (2, 9, 2), (5,), 2),
    "depthwise wide in 3-D": ({"groups": 2, "padding": 1}, (2, 3, 2, 5, 2), (2, 2, 4), 2),
    "depthwise wide, image wider": ({"groups": 2, "padding": 2}, (1, 3, 30, 2), (3, 5), 2),
    "depthwise without padding": ({"groups": 2}, (2, 5, 9, 2), (2, 4), 2),
    "depthwise padded beyond the window": ({"groups": 2, "padding": 4}, (2, 3, 4, 2), (3, 3), 2),
    "depthwise rounded up": (
        {"groups": 3, "stride": 2, "rounding": "ceil"},
        (2, 6, 8, 3),
        (3, 3),
        3,
    ),
    "depthwise dilated": ({"groups": 3, "padding": 2, "dilation": (2, 1)}, (2, 6, 8, 3), (3, 3), 3),
    "depthwise dilated with stride": (
        {"groups": 3, "padding": 2, "dilation": 2, "stride": (2, 3)},
        (2, 7, 8, 3),
        (3, 2),
        3,
    ),
    "depthwise with two filters a channel": ({"groups": 3, "padding": 1}, (2, 4, 5, 3), (3, 3), 6),
    "depthwise 1x1": ({"groups": 3, "stride": 2}, (2, 4, 5, 3), (1, 1), 3),
    "depthwise in 1-D": ({"groups": 3, "padding": 1, "stride": 2}, (2, 9, 3), (3,), 3),
    "depthwise in 3-D": ({"groups": 2, "padding": (1, 0, 1)}, (2, 4, 3, 5, 2), (3, 2, 3), 4),
    "two groups": ({"groups": 2, "padding": 2}, (2, 6, 5, 8), (5, 5), 4),
    "groups joined": ({"groups": 16, "padding": 1}, (2, 4, 5, 64), (3, 3), 32),
    "groups joined, not a power of two": (
        {"groups": 15, "padding": 1, "stride": 2},
        (2, 4, 5, 45),
        (3, 3),
        45,
    ),
    "wide groups": ({"groups": 2, "padding": 1, "dilation": 2}, (1, 5, 5, 66), (3, 3), 4),
    "groups of 1x1": ({"groups": 3, "stride": 2}, (2, 4, 5, 12), (1, 1), 6),
    "groups in 1-D": ({"groups": 2, "padding": 1}, (2, 7, 4), (3,), 6),
    "groups in 3-D": (
        {"groups": 2, "padding": 1, "stride": (1, 2, 1)},
        (2, 3, 4, 3, 4),
        (2, 3, 1),
        6,
    ),
}


def operands(settings, shape, window, filters, dtype=jnp.float32):
    """Image, kernel, and a tangent of each."""
    keys = jax.random.split(jax.random.key(0), 4)
    kernel = (*window, shape[-1] // settings.get("groups", 1), filters)
    return [
        jax.random.normal(key, s).astype(dtype)
        for key, s in zip(keys, (shape, kernel, shape, kernel), strict=True)
    ]


def everything(settings, x, kernel, x_tangent, kernel_tangent):
    """Value, derivative along the tangents, and both gradients of a randomly weighted sum."""

    def run(x, kernel):
        return convolve(x, kernel, **settings)

    value, derivative = jax.jvp(run, (x, kernel), (x_tangent, kernel_tangent))
    weights = jax.random.normal(jax.random.key(1), value.shape).astype(value.dtype)
    return value, derivative, *jax.vjp(run, x, kernel)[1](weights)


def compare(settings, shape, window, filters, dtype=jnp.float32, tolerance=2e-5):
    """Compare `everything` with the plain convolution in float32, from the same rounded numbers."""
    values = operands(settings, shape, window, filters, dtype)
    ours = jax.jit(lambda *a: everything(settings, *a))(*values)
    with plain():
        expected = jax.jit(lambda *a: everything(settings, *a))(
            *(value.astype(jnp.float32) for value in values)
        )
    for name, mine, theirs in zip(
        ("value", "derivative", "gradient of image", "gradient of weights"),
        ours,
        expected,
        strict=True,
    ):
        assert (mine.dtype, mine.shape) == (dtype, theirs.shape), name
        np.testing.assert_allclose(
            mine.astype(jnp.float32),
            theirs,
            rtol=0,
            atol=tolerance * float(jnp.abs(theirs).max()),
            err_msg=name,
        )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_form_is_the_convolution(case):
    compare(*CASES[case])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
@pytest.mark.parametrize(
    "case",
    [
        "1x1 with stride",
        "narrower than the window",
        "depthwise 7x7",
        "depthwise with stride",
        "groups joined",
    ],
)
def test_half_precision(case, dtype):
    """bfloat16 has 8 significant bits and float16 11; the tolerance allows a few roundings."""
    compare(*CASES[case], dtype, {jnp.bfloat16: 4 / 256, jnp.float16: 4 / 2048}[dtype])


@pytest.mark.slow
@settings(deadline=None, max_examples=6)
@given(
    st.integers(4, 8), st.integers(1, 3), st.integers(1, 3),
    st.integers(0, 2), st.integers(1, 2), st.sampled_from(["floor", "ceil"]),
    st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_form_is_the_convolution_over_geometries(
    size, window, stride, padding, dilation, rounding, groups
):
    setup = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "rounding": rounding,
        "groups": groups,
    }
    try:
        compare(setup, (2, size, 7, 4), (window, 2 if groups > 1 else window), 4)
    except ValueError as error:  # the window is wider than the image
        assert "does not fit" in str(error) or "window" in str(error)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "groups", "form"),
    [
        ((1, 8, 8, 64), (1, 1, 64, 64), 1, 1, "pointwise"),
        ((1, 8, 8, 64), (3, 3, 1, 64), 1, 64, "depthwise"),
        ((1, 8, 8, 64), (3, 3, 32, 64), 1, 2, "blocks"),
        ((1, 2, 2, 64), (3, 3, 64, 64), 1, 1, "patches"),
        ((8, 56, 56, 128), (3, 3, 128, 128), 2, 1, "patches"),
        ((8, 56, 56, 96), (2, 2, 96, 192), 2, 1, "patches"),
        ((8, 224, 224, 3), (4, 4, 3, 96), 4, 1, "patches"),
        ((2, 224, 224, 3), (3, 3, 3, 64), 1, 1, "patches"),
        ((8, 32, 32, 1), (3, 3, 1, 8), 1, 1, None),
        ((8, 224, 224, 3), (7, 7, 3, 64), 2, 1, None),
        ((8, 224, 224, 3), (3, 3, 3, 32), 2, 1, None),
        ((8, 27, 27, 64), (5, 5, 64, 192), 1, 1, None),
        ((8, 28, 28, 16), (3, 3, 16, 32), 1, 1, None),
        ((8, 8, 8, 32), (3, 3, 32, 32), 1, 1, None),
        ((2, 224, 224, 64), (3, 3, 64, 64), 1, 1, (0, 0, 4)),
        ((8, 56, 56, 64), (3, 3, 64, 64), 1, 1, (4, 4, 4)),
        ((8, 28, 28, 512), (3, 3, 512, 512), 1, 1, (4, 4, 4)),
        ((8, 14, 14, 512), (3, 3, 512, 512), 1, 1, (2, 2, 2)),
        ((8, 7, 7, 512), (3, 3, 512, 512), 1, 1, (2, 2, 2)),
        ((8, 16000, 32), (3, 32, 32), 1, 1, None),
        ((8, 2048, 64), (3, 64, 64), 1, 1, (0, 0, 4)),
        ((8, 512, 256), (3, 256, 256), 1, 1, (4, 4, 4)),
        ((2, 32, 32, 32, 32), (3, 3, 3, 32, 32), 1, 1, (4, 4, 4)),
    ],
)
def test_the_form_of_a_shape(shape, kernel, stride, groups, form):
    axes = len(shape) - 2
    padding = 1 if kernel[0] == 3 else 0
    geometry = ((stride,) * axes, ((padding, padding),) * axes, (1,) * axes)
    chosen = forms.choose(shape, kernel, geometry, groups)
    if isinstance(chosen, functools.partial) and chosen.func is winograd.convolve:
        chosen = chosen.keywords["sizes"]
    elif chosen is not None:
        chosen = getattr(chosen, "func", chosen).__name__
    assert chosen == form


def test_deeplab_s_pyramid_takes_the_pixels_that_are_there():
    for dilation, form in ((12, forms.taps), (24, forms.taps), (2, None)):
        geometry = ((1, 1), ((dilation,) * 2,) * 2, (dilation, dilation))
        assert forms.choose((2, 65, 65, 2048), (3, 3, 2048, 256), geometry, 1) is form


def test_dilated_and_uneven_windows_stay_xla_s():
    for kernel, dilation in (((3, 3, 64, 64), 2), ((3, 5, 64, 64), 1)):
        keeping = tuple(2 * ((f - 1) * dilation // 2,) for f in kernel[:2])
        geometry = ((1, 1), keeping, (dilation, dilation))
        assert forms.choose((8, 56, 56, 64), kernel, geometry, 1) is None


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize(
    ("shape", "pads"),
    [
        ((2, 7, 6, 3), ((1, 1), (1, 1))),
        ((1, 9, 3, 2), ((0, 0), (2, 2))),
        ((1, 5, 8, 2), ((0, 2), (3, 0))),
        ((3, 13, 4), ((1, 1),)),
        ((1, 4, 5, 3, 2), ((1, 1), (0, 1), (1, 1))),
    ],
    ids=str,
)
@pytest.mark.parametrize("part", [2**24, 1])
def test_winograd_s_form_against_float64(monkeypatch, shape, pads, m, part):
    """The result and both gradients; in one part, and in parts of one row of tiles."""
    monkeypatch.setattr(winograd, "PART", part)
    axes = len(shape) - 2
    geometry = ((1,) * axes, pads, (1,) * axes)
    x, kernel, *_ = operands({}, shape, (3,) * axes, 4)
    output = jax.eval_shape(lambda: windows.plain(x, kernel, geometry))
    cotangent = jax.random.normal(jax.random.key(2), output.shape)

    def run(form, *given):
        y, transpose = jax.vjp(form, *given[:2])
        return y, *transpose(given[2])

    # Not `winograd.convolve` itself, which is traced once for each shape.
    form = winograd.convolve.__wrapped__
    ours = jax.jit(lambda *a: run(lambda x, kernel: form(x, kernel, geometry, (m, m, m)), *a))(
        x, kernel, cotangent
    )
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in (x, kernel, cotangent)]
        expected = run(lambda x, kernel: windows.plain(x, kernel, geometry), *wide)
        expected = [np.asarray(a) for a in expected]
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == jnp.float32
        error = np.abs(np.asarray(mine, np.float64) - theirs).max() / np.abs(theirs).max()
        assert error < {2: 2e-6, 4: 5e-5}[m]


def test_matrices_are_those_of_the_paper():
    """Section 4.1's F(2, 3), up to signs that cancel; and F(m, r) of random filters."""
    at, g, bt = winograd.matrices(2, 3)
    np.testing.assert_array_equal(np.abs(at), [[1, 1, 1, 0], [0, 1, 1, 1]])
    np.testing.assert_array_equal(
        np.abs(g), [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 1]]
    )
    np.testing.assert_array_equal(
        np.abs(bt), [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]]
    )
    random = np.random.default_rng(0)
    for m, r in ((2, 3), (4, 3), (2, 5), (3, 2), (1, 4)):
        at, g, bt = winograd.matrices(m, r)
        filter_, pixels = random.normal(size=r), random.normal(size=m + r - 1)
        np.testing.assert_allclose(
            at @ ((g @ filter_) * (bt @ pixels)), np.correlate(pixels, filter_, "valid"), atol=1e-12
        )
    with pytest.raises(ValueError, match=r"F\(6, 3\) needs 7 points; there are 5"):
        winograd.matrices(6, 3)


def test_plain_is_what_is_traced_inside_it():
    layer, x = Conv(4, 3, padding=1, groups=4), jnp.ones((1, 5, 5, 4))
    variables = layer.init(jax.random.key(0), x)
    with plain():
        inside = str(jax.make_jaxpr(layer.apply)(variables, x))
    assert "conv_general_dilated" in inside
    assert "platform_index" not in inside
    assert "platform_index" in str(jax.make_jaxpr(layer.apply)(variables, x))


NETWORK = ["F(4, 3)", "1x1 with stride", "narrower than the window", "depthwise", "groups joined"]


@pytest.mark.parametrize("case", NETWORK)
def test_second_derivatives(case):
    """Hessian-vector products, forward over reverse and reverse over reverse."""
    arguments, *rest = CASES[case]
    x, kernel, _, tangent = operands(arguments, *rest)

    def loss(kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel, **arguments)))

    def products(kernel):
        forward = jax.jvp(jax.grad(loss), (kernel,), (tangent,))[1]
        return forward, jax.grad(lambda k: jnp.vdot(jax.grad(loss)(k), tangent))(kernel)

    ours = jax.jit(lambda k: products(k))(kernel)
    with plain():
        expected = jax.jit(lambda k: products(k))(kernel)
    for mine, theirs in zip(ours, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("case", NETWORK)
def test_vmap_over_images_and_over_kernels(case):
    arguments, *rest = CASES[case]
    x, kernel, other_x, other_kernel = operands(arguments, *rest)
    xs, kernels = jnp.stack([x, other_x]), jnp.stack([kernel, other_kernel])

    def gradients(x, kernel):
        return jax.grad(lambda *a: jnp.sum(convolve(*a, **arguments) ** 2), (0, 1))(x, kernel)

    ours = jax.jit(jax.vmap(gradients))(xs, kernels)
    apart = [jax.jit(gradients)(x, kernel), jax.jit(gradients)(other_x, other_kernel)]
    for mine, theirs in zip(ours, jax.tree.map(lambda *a: jnp.stack(a), *apart), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("case", NETWORK)
def test_jit_over_a_mesh_pmap_and_shard_map(case):
    arguments, shape, window, filters = CASES[case]
    x, kernel, *_ = operands(arguments, (4, *shape[1:]), window, filters)

    def gradients(x, kernel):
        return jax.grad(lambda k: jnp.sum(convolve(x, k, **arguments) ** 2))(kernel)

    expected = jax.jit(gradients)(x, kernel)
    mesh, split, whole = (
        Mesh(np.array(jax.devices()), ("data",)),
        PartitionSpec("data"),
        PartitionSpec(),
    )
    shardings = (NamedSharding(mesh, split), NamedSharding(mesh, whole))
    spread = {
        "jit": jax.jit(gradients, in_shardings=shardings)(x, kernel),
        "shard_map": jax.jit(
            jax.shard_map(gradients, mesh=mesh, in_specs=(split, whole), out_specs=whole)
        )(x, kernel),
        "pmap": jnp.sum(
            jax.pmap(gradients, in_axes=(0, None))(x.reshape(4, 1, *shape[1:]), kernel), 0
        ),
    }
    for name, result in spread.items():
        np.testing.assert_allclose(
            result, expected, rtol=0, atol=2e-5 * float(jnp.abs(expected).max()), err_msg=name
        )


def test_one_export_for_several_platforms():
    """Exported on a CPU, each platform has its own convolution."""
    arguments, *rest = CASES["depthwise"]
    x, kernel, *_ = operands(arguments, *rest)
    run = jax.jit(lambda x, kernel: convolve(x, kernel, **arguments))
    both = jax.export.export(run, platforms=("cpu", "cuda"))(x, kernel)
    np.testing.assert_allclose(both.call(x, kernel), run(x, kernel), rtol=1e-6)
    for platform, convolutions in (("cpu", 0), ("cuda", 1)):
        text = jax.export.export(run, platforms=(platform,))(x, kernel).mlir_module()
        assert text.count("stablehlo.convolution") == convolutions


def test_blocks_are_as_few_as_see_enough_channels():
    x, kernel = jnp.ones((1, 3, 3, 128)), jnp.ones((3, 3, 4, 128))
    geometry = ((1, 1), ((1, 1), (1, 1)), (1, 1))  # too small for Winograd's form
    jaxpr = str(jax.make_jaxpr(lambda x, w: forms.blocks(x, w, geometry, 32))(x, kernel))
    assert jaxpr.count("conv_general_dilated") == 4
