"""What goes on inside any Linen module: its layers' outputs by name, the network from a layer on,
and other backward rules.

The module's program is traced, with a mark at each named layer, and evaluated equation by equation:
what a mark names is kept, or replaced, and what rectifies has the backward rule that is asked for.
All of it is pure, and goes under `jit`, `grad` and `vmap`.

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
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxconv.errors import nearest
from jaxconv.inspect import backward
from jaxconv.layers.conv import plain
from jaxconv.models import Network
from jaxconv.program import Tracer, call_arguments
from jaxconv.receptive import Seen, image

# Begins a mark; no name of a feature map does.
_MARK = "\x03"


def activations(
    module: nn.Module, variables: Any, x: jax.Array, **call: Any
) -> dict[str, jax.Array]:
    """The output of every named layer, in the order of the program; see `apply` for the names.

    Under `jax.jit` the dict comes back sorted by name, as JAX sorts every dict.
    """
    return apply(module, variables, x, **call)[1]


def apply(
    module: nn.Module,
    variables: Any,
    x: jax.Array,
    rule: str = "gradient",
    replaced: Mapping[str, jax.Array] | None = None,
    **call: Any,
) -> tuple[Any, dict[str, jax.Array]]:
    """`module.apply(variables, x, **call)`, looked into.

    A layer is named by the path of its module, such as `block1/conv1`, and `block1/conv1#2` for
    that module's second call; one output of several is `block1/rnn[0]`. A feature map that a
    network notes has the name it is noted by (after the network's own path, where the network is a
    part of another module), and takes that name from a module that has it too. Layers inside of
    `nn.scan`, `nn.vmap` and the like have no name here: theirs would be the value of one turn, or
    with its axes in another order.

    Args:
      module: any Linen module; `train=False` is given where it takes `train`, `deterministic=True`
        where it takes that.
      x: [N, ...].
      rule: how the backward signal passes what rectifies, one of `backward.RULES`.
      replaced: values that layers put out in place of their own.
      **call: further keyword arguments for the module's call.

    Returns:
      What the module returns, and the outputs of its layers.

    Raises:
      ValueError: no such rule or layer, a value of another shape than the layer's, one for a layer
        inside of `nn.scan`, `nn.vmap` and the like, or a rule other than `gradient` for a program
        that rectifies inside of a loop.
    """
    if rule not in backward.RULES:
        raise ValueError(
            f"no backward rule is called {rule!r}{nearest(rule, backward.RULES)}; there are "
            f"{', '.join(backward.RULES)}"
        )
    program, shapes, marks = _marked(module, variables, x, call)
    evaluation = Interpreter(rule, marks, replaced or {})
    outputs = evaluation.run(program, jax.tree.leaves((variables, x)))
    for name in replaced or {}:
        if name not in evaluation.layers:
            raise ValueError(
                f"{name} is inside of nn.scan, nn.vmap or the like, where no value can take its "
                "place"
            )
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs), evaluation.layers


def seen(module: nn.Module, variables: Any, x: Any, **call: Any) -> dict[str, Seen]:
    """What the values of every named layer see of the input [N, *spatial, C]; arrays may be shapes.
    A layer that sees none is left out.
    """
    with plain():
        program, _, marks = _marked(module, variables, x, call)
    walk = _Walk(marks)
    walk.walk(program.jaxpr, [None] * (len(program.in_avals) - 1) + [image(x.shape)])
    return walk.layers


class Held:
    """A module as a static argument of `jax.jit`, hashable whatever its fields are: the same object
    is compiled for once.
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
      ValueError: there is none; the message names the nearest.
    """
    if name not in layers:
        shown = [*layers][:12]
        raise ValueError(
            f"no layer is called {name!r}{nearest(name, layers)}; there are "
            f"{', '.join(shown)}{', ...' * (len(layers) > 12)}"
        )
    return layers[name]


def _marked(
    module: nn.Module, variables: Any, x: Any, call: dict[str, Any]
) -> tuple[Any, Any, "Marks"]:
    """The module's program with marks, the shapes of what it returns, and the marks."""
    marks = Marks()
    with nn.intercept_methods(marks.intercept):
        program, shapes = jax.make_jaxpr(
            partial(module.apply, **call_arguments(module, False, call)), return_shape=True
        )(variables, x)
    return program, shapes, marks


