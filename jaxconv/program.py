"""Trace a Linen module without running it: the modules it calls and the feature maps it names.

Each comes with its output, its multiply-adds and what it sees of the image.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.extend.core as jex
from jax.ad_checkpoint import checkpoint_name

from jaxconv.layers.conv import plain
from jaxconv.layers.embed import Embed
from jaxconv.models.bridge import linen
from jaxconv.receptive import Seen, broadcasts, everything, image, seen_by

# Primitives that move values without computing anything.
_MOVES = (
    "reshape",
    "squeeze",
    "broadcast_in_dim",
    "transpose",
    "convert_element_type",
    "copy",
    "name",
    "stop_gradient",
    "jit",
)
# Names for operations in a module's own code, which no submodule and no feature map names.
_OPS = {
    "conv_general_dilated": "convolution",
    "dot_general": "matrix_product",
    "reduce_window_max": "max_pool",
    "reduce_window_sum": "average_pool",
    "reduce_window": "pool",
}
_BEGIN, _END = "\x01", "\x02"


@dataclasses.dataclass
class Call:
    """A call of a module, updated while the program is walked.

    Attributes:
      path: of the module.
      input: shape of its first input without the batch axis.
      is_block: whether it calls other modules.
      touched, worked: whether its own code has computed anything, and anything that is not
        elementwise, since its last event.
      looks_up: whether a matrix product in its own code stands for rows that are looked up, which
        multiplies nothing.
      multiply_adds: of its own code.
    """

    path: tuple[str, ...]
    input: tuple[int, ...] = ()
    looks_up: bool = False
    is_block: bool = False
    touched: bool = False
    worked: bool = False
    multiply_adds: int = 0


class Event(NamedTuple):
    """Something that may become a row of the table.

    Attributes:
      kind: an `op` in a module's own code, a `note` of a feature map, or the `end` of a call.
      call, name: the call it belongs to, and the name of the op or feature map.
      output, seen: shape and dtype of the output, and what it sees of the image.
      touched, worked: whether the call has computed anything, and anything that is not elementwise,
        since its last event.
      multiply_adds: of an op, or of a call that calls no other module.
    """

    kind: str
    call: Call
    name: str
    output: Any
    seen: Seen | None
    touched: bool
    worked: bool
    multiply_adds: int


class Tracer:
    """Marks module calls and named feature maps in a program, and reads the marks as events.

    A mark is a `checkpoint_name`, an identity that carries a name. Marks of calls start with a
    character that no name contains; `Network.note` makes the others.
    """

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []
        self._calls: dict[str, Call] = {}
        # Calls that return no array have no end mark; their work counts as their caller's.
        self._endless: set[str] = set()
        self.root = Call(())
        self._open = [self.root]
        self.events: list[Event] = []
        self._times = 1

    def intercept(self, next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Mark the input and output of a module's call; for `nn.intercept_methods`."""
        if context.method_name != "__call__" or not context.module.path:
            return next_fun(*args, **kwargs)
        number = len(self._modules)
        self._modules.append(context.module)
        args, kwargs = _mark((args, kwargs), f"{_BEGIN}{number}")
        output = next_fun(*args, **kwargs)
        if not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(output)):
            self._endless.add(f"{_BEGIN}{number}")
        return _mark(output, f"{_END}{number}")

    def walk(self, jaxpr: Any, seen: Sequence[Seen | None]) -> list[Seen | None]:
        """Process the equations in order and return what the outputs see."""
        known = dict(zip(jaxpr.invars, seen, strict=True))

        def look_up(var: Any) -> Seen | None:
            return None if isinstance(var, jex.Literal) else known.get(var)

        for eqn in jaxpr.eqns:
            operands = [look_up(var) for var in eqn.invars]
            known.update(zip(eqn.outvars, self._step(eqn, operands), strict=True))
        return [look_up(var) for var in jaxpr.outvars]

    def _step(self, eqn: Any, operands: list[Seen | None]) -> list[Seen | None]:
        name = eqn.primitive.name
        if name == "name":
            self.read_mark(eqn.params["name"], eqn.outvars[0].aval, operands[0])
            return operands
        inner: list[Any] = list(jex.jaxprs_in_params(eqn.params))
        if name == "cond":  # the last branch: the true one, or the one for all platforms
            inner, operands = inner[-1:], operands[1:]
        if inner and name not in ("scan", "while") and len(inner[0].invars) == len(operands):
            return self.walk(inner[0], operands)
        if inner and name in ("scan", "while"):
            # All that is known of a carry is what it depends on. The number of iterations of a
            # `while` is unknown: it counts once.
            body, length = inner[-1], eqn.params["length"] if name == "scan" else 1
            given = zip(body.invars, operands[-len(body.invars) :], strict=True)
            self._times *= length
            self.walk(
                body, [everything([seen], var.aval.ndim) if seen else None for var, seen in given]
            )
            self._times //= length
        self._note_work(eqn, operands, (out := seen_by(eqn, operands)))
        ranks = [len(getattr(var.aval, "shape", ())) for var in eqn.outvars]
        # The outputs of a loop may differ in rank.
        return [everything([out], rank) if out and len(out.axes) != rank else out for rank in ranks]

    def _note_work(self, eqn: Any, operands: list[Seen | None], seen: Seen | None) -> None:
        name, call, output = eqn.primitive.name, self._open[-1], eqn.outvars[0].aval
        if name in _MOVES or seen is None:
            return
        elementwise = all(
            broadcasts(var.aval.shape, output.shape) for var in eqn.invars
        ) and not name.startswith("reduce_window")
        call.touched = True
        call.worked |= not elementwise
        before = next(seen for seen in operands if seen is not None)
        pooled = name.startswith("reduce_") and any(before.axes) and not any(seen.axes)
        multiply_adds = 0 if call.looks_up else _multiply_adds(eqn) * self._times
        call.multiply_adds += multiply_adds
        if pooled or multiply_adds or (name in _OPS and seen.extents != before.extents):
            self.events.append(
                Event(
                    "op",
                    call,
                    _OPS.get(name, "global_pool"),
                    output,
                    seen,
                    True,
                    True,
                    multiply_adds,
                )
            )

    def read_mark(self, mark: str, aval: Any, seen: Seen | None) -> None:
        """Process a mark."""
        call = self._open[-1]
        if mark[0] == _BEGIN:
            if mark not in self._calls and mark not in self._endless:
                call.is_block = True
                module = self._modules[int(mark[1:])]
                self._calls[mark] = Call(module.path, aval.shape[1:], isinstance(module, Embed))
                self._open.append(self._calls[mark])
        elif mark[0] == _END:
            ended = self._calls.get(_BEGIN + mark[1:])
            if call is ended:  # once, for all its outputs
                self._open.pop()
                self._open[-1].touched = self._open[-1].worked = False
                self.end(call, aval, seen)
        else:
            self.events.append(Event("note", call, mark, aval, seen, call.touched, call.worked, 0))
            call.touched = call.worked = False

    def end(self, call: Call, aval: Any, seen: Seen | None) -> None:
        """Record the end of a call and its output."""
        multiply_adds = 0 if call.is_block else call.multiply_adds
        self.events.append(
            Event("end", call, "", aval, seen, call.touched, call.worked, multiply_adds)
        )


