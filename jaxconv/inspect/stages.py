"""The stages of a network on one input.

A stage is the output of a layer, of an activation or of pooling, or a feature map that the network
names. Convolutions and fully connected layers come with their weights and their input. The stages
are read from the traced program, so nothing is assumed about the names of the layers.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core as jex
import numpy as np

from jaxconv.inspect.depth import weighting
from jaxconv.inspect.inside import Interpreter, Marks
from jaxconv.layers.conv import plain
from jaxconv.program import call_arguments

# Activations by the names of JAX functions and primitives.
ACTIVATIONS = {
    "relu": "ReLU",
    "max": "ReLU",
    "relu6": "ReLU6",
    "leaky_relu": "leaky ReLU",
    "elu": "ELU",
    "selu": "SELU",
    "celu": "CELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "swish": "SiLU",
    "softplus": "softplus",
    "hard_silu": "hard swish",
    "mish": "Mish",
    "tanh": "tanh",
    "logistic": "sigmoid",
}
_SIGMOIDS = ("tanh", "logistic")
_WINDOWS = ("reduce_window_max", "reduce_window_sum", "reduce_window")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a network on one input.

    Attributes:
      name: the path of the layer or the name of the feature map; empty if it has none.
      kind: `input`, `convolution`, `fully connected`, `pooling`, an activation such as `ReLU`, or
        empty for anything else.
      value: [*spatial, C] or [C].
      weights: [*window, C, K] of a convolution, [D, K] of a fully connected layer; otherwise None.
      given: the input of those weights, [*spatial, C] or [D]; otherwise None.
    """

    name: str
    kind: str
    value: np.ndarray
    weights: np.ndarray | None = None
    given: np.ndarray | None = None

    def weighing(self) -> tuple[np.ndarray, np.ndarray]:
        """`weights` and `given`.

        Raises:
          ValueError: the stage is neither a convolution nor fully connected.
        """
        if self.weights is None or self.given is None:
            raise ValueError(f"the stage {self.name or self.kind!r} has no weights")
        return self.weights, self.given


def stages(module: nn.Module, variables: Any, x: Any) -> list[Stage]:
    """The stages of one input in program order, from the input itself to the module's output.

    Args:
      module: any Linen module; called with `train=False` if it takes `train`.
      x: [*spatial, C] float32, the module's input without the batch axis.
    """
    met: list[tuple[str, str]] = []

    def run(variables: Any, x: jax.Array) -> list[Any]:
        _, found = traced_stages(module, variables, x)
        met[:] = [(stage.name, stage.kind) for stage in found]
        return [(stage.value, stage.weights, stage.given) for stage in found]

    arrays = jax.jit(run)(variables, jax.numpy.asarray(x)[None])

    def one(array: Any) -> Any:
        return None if array is None else np.asarray(array[0], np.float32)

    return [
        Stage(
            name,
            kind,
            one(value),
            None if weights is None else np.asarray(weights, np.float32),
            one(given),
        )
        for (name, kind), (value, weights, given) in zip(met, arrays, strict=True)
    ]


def traced_stages(module: nn.Module, variables: Any, x: jax.Array) -> tuple[Any, list[Stage]]:
    """The module's output for x [N, *spatial, C] and its stages, whose values keep the batch axis.

    Can be called under `jit`. The output may be any pytree; one of several arrays is no stage.
    """
    marks, apply = Marks(), partial(module.apply, **call_arguments(module, False, {}))
    with plain(), nn.intercept_methods(marks.intercept):
        program, shapes = jax.make_jaxpr(apply, return_shape=True)(variables, x)
    walk = _Walk(marks, x, weighting(program.jaxpr))
    outputs = walk.run(program, jax.tree.leaves((variables, x)))
    if len(outputs) == 1:
        walk.end(outputs[0])
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs), [
        Stage(name, kind, *arrays)
        for (name, kind), arrays in zip(walk.names, walk.arrays, strict=True)
    ]


@dataclasses.dataclass
class _Work:
    """A convolution, product or pooling whose layer may still add a bias."""

    kind: str
    output: Any
    weights: Any = None
    given: Any = None


