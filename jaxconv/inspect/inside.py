"""Access to the inside of any Linen module: read and replace layer outputs, change backward rules.

The module is traced with a mark at each named layer, and its program is evaluated equation by
equation. At a mark the value is recorded or replaced; rectifiers get the requested backward rule.
Everything is pure and works under `jit`, `grad` and `vmap`.

    logits, layers = apply(module, variables, images)
    logits, _ = apply(module, variables, images, replaced={"conv5": layers["conv5"] * 0})
"""

import collections
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxconv.errors import nearest
from jaxconv.inspect import backward
from jaxconv.layers.conv import plain
from jaxconv.models import Network
from jaxconv.program import Tracer, call_arguments
from jaxconv.receptive import Seen, image

# The first character of a mark; no feature map name starts with it.
_MARK = "\x03"


def activations(
    module: nn.Module, variables: Any, x: jax.Array | np.ndarray, **call: Any
) -> dict[str, jax.Array]:
    """The output of every named layer, in program order; see `apply` for the names.

    Under `jax.jit` the dict is sorted by name, because JAX sorts dicts.
    """
    return apply(module, variables, x, **call)[1]


def apply(
    module: nn.Module,
    variables: Any,
    x: jax.Array | np.ndarray,
    rule: str = "gradient",
    replaced: Mapping[str, jax.Array] | None = None,
    **call: Any,
) -> tuple[Any, dict[str, jax.Array]]:
    """`module.apply(variables, x, **call)` together with the outputs of the layers.

    A layer is named by the path of its module, such as `block1/conv1`; the second call of that
    module is `block1/conv1#2`, and one of several outputs is `block1/rnn[0]`. A feature map that a
    network notes keeps the name it is noted by, prefixed with the network's path if the network is
    part of another module. If a module has the same name, the feature map takes precedence. Layers
    inside `nn.scan`, `nn.vmap` and similar transforms are not named: their values would be those of
    one iteration, or have their axes in another order.

    Args:
      module: any Linen module; called with `train=False` if it takes `train`, and with
        `deterministic=True` if it takes `deterministic`.
      x: [N, ...].
      rule: the backward rule of rectifiers, one of `backward.RULES`.
      replaced: values that replace the outputs of layers, by name.
      **call: further keyword arguments for the module's call.

    Returns:
      The module's output, and the outputs of its layers.

    Raises:
      ValueError: the rule or layer does not exist; a replacement has another shape than the layer's
        output, or is for a layer inside `nn.scan`, `nn.vmap` or similar; or the rule is not
        `gradient` and the program has a rectifier inside a loop.
    """
    if rule not in backward.RULES:
        raise ValueError(
            f"no backward rule is called {rule!r}{nearest(rule, backward.RULES)}; the rules are "
            f"{', '.join(backward.RULES)}"
        )
    program, shapes, marks = _marked(module, variables, x, call)
    evaluation = Interpreter(rule, marks, replaced or {})
    outputs = evaluation.run(program, jax.tree.leaves((variables, x)))
    for name in replaced or {}:
        if name not in evaluation.layers:
            raise ValueError(
                f"{name} is inside nn.scan, nn.vmap or a similar transform, where its output "
                "cannot be replaced"
            )
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs), evaluation.layers


def seen(module: nn.Module, variables: Any, x: Any, **call: Any) -> dict[str, Seen]:
    """The receptive field of every named layer on the input [N, *spatial, C].

    Arrays may be given as shapes. A layer that does not depend on the input is omitted.
    """
    with plain():
        program, _, marks = _marked(module, variables, x, call)
    walk = _Walk(marks)
    walk.walk(program.jaxpr, [None] * (len(program.in_avals) - 1) + [image(x.shape)])
    return walk.layers


class Held:
    """A module as a static argument of `jax.jit`, compared by identity.

    It is hashable even if the module's fields are not.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __hash__(self) -> int:
        return id(self.module)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and other.module is self.module


def layer_of(layers: Mapping[str, Any], name: str) -> Any:
    """The layer of this name.

    Raises:
      ValueError: it does not exist; the message gives the nearest name.
    """
    if name not in layers:
        shown = [*layers][:12]
        raise ValueError(
            f"no layer is called {name!r}{nearest(name, layers)}; the layers are "
            f"{', '.join(shown)}{', ...' * (len(layers) > 12)}"
        )
    return layers[name]


def _marked(
    module: nn.Module, variables: Any, x: Any, call: dict[str, Any]
) -> tuple[Any, Any, "Marks"]:
    """The module's program with marks, the shapes of its outputs, and the marks."""
    marks = Marks()
    with nn.intercept_methods(marks.intercept):
        program, shapes = jax.make_jaxpr(
            partial(module.apply, **call_arguments(module, False, call)), return_shape=True
        )(variables, x)
    return program, shapes, marks


