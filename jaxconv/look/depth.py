"""How deep a network is, as its paper counts: the layers with weights on the longest way from the image to the votes.

AlexNet has 8, VGG-16 16, GoogLeNet 22, ResNet-152 152. The ways are read off the program. A way leads through feature maps alone: what
weights whole maps, as the gates of squeeze and excitation do, is no part of it, so that SE-ResNet-50 has 50.
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
    """The longest way to a value: layers with weights, and whether the value was spread over positions that it did not have."""

    layers: int
    spread: bool = False


def weighted_depth(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Convolutions and fully connected layers on the longest way through any Linen module; nothing is computed.

    Args:
      input_shape: of one example, such as (224, 224, 3).
    """
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    call = call_arguments(module, False, {})
    variables = jax.eval_shape(lambda key, x: module.init(key, x, **call), jax.random.key(0), x)
    with plain():
        program = jax.make_jaxpr(partial(module.apply, **call))(variables, x).jaxpr
    ways = _through(program, [None] * (len(program.invars) - 1) + [_Way(0)])
    return max(way.layers for way in ways if way is not None)


def _through(jaxpr: Any, ways: Sequence[_Way | None]) -> list[_Way | None]:
    """The ways to a program's outputs, from those to its inputs; None leads to no image, as of a weight."""
    known = dict(zip(jaxpr.invars, ways, strict=True))

    def look_up(var: Any) -> _Way | None:
        return None if isinstance(var, jex.Literal) or var not in known else known[var]

    for eqn in jaxpr.eqns:
        known.update(zip(eqn.outvars, _after(eqn, [look_up(var) for var in eqn.invars]), strict=True))
    return [look_up(var) for var in jaxpr.outvars]


def _after(eqn: Any, operands: list[_Way | None]) -> list[_Way | None]:
    name, inner = eqn.primitive.name, list(jex.jaxprs_in_params(eqn.params))
    seeing = [(way, var.aval) for way, var in zip(operands, eqn.invars, strict=True) if way is not None]
    if not seeing:
        return [None] * len(eqn.outvars)
    if name == "cond":
        inner, operands = inner[-1:], operands[1:]
    if inner and name not in ("scan", "while") and len(inner[0].invars) == len(operands):
        return _through(inner[0], operands)
    if name == "scan":
        return _around(inner[0], operands, eqn.params["length"])
    longest = max(way.layers for way, _ in seeing)
    if name in ("conv_general_dilated", "dot_general"):
        return [_Way(longest + (None in operands))]
    output = eqn.outvars[0].aval
    spread = [way.spread or var.size < output.size for way, var in seeing]
    if name == "broadcast_in_dim" or all(spread):
        return [_Way(longest, all(spread))] * len(eqn.outvars)
    if all(broadcasts(var.shape, output.shape) for _, var in seeing):
        longest = max(way.layers for (way, _), wide in zip(seeing, spread, strict=True) if not wide)
    return [_Way(longest)] * len(eqn.outvars)


def _around(body: Any, operands: list[_Way | None], length: int) -> list[_Way | None]:
    """A loop of known length: each turn adds what one turn adds."""
    before = max(way.layers for way in operands if way is not None)
    once = _through(body, operands)
    return [None if way is None else _Way(way.layers + (length - 1) * max(0, way.layers - before)) for way in once]
