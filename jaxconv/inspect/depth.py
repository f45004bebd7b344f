"""The depth of a network as papers count it: layers with weights on the longest path.

AlexNet has 8, VGG-16 16, GoogLeNet 22, ResNet-152 152. The paths from the image to the logits are
read from the traced program. They run through feature maps only. Branches that scale whole maps,
such as the gates of squeeze-and-excitation, do not count, so SE-ResNet-50 has 50.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.extend.core as jex
import jax.numpy as jnp

from jaxconv.layers.conv import plain
from jaxconv.program import call_arguments
from jaxconv.receptive import broadcasts


class _Way(NamedTuple):
    """The longest path to a value: its layers with weights, and whether the value was broadcast."""

    layers: int
    spread: bool = False


# The origin of a value: the image (a path), weights only, or neither (None), such as the
# interpolation weights of a resize.
_WEIGHTS = "weights"
_Origin = _Way | str | None


def weighted_depth(module: nn.Module, input_shape: Sequence[int]) -> int:
    """The number of convolutions and fully connected layers on the longest path.

    Takes any Linen module and only traces it; no arrays are allocated.

    Args:
      input_shape: the shape of one example, such as (224, 224, 3).
    """
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    call = call_arguments(module, False, {})
    variables = jax.eval_shape(lambda key, x: module.init(key, x, **call), jax.random.key(0), x)
    with plain():
        program = jax.make_jaxpr(partial(module.apply, **call))(variables, x).jaxpr
    return max(
        way.layers for way in _through(program, _of_inputs(program), set()) if isinstance(way, _Way)
    )


def weighting(program: Any) -> set[int]:
    """The `id` of each equation that multiplies a value from the image by weights.

    `program` is the jaxpr of a function of (variables, image).
    """
    found: set[int] = set()
    _through(program, _of_inputs(program), found)
    return found


def _of_inputs(program: Any) -> list[_Origin]:
    return [*(_WEIGHTS,) * (len(program.invars) - 1), _Way(0)]


def _through(jaxpr: Any, origins: Sequence[_Origin], weighting: set[int]) -> list[_Origin]:
    """The origins of a program's outputs, given those of its inputs.

    Adds to `weighting` the equations that the function `weighting` returns.
    """
    known = dict(zip(jaxpr.invars, origins, strict=True))

    def look_up(var: Any) -> _Origin:
        return None if isinstance(var, jex.Literal) else known.get(var)

    for eqn in jaxpr.eqns:
        known.update(
            zip(
                eqn.outvars,
                _after(eqn, [look_up(var) for var in eqn.invars], weighting),
                strict=True,
            )
        )
    return [look_up(var) for var in jaxpr.outvars]


def _after(eqn: Any, operands: list[_Origin], weighting: set[int]) -> list[_Origin]:
    name, inner = eqn.primitive.name, list(jex.jaxprs_in_params(eqn.params))
    seeing = [
        (way, var.aval)
        for way, var in zip(operands, eqn.invars, strict=True)
        if isinstance(way, _Way)
    ]
    if not seeing:
        return [_WEIGHTS if _WEIGHTS in operands else None] * len(eqn.outvars)
    if name == "cond":
        inner, operands = inner[-1:], operands[1:]
    if inner and name not in ("scan", "while") and len(inner[0].invars) == len(operands):
        return _through(inner[0], operands, weighting)
    if name == "scan":
        return _around(inner[0], operands, eqn.params["length"], weighting)
    longest = max(way.layers for way, _ in seeing)
    if name in ("conv_general_dilated", "dot_general"):
        if operands[1] == _WEIGHTS:
            weighting.add(id(eqn))
        return [_Way(longest + (_WEIGHTS in operands))]
    output = eqn.outvars[0].aval
    spread = [way.spread or var.size < output.size for way, var in seeing]
    if name == "broadcast_in_dim" or all(spread):
        return [_Way(longest, all(spread))] * len(eqn.outvars)
    if all(broadcasts(var.shape, output.shape) for _, var in seeing):
        longest = max(way.layers for (way, _), wide in zip(seeing, spread, strict=True) if not wide)
    return [_Way(longest)] * len(eqn.outvars)


def _around(body: Any, operands: list[_Origin], length: int, weighting: set[int]) -> list[_Origin]:
    """The origins of a `scan`'s outputs: each iteration adds as many layers as the first."""
    before = max(way.layers for way in operands if isinstance(way, _Way))
    once = _through(body, operands, weighting)
    return [
        way._replace(layers=way.layers + (length - 1) * max(0, way.layers - before))
        if isinstance(way, _Way)
        else way
        for way in once
    ]