class Marks:
    """Marks the output of each named layer while a module is traced.

    The number of a mark is the index of its layer in `names`.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._shapes: list[tuple[int, ...]] = []
        self._calls: dict[str, int] = collections.Counter()
        self._open: list[tuple[str, ...]] = []

    def intercept(self, next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Mark the output of a call; passed to `nn.intercept_methods`."""
        path = context.module.path
        if context.method_name == "note" and isinstance(context.module, Network):
            name = kwargs["name"] if "name" in kwargs else args[0]
            return self._mark("/".join((*path, name)), next_fun(*args, **kwargs))
        # A nested call of the same module is its parent class's `__call__`.
        if context.method_name != "__call__" or not path or path in self._open:
            return next_fun(*args, **kwargs)
        self._open.append(path)
        output = next_fun(*args, **kwargs)
        self._open.pop()
        name = "/".join(path)
        self._calls[name] += 1
        return self._mark(f"{name}#{self._calls[name]}" if self._calls[name] > 1 else name, output)

    def number_of(self, mark: str, shape: Sequence[int]) -> int | None:
        """The number of a mark at a value of this shape, or None if the mark is not ours.

        Also None if the layer's output had another shape. This happens inside `nn.vmap`, where the
        order of the value's axes is unknown here.
        """
        number = int(mark.removeprefix(_MARK)) if mark.startswith(_MARK) else None
        return number if number is not None and self._shapes[number] == tuple(shape) else None

    def _mark(self, name: str, output: Any) -> Any:
        leaves, structure = jax.tree.flatten(output)
        several = len(leaves) > 1
        marked = []
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, jax.Array):
                leaf = checkpoint_name(leaf, f"{_MARK}{len(self.names)}")
                self.names.append(f"{name}[{number}]" if several else name)
                self._shapes.append(leaf.shape)
            marked.append(leaf)
        return jax.tree.unflatten(structure, marked)