def _mark(tree: Any, name: str) -> Any:
    return jax.tree.map(
        lambda leaf: checkpoint_name(leaf, name) if isinstance(leaf, jax.Array) else leaf, tree
    )


def _multiply_adds(eqn: Any) -> int:
    """Multiply-adds of a convolution or matrix product for its whole batch; 0 for all else."""
    output = eqn.outvars[0].aval
    if eqn.primitive.name == "conv_general_dilated":
        kernel = eqn.invars[1].aval
        return output.size * (
            kernel.size // kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
        )
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return output.size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    return 0


def call_arguments(module: nn.Module, train: bool, given: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a module's call.

    Sets `train`, `training` and `deterministic` if the module takes them; `given` overrides them.

    Raises:
      TypeError: it is a module of NNX.
    """
    takes = inspect.signature(type(linen(module)).__call__).parameters
    modes = {"train": train, "training": train, "deterministic": not train}
    return {name: value for name, value in modes.items() if name in takes} | given


def trace(module: nn.Module, variables: Any, x: jax.ShapeDtypeStruct, **call: Any) -> Tracer:
    """Trace `module.apply(variables, x, **call)` on shapes; the returned tracer has the events."""
    tracer = Tracer()
    with plain(), nn.intercept_methods(tracer.intercept):
        program = jax.make_jaxpr(partial(module.apply, **call))(variables, x).jaxpr
    seen = tracer.walk(program, [None] * (len(program.invars) - 1) + [image(x.shape)])
    tracer.end(tracer.root, program.outvars[0].aval, seen[0])
    return tracer


def own_parameters(variables: Any, path: Sequence[str]) -> dict[str, Any]:
    """The parameters of the module at `path` by name, without those of its submodules."""
    own = variables.get("params", {})
    for name in path:
        own = own.get(name, {})
    return {name: leaf for name, leaf in own.items() if not isinstance(leaf, dict)}


def kept_for_gradient(
    apply: Callable[..., Any], variables: Any, x: jax.ShapeDtypeStruct, **call: Any
) -> int:
    """Bytes that `apply` keeps from the forward to the backward pass, before XLA fuses any away."""
    params = variables.get("params", {})
    state = {name: tree for name, tree in variables.items() if name != "params"}

    def kept(params: Any, state: Any, x: jax.Array, key: jax.Array) -> list[jax.Array]:
        def outputs(params: Any) -> tuple[Any, Any]:
            return apply(
                {"params": params, **state}, x, rngs={"dropout": key}, mutable=[*state], **call
            )

        _, backward, _ = jax.vjp(outputs, params, has_aux=True)
        return jax.tree.leaves(backward)

    with plain():
        program = jax.make_jaxpr(kept)(params, state, x, jax.random.key(0)).jaxpr
    outputs = {var for var in program.outvars if not isinstance(var, jex.Literal)} - set(
        program.invars
    )
    return sum(var.aval.size * var.aval.dtype.itemsize for var in outputs)