class Marks:
    """Marks the output of each named layer while a module is traced; a mark's number is its layer's
    place in `names`.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._shapes: list[tuple[int, ...]] = []
        self._calls: dict[str, int] = collections.Counter()
        self._open: list[tuple[str, ...]] = []

    def intercept(self, next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """For `nn.intercept_methods`."""
        path = context.module.path
        if context.method_name == "note" and isinstance(context.module, Network):
            name = kwargs["name"] if "name" in kwargs else args[0]
            return self._mark("/".join((*path, name)), next_fun(*args, **kwargs))
        # A call within a call of the same module is its parent class's.
        if context.method_name != "__call__" or not path or path in self._open:
            return next_fun(*args, **kwargs)
        self._open.append(path)
        output = next_fun(*args, **kwargs)
        self._open.pop()
        name = "/".join(path)
        self._calls[name] += 1
        return self._mark(f"{name}#{self._calls[name]}" if self._calls[name] > 1 else name, output)

    def number_of(self, mark: str, shape: Sequence[int]) -> int | None:
        """The number of the mark that a program has at a value of this shape, or None where it has
        none of ours.

        Inside of `nn.vmap` a layer put out another shape than the program's value has, whose axes
        are in an order that nobody knows here.
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
    """A walk over a marked program."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.layers: dict[str, Seen] = {}
        self._marks = marks

    def read_mark(self, mark: str, aval: Any, seen: Seen | None) -> None:
        """Keep what a layer sees."""
        number = self._marks.number_of(mark, aval.shape)
        if number is not None and seen is not None:
            self.layers[self._marks.names[number]] = seen


class Interpreter:
    """One evaluation of a marked program, for others to build on.

    `run` takes the program equation by equation: `rectify` does those that rectify, `step` all
    others, and each of them calls `meet` with the value at a mark. `layers` are the outputs that
    were met, in order.
    """

    def __init__(self, rule: str, marks: Marks, replaced: Mapping[str, jax.Array]) -> None:
        self.layers: dict[str, jax.Array] = {}
        self.marks = marks
        self._rule = rule
        self._replaced = {}
        names = marks.names
        for name, value in replaced.items():
            layer_of(dict.fromkeys(names), name)
            # The last of its name is the one that `layers` has.
            self._replaced[len(names) - 1 - names[::-1].index(name)] = value

    def run(self, program: Any, operands: Sequence[Any]) -> list[Any]:
        """The outputs of a closed jaxpr."""
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
        """The value of an activation: the equations from the variable that goes in, whose value is
        among the known ones.
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
        """The outputs of one equation."""
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
        if not inner or name in ("custom_jvp_call", "custom_vjp_call") or backward.opaque(eqn):
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
                f"the backward rule {self._rule!r} does not reach what rectifies inside of a "
                f"{name!r} of the program"
            )
        return _plainly(jaxpr, eqn, operands)

    def meet(self, number: int, value: jax.Array) -> jax.Array:
        """Keep the value at a mark, and return it or what is to be in its place."""
        name = self.marks.names[number]
        if number in self._replaced:
            given = jnp.asarray(self._replaced[number])
            if given.shape != value.shape:
                raise ValueError(
                    f"{name} is {value.shape}; the value to replace it is {given.shape}"
                )
            value = given.astype(value.dtype)
        # A second one of the same name takes the first one's place in the order too.
        self.layers.pop(name, None)
        self.layers[name] = value
        return value


def _plainly(jaxpr: Any, eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """One equation of a jaxpr as it is."""
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


def _rectifies(jaxpr: Any) -> bool:
    return bool(backward.rectifiers(jaxpr)) or any(
        _rectifies(inner.jaxpr) for eqn in jaxpr.eqns for inner in _programs(eqn)
    )