class _Walk(Tracer):
    """Traces receptive fields through a marked program."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.layers: dict[str, Seen] = {}
        self._marks = marks

    def read_mark(self, mark: str, aval: Any, seen: Seen | None) -> None:
        """Record the receptive field of a layer."""
        number = self._marks.number_of(mark, aval.shape)
        if number is not None and seen is not None:
            self.layers[self._marks.names[number]] = seen


class Interpreter:
    """Evaluates a marked program once; a base class for other evaluations.

    `run` evaluates the program equation by equation: `rectify` evaluates rectifiers, and `step` all
    other equations. `step` calls `meet` with the value at a mark. `layers` holds the layer outputs
    found so far, in order.
    """

    def __init__(self, rule: str, marks: Marks, replaced: Mapping[str, jax.Array]) -> None:
        self.layers: dict[str, jax.Array] = {}
        self.marks = marks
        self._rule = rule
        self._replaced = {}
        names = marks.names
        for name, value in replaced.items():
            layer_of(dict.fromkeys(names), name)
            # `layers` holds the last value of a name.
            self._replaced[len(names) - 1 - names[::-1].index(name)] = value

    def run(self, program: Any, operands: Sequence[Any]) -> list[Any]:
        """Evaluate a closed jaxpr, and return its outputs."""
        jaxpr = program.jaxpr
        known = dict(
            zip((*jaxpr.constvars, *jaxpr.invars), (*program.consts, *operands), strict=True)
        )

        def read(var: Any) -> Any:
            return var.val if isinstance(var, jex.Literal) else known[var]

        rectifying = backward.rectifiers(jaxpr)
        for number, eqn in enumerate(jaxpr.eqns):
            if number in rectifying:
                root, steps = rectifying[number]
                outputs = [self.rectify(jaxpr, known, root, steps)]
            else:
                outputs = self.step(jaxpr, eqn, [read(var) for var in eqn.invars])
            known.update(zip(eqn.outvars, outputs, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def rectify(
        self, jaxpr: Any, known: Mapping[Any, Any], root: Any, steps: Sequence[Any]
    ) -> jax.Array:
        """Evaluate an activation: the equations `steps`, whose input variable is `root`.

        `known` holds the values of variables, including that of `root`.
        """

        def function(x: jax.Array) -> jax.Array:
            values = {**known, root: x}
            for eqn in steps:
                given = [
                    var.val if isinstance(var, jex.Literal) else values[var] for var in eqn.invars
                ]
                values.update(zip(eqn.outvars, _plainly(jaxpr, eqn, given), strict=True))
            return values[steps[-1].outvars[0]]

        x = known[root]
        y, slope = jax.jvp(function, (lax.stop_gradient(x),), (jnp.ones_like(x),))
        return backward.rectified(self._rule, x, y, slope)

    def step(self, jaxpr: Any, eqn: Any, operands: list[Any]) -> Sequence[Any]:
        """Evaluate one equation, and return its outputs."""
        name, inner = eqn.primitive.name, _programs(eqn)
        if (
            name == "name"
            and (number := self.marks.number_of(eqn.params["name"], operands[0].shape)) is not None
        ):
            return [self.meet(number, operands[0])]
        if (
            self._rule != "gradient"
            and name == "max"
            and all(jnp.ndim(operand) for operand in operands)
        ):
            return [backward.first_of_two(*operands)]
        if self._rule != "gradient" and name == "reduce_max":
            return [backward.first_along(operands[0], eqn.params["axes"])]
        pools = self._rule != "gradient" and name == "custom_jvp_call" and _only_maxima(inner[0])
        own = name in ("custom_jvp_call", "custom_vjp_call") and not pools
        if not inner or own or backward.opaque(eqn):
            return _plainly(jaxpr, eqn, operands)
        if (
            name == "cond"
            and self._rule != "gradient"
            and any(_rectifies(branch.jaxpr) for branch in inner)
        ):
            return lax.switch(
                operands[0], [partial(self.run, branch) for branch in inner], operands[1:]
            )
        if (
            len(inner) == 1
            and name not in ("scan", "while")
            and len(inner[0].jaxpr.invars) == len(operands)
        ):
            return self.run(inner[0], operands)
        if self._rule != "gradient" and any(_rectifies(program.jaxpr) for program in inner):
            raise ValueError(
                f"the backward rule {self._rule!r} cannot be applied to a rectifier inside a "
                f"{name!r} of the program"
            )
        return _plainly(jaxpr, eqn, operands)

    def meet(self, number: int, value: jax.Array) -> jax.Array:
        """Record the value at a mark, and return it or its replacement."""
        name = self.marks.names[number]
        if number in self._replaced:
            given = jnp.asarray(self._replaced[number])
            if given.shape != value.shape:
                raise ValueError(
                    f"{name} has shape {value.shape}; its replacement has shape {given.shape}"
                )
            value = given.astype(value.dtype)
        # A later value of the same name replaces the earlier one and moves to the end.
        self.layers.pop(name, None)
        self.layers[name] = value
        return value


def _plainly(jaxpr: Any, eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Evaluate one equation of a jaxpr unchanged."""
    given = [
        (var, value)
        for var, value in zip(eqn.invars, operands, strict=True)
        if not isinstance(var, jex.Literal)
    ]
    alone = jaxpr.replace(
        constvars=[], invars=[var for var, _ in given], outvars=list(eqn.outvars), eqns=[eqn]
    )
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, ()))(*(value for _, value in given))


def _programs(eqn: Any) -> list[Any]:
    """The closed jaxprs in an equation's parameters."""
    values = [
        value
        for given in eqn.params.values()
        for value in (given if isinstance(given, tuple) else (given,))
    ]
    found = [value for value in values if isinstance(value, (jex.Jaxpr, jex.ClosedJaxpr))]
    return [
        value if isinstance(value, jex.ClosedJaxpr) else jex.ClosedJaxpr(value, ())
        for value in found
    ]


def _only_maxima(program: Any) -> bool:
    """Whether a program only takes the maximum of arrays, as `max_pool` does of its views."""
    eqns = program.jaxpr.eqns
    return bool(eqns) and all(
        eqn.primitive.name == "max" and all(var.aval.shape for var in eqn.invars) for eqn in eqns
    )


def _rectifies(jaxpr: Any) -> bool:
    return bool(backward.rectifiers(jaxpr)) or any(
        _rectifies(inner.jaxpr) for eqn in jaxpr.eqns for inner in _programs(eqn)
    )
