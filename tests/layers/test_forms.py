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

from jaxconv.layers import Conv, convolve, forms
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
    "one window, dilated": ({"dilation": 2}, (2, 5, 6, 4), (3, 3), 3),
    "one window in 1-D": ({}, (2, 4, 3), (4,), 5),
    "tiny in 3-D": ({"padding": 1}, (1, 2, 1, 2, 2), (3, 2, 3), 4),
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


def test_dense_windows_stay_xla_s_and_the_others_do_not():
    for shape, kernel, groups, form in (
        ((1, 8, 8, 64), (3, 3, 64, 64), 1, None),
        ((1, 8, 8, 64), (1, 1, 64, 64), 1, "dot_general"),
        ((1, 8, 8, 64), (3, 3, 1, 64), 64, "mul"),
        ((1, 2, 2, 64), (3, 3, 64, 64), 1, "concatenate"),
    ):
        run = jax.make_jaxpr(functools.partial(convolve, padding=kernel[0] // 2, groups=groups))
        jaxpr = str(run(jnp.ones(shape), jnp.ones(kernel)))
        assert ("platform_index" in jaxpr) == (form is not None)
        assert form is None or form in jaxpr
        assert jaxpr.count("conv_general_dilated") == 1


def test_plain_is_what_is_traced_inside_it():
    layer, x = Conv(4, 3, padding=1, groups=4), jnp.ones((1, 5, 5, 4))
    variables = layer.init(jax.random.key(0), x)
    with plain():
        inside = str(jax.make_jaxpr(layer.apply)(variables, x))
    assert "conv_general_dilated" in inside
    assert "platform_index" not in inside
    assert "platform_index" in str(jax.make_jaxpr(layer.apply)(variables, x))


NETWORK = ["1x1 with stride", "narrower than the window", "depthwise", "groups joined"]


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
    geometry = ((1, 1), ((1, 1), (1, 1)), (1, 1))
    jaxpr = str(jax.make_jaxpr(lambda x, w: forms.blocks(x, w, geometry, 32))(x, kernel))
    assert jaxpr.count("conv_general_dilated") == 4
