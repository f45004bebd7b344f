"""Backward rules that replace the gradient of rectifiers, to show what a network looks for.

At a rectifier y = f(x) each rule turns the signal from above into (Springenberg et al. 2015,
arXiv:1412.6806, Figure 1)

    gradient    f'(x) * signal                               backpropagation
    deconvnet   max(signal, 0)                               Zeiler and Fergus 2014,
                arXiv:1311.2901, section 2.1
    guided      f'(x) * max(signal, 0) where x > 0, else 0   guided backpropagation

The last two were published for ReLU; this is how they extend to other activations. With them, a
maximum passes the signal to a single operand, the first that attains it (the deconvnet's switch).
The gradient splits the signal among ties.
"""

import functools
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax


def _gradient(x: jax.Array, slope: jax.Array, signal: jax.Array) -> jax.Array:
    return slope * signal


def _deconvnet(x: jax.Array, slope: jax.Array, signal: jax.Array) -> jax.Array:
    return jnp.maximum(signal, 0)


def _guided(x: jax.Array, slope: jax.Array, signal: jax.Array) -> jax.Array:
    return jnp.where(x > 0, slope * jnp.maximum(signal, 0), 0)


RULES = {"gradient": _gradient, "deconvnet": _deconvnet, "guided": _guided}

# Rectifiers of jax.nn, by the names of their jaxprs. Others are recognized by what they compute:
# max(x, 0), or x times a sigmoid of x, as in GELU.
_NAMED = (
    "relu",
    "relu6",
    "silu",
    "hard_silu",
    "mish",
    "elu",
    "celu",
    "selu",
    "leaky_relu",
    "softplus",
    "squareplus",
)
# A sigmoid that is computed with a rectifier but is not one.
_OPAQUE = ("hard_sigmoid",)
_SIGMOIDS = ("erf", "erfc", "tanh", "logistic")
_ELEMENTWISE = (
    *_SIGMOIDS,
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "integer_pow",
    "square",
    "convert_element_type",
    "copy",
)
_COPIES = ("broadcast_in_dim", "convert_element_type", "copy")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def rectified(rule: str, x: jax.Array, y: jax.Array, slope: jax.Array) -> jax.Array:
    """y = f(x), with one of the `RULES` as the backward pass to `x`; `slope` is f'(x)."""
    return y


def _forward(
    rule: str, x: jax.Array, y: jax.Array, slope: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return y, (x, slope)


def _backward(
    rule: str, kept: tuple[jax.Array, jax.Array], signal: jax.Array
) -> tuple[jax.Array, ...]:
    x, slope = kept
    return (
        RULES[rule](x, slope, signal).astype(x.dtype),
        jnp.zeros_like(signal),
        jnp.zeros_like(slope),
    )


rectified.defvjp(_forward, _backward)


def first_of_two(a: jax.Array, b: jax.Array) -> jax.Array:
    """The maximum of each pair; its gradient goes to `a` alone where they tie."""
    return lax.select((a >= b) | (a != a), a, b)


def first_along(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The maximum over `axes`; its gradient goes to the first position that attains it."""
    x = jnp.moveaxis(x, axes, range(-len(axes), 0))
    x = x.reshape(*x.shape[: x.ndim - len(axes)], -1)
    return jnp.take_along_axis(x, jnp.argmax(x, axis=-1, keepdims=True), axis=-1)[..., 0]


def opaque(eqn: Any) -> bool:
    """Whether an equation is a function whose contents are not examined."""
    return "name" in eqn.params and eqn.params["name"] in _OPAQUE


def rectifiers(jaxpr: Any) -> dict[int, tuple[Any, list[Any]]]:
    """The rectifiers of a program.

    Returns:
      The number of the last equation of each -> (its input variable, its equations).
    """
    found: dict[int, tuple[Any, list[Any]]] = {}
    zeros: set[Any] = set()
    variances = _variances(jaxpr)
    made: dict[Any, tuple[Any, dict[int, Any], bool]] = {}
    for number, eqn in enumerate(jaxpr.eqns):
        variables = [var for var in eqn.invars if not isinstance(var, jex.Literal)]
        others = [var for var in variables if var not in zeros]
        if eqn.primitive.name in _COPIES and _all_zero(eqn, zeros):
            zeros.add(eqn.outvars[0])
        elif _is_rectifier(eqn, zeros) and eqn.outvars[0] not in variances:
            found[number] = (others[0], [eqn])
        elif eqn.primitive.name in _ELEMENTWISE or opaque(eqn):
            parts = [made.get(var, (var, {}, False)) for var in others]
            if len({id(root) for root, _, _ in parts}) != 1 or any(
                var.aval.shape != eqn.outvars[0].aval.shape for var in others
            ):
                continue
            root, bends = parts[0][0], [bends for _, _, bends in parts]
            steps = {n: step for _, steps, _ in parts for n, step in steps.items()} | {number: eqn}
            if eqn.primitive.name == "mul" and sorted(bends) == [False, True]:
                found[number] = (root, [steps[n] for n in sorted(steps)])
            else:
                made[eqn.outvars[0]] = (
                    root,
                    steps,
                    any(bends) or eqn.primitive.name in _SIGMOIDS or opaque(eqn),
                )
    return found


def _variances(jaxpr: Any) -> set[Any]:
    """Variables whose root is taken, such as variances.

    Linen's norms clip variances at 0, which looks like a ReLU.
    """
    found: set[Any] = set()
    for eqn in reversed(jaxpr.eqns):
        if eqn.primitive.name in ("rsqrt", "sqrt") or (
            eqn.primitive.name in ("add", "reshape", *_COPIES) and eqn.outvars[0] in found
        ):
            found.update(var for var in eqn.invars if not isinstance(var, jex.Literal))
    return found


def _is_rectifier(eqn: Any, zeros: set[Any]) -> bool:
    # A lifted loop leaves equations without outputs behind.
    if not eqn.outvars or not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return False
    if eqn.primitive.name == "max":
        return any(_is_zero(var, zeros) for var in eqn.invars) and not _all_zero(eqn, zeros)
    if (
        eqn.primitive.name == "custom_jvp_call"
    ):  # jax.nn.relu, or a function written in the same way
        inner = next(jex.jaxprs_in_params(eqn.params))
        return len(inner.eqns) == 1 and _is_rectifier(inner.eqns[0], set())
    return "jaxpr" in eqn.params and "name" in eqn.params and eqn.params["name"] in _NAMED


def _all_zero(eqn: Any, zeros: set[Any]) -> bool:
    return all(_is_zero(var, zeros) for var in eqn.invars)


def _is_zero(var: Any, zeros: set[Any]) -> bool:
    return np.ndim(var.val) == 0 and var.val == 0 if isinstance(var, jex.Literal) else var in zeros