class _Walk(Interpreter):
    """An evaluation that collects stages.

    `names` has (name, kind) of each stage, `arrays` (value, weights, given) with the batch axis.
    """

    def __init__(self, marks: Marks, image: Any, weighting: set[int]):
        super().__init__("gradient", marks, {})
        self._weighting = weighting
        self.names: list[tuple[str, str]] = [("", "input")]
        self.arrays: list[tuple[Any, Any, Any]] = [(image, None, None)]
        self._work: _Work | None = None

    def step(self, jaxpr: Any, eqn: Any, operands: list[Any]) -> Sequence[Any]:
        """Evaluate one equation, and record it if it does the work of a layer."""
        name = eqn.primitive.name
        if name == "name" and len(eqn.params["name"]) and eqn.params["name"].isprintable():
            return (
                operands  # the network's own mark: the same object, so that it is recognized later
            )
        outputs = super().step(jaxpr, eqn, operands)
        if id(eqn) in self._weighting and (name == "conv_general_dilated" or _is_dense(eqn)):
            given, weights = operands
            self._arrive(given)
            self._work = _Work(
                "fully connected" if outputs[0].ndim == 2 else "convolution",
                outputs[0],
                weights,
                given,
            )
        elif name in _WINDOWS and max(eqn.params["window_dimensions"][1:-1], default=1) > 1:
            self._arrive(operands[0])
            self._work = _Work("pooling", outputs[0])
        elif name in _SIGMOIDS:
            self._activate(operands[0], ACTIVATIONS[name], outputs[0])
        return outputs

    def rectify(self, jaxpr: Any, known: Any, root: Any, steps: Sequence[Any]) -> Any:
        """Evaluate an activation, which is a stage."""
        output = super().rectify(jaxpr, known, root, steps)
        if self.names[-1][1] in {
            ACTIVATIONS[step.primitive.name] for step in steps if step.primitive.name in _SIGMOIDS
        }:
            self.names.pop()  # part of this activation, like the tanh in GELU
            self.arrays.pop()
        self._activate(known[root], _activation(steps), output)
        return output

    def _activate(self, value: Any, kind: str, output: Any) -> None:
        self._arrive(value)
        # Excludes what a norm does to its statistics or a layer to its weights.
        if output.ndim == self.arrays[-1][0].ndim and output.shape == value.shape:
            self._add("", kind, output)

    def meet(self, number: int, value: Any) -> Any:
        """Record a layer's output or a named feature map as a stage, unless it is one already."""
        value = super().meet(number, value)
        name, work = self.marks.names[number], self._work
        if work is not None:
            self._settle(name, value)
        elif self._is_new(value):
            self._add(name, "pooling" if self._is_pooled(value) else "", value)
        else:
            self._rename(name, value)
        return value

    def end(self, value: Any) -> None:
        """Record the module's output."""
        self._arrive(value)
        if self._is_new(value) and value.size != self.arrays[-1][0].size:
            self._add("", "pooling" if self._is_pooled(value) else "", value)

    def _arrive(self, value: Any) -> None:
        """Record an unnamed value that is used next: a result of pending work or of pooling."""
        self._settle("", value)
        if self._is_new(value) and self._is_pooled(value):
            self._add("", "pooling", value)

    def _settle(self, name: str, value: Any) -> None:
        work, self._work = self._work, None
        if work is not None:
            value = value if value.shape == work.output.shape else work.output
            self._add(name, work.kind, value, work.weights, work.given)

    def _add(
        self, name: str, kind: str, value: Any, weights: Any = None, given: Any = None
    ) -> None:
        self.names.append((name, kind))
        self.arrays.append((value, weights, given))

    def _rename(self, name: str, value: Any) -> None:
        """Name a stage that has no name yet, such as a named feature map that is an activation."""
        place = next(n for n, (known, _, _) in enumerate(self.arrays) if known is value)
        if not self.names[place][0] and place:
            self.names[place] = (name, self.names[place][1])

    def _is_new(self, value: Any) -> bool:
        return all(known is not value for known, _, _ in self.arrays)

    def _is_pooled(self, value: Any) -> bool:
        last = self.arrays[-1][0]
        return (
            last.ndim > 2
            and value.shape[-1] == last.shape[-1]
            and math.prod(value.shape) < math.prod(last.shape)
        )


def _activation(steps: Sequence[Any]) -> str:
    """The name of an activation: its own, or that of the only function it calls.

    GELU takes several equations.
    """
    eqn = steps[-1]
    while (
        "name" not in eqn.params
        and len(inner := [*jex.jaxprs_in_params(eqn.params)]) == 1
        and len(inner[0].eqns) == 1
    ):
        eqn = inner[0].eqns[0]
    name = eqn.params.get("name", eqn.primitive.name)
    named = {step.params["name"] for step in steps if "name" in step.params} | {
        name if len(steps) == 1 else "gelu"
    }
    return next(
        (ACTIVATIONS[known] for known in (name, *sorted(named)) if known in ACTIVATIONS),
        "activation",
    )


def _is_dense(eqn: Any) -> bool:
    """Whether this is a product with a weight matrix, not of two batches."""
    _, batch = eqn.params["dimension_numbers"]
    return not any(batch) and eqn.invars[1].aval.ndim == 2
