"""The table that explains a network before it runs, as the lecture draws it by hand for VGG-16:

    INPUT:    [224x224x3]   memory: 224*224*3=150K    params: 0
    CONV3-64: [224x224x64]  memory: 224*224*64=3.2M   params: (3*3*3)*64 = 1,728
    ...

The network is traced on shapes: no weights are allocated and nothing is computed. The rows are the
modules that it calls, in call order, and the feature maps that it names. Multiply-adds of every
convolution and matrix product, and receptive fields (see receptive.py), are read from the traced
program, so they are right for any Linen module. An embedding looks rows up and has none.
"""

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxconv.compiling import compiler_options
from jaxconv.errors import UserError, human_bytes
from jaxconv.feature_maps import FeatureMap, noted
from jaxconv.models.bridge import unwrapped
from jaxconv.notebook import html_table
from jaxconv.program import Call, Event, call_arguments, kept_for_gradient, own_parameters, trace
from jaxconv.receptive import image
from jaxconv.train.state import create_state
from jaxconv.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer, for one image.

    Attributes:
      name: the module's path, or the name of its feature map.
      volume: shape of the output without the batch axis, such as (55, 55, 96).
      values: activations that it adds; 0 for layers that need no memory of their own, such as ReLU
        and dropout.
      bytes: of those values.
      weights, biases: its own parameters.
      multiply_adds: the lecture's "connections".
      dense_multiply_adds: what a fully connected layer between the same two volumes would need; 0
        if there are no multiply-adds.
      field, stride: receptive field in pixels (infinite if unbounded) and pixels between
        neighbouring values (0 if there is only one), for each axis of the image; empty if the
        output does not depend on it.
    """

    name: str
    volume: tuple[int, ...]
    values: int
    bytes: int
    weights: int = 0
    biases: int = 0
    multiply_adds: int = 0
    dense_multiply_adds: int = 0
    field: tuple[float, ...] = ()
    stride: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, repr=False)
class Summary:
    """A network's table; `str` shows it as text, `markdown()` as Markdown.

    Attributes:
      title: the network and its input.
      rows: the first is the input.
      blocks: modules that call others, by path, as one row each.
      parameters, statistics: numbers of learned values and of running means and variances.
      batch: images in the training step that `training` and `compiled` describe.
      training: bytes by purpose: parameters, gradients, optimizer state, statistics, activations
        that the gradient needs.
      features: the feature maps that the network names, see `jaxconv.features`.
      compiled: XLA's figures for the compiled training step, if requested: bytes, and the compile
        time in seconds.
    """

    title: str
    rows: tuple[Row, ...]
    blocks: dict[str, Row]
    parameters: int
    statistics: int
    batch: int
    training: dict[str, int]
    features: dict[str, FeatureMap]
    compiled: dict[str, float] | None = None

    def total(self, column: str) -> int:
        """Sum of one column of numbers, such as `multiply_adds`."""
        return sum(getattr(row, column) for row in self.rows)

    def at_depth(self, depth: int) -> "Summary":
        """The same table with the modules below `depth` added up; 0 keeps all rows.

        Depth 1 gives one row for each inception module, for example.
        """
        if not depth:
            return self
        groups: dict[str, list[Row]] = collections.defaultdict(list)
        for row in self.rows:
            groups["/".join(row.name.split("/")[:depth])].append(row)
        return dataclasses.replace(
            self,
            rows=tuple(_merged(name, rows, self.blocks.get(name)) for name, rows in groups.items()),
        )

    def table(self) -> list[tuple[str, ...]]:
        """Header, rows and totals as strings."""
        header = (
            "layer",
            "output",
            "memory",
            "weights",
            "biases",
            "multiply-adds",
            "if fully connected",
            "field",
            "stride",
        )
        body = [
            (
                row.name,
                _by(row.volume),
                human_bytes(row.bytes) if row.bytes else "-",
                *(f"{n:,}" if n else "-" for n in (row.weights, row.biases, row.multiply_adds)),
                f"{row.dense_multiply_adds:.2e}" if row.dense_multiply_adds else "-",
                _sizes(row.field),
                _sizes(row.stride),
            )
            for row in self.rows
        ]
        sums = [f"{self.total(column):,}" for column in ("weights", "biases", "multiply_adds")]
        return [header, *body, ("total", "", human_bytes(self.total("bytes")), *sums, "", "", "")]

    def notes(self) -> list[str]:
        """The lines below the table: totals, and the memory of a training step."""
        total, elsewhere = (
            sum(self.training.values()),
            self.parameters - self.total("weights") - self.total("biases"),
        )
        lines = [
            f"{self.parameters:,} parameters"
            + (f", {elsewhere:,} of them in parts used only in training" if elsewhere else "")
            + (f", and {self.statistics:,} running statistics" if self.statistics else ""),
            f"forward pass of one image: {self.total('values'):,} activations, "
            f"{human_bytes(self.total('bytes'))}, "
            f"and {self.total('multiply_adds'):,} multiply-adds",
            f"training step on a batch of {self.batch}: "
            + ", ".join(
                f"{what} {human_bytes(size)}" for what, size in self.training.items() if size
            )
            + f"; {human_bytes(total)} in total",
        ]
        if self.compiled:
            sizes = ", ".join(
                f"{what} {human_bytes(size)}"
                for what, size in self.compiled.items()
                if what != "seconds"
            )
            lines.append(
                f"XLA's figures for the compiled step: {sizes} (compiled in "
                f"{self.compiled['seconds']:.1f} s)"
            )
        return lines

    def markdown(self) -> str:
        """The table in Markdown, with its notes below."""
        header, *body = self.table()
        rule = ("---", "---", *["---:"] * (len(header) - 2))
        lines = ["| " + " | ".join(cells) + " |" for cells in (header, rule, *body)]
        return "\n".join([f"**{self.title}**", "", *lines, "", *self.notes()])

    def __repr__(self) -> str:
        return f"<Summary of {self.title}: {self.parameters:,} parameters; print() shows the table>"

    def _repr_html_(self) -> str:
        return html_table(self.title, self.table(), self.notes(), texts=2)

    def __str__(self) -> str:
        table = self.table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                [
                    f"{cells[0]:<{widths[0]}}",
                    f"{cells[1]:<{widths[1]}}",
                    *(f"{c:>{w}}" for c, w in zip(cells[2:], widths[2:], strict=True)),
                ]
            )
            for cells in table
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join(
            [
                self.title,
                "",
                lines[0],
                rule,
                *lines[1:-1],
                rule,
                lines[-1].rstrip(),
                "",
                *self.notes(),
            ]
        )


def summarize(
    module: nn.Module,
    input_shape: Sequence[int],
    batch: int = 1,
    dtype: Any = jnp.float32,
    optimizer: optax.GradientTransformation | None = None,
    compile_step: bool = False,
    **call: Any,
) -> Summary:
    """Summarize any Linen module without allocating anything.

    Args:
      module: called as `module(x)`, with `train=False` or `deterministic=True` if it takes them;
        one of `flax.nnx.bridge.ToNNX` is as good.
      input_shape: of one example, such as (224, 224, 3).
      batch: examples in the training step whose memory is estimated.
      dtype: of the input.
      optimizer: for the memory of its state; by default SGD with momentum.
      compile_step: compile a training step too and add XLA's own figures; for modules that return
        logits [N, K].
      **call: more keyword arguments for the module's call.

    Raises:
      ValueError, TypeError: the module cannot take such an input; the message is its own.

    >>> import jaxconv
    >>> summarize(jaxconv.create_model("resnet50", 1000), (224, 224, 3)).parameters
    25557032
    """
    module, x = unwrapped(module), jax.ShapeDtypeStruct((1, *input_shape), dtype)
    evaluating, training = call_arguments(module, False, call), call_arguments(module, True, call)
    variables = dict(
        jax.eval_shape(lambda key, x: module.init(key, x, **evaluating), jax.random.key(0), x)
    )
    params, state = (
        variables.get("params", {}),
        {name: tree for name, tree in variables.items() if name != "params"},
    )
    tracer = trace(module, variables, x, **evaluating)
    rows, blocks = _rows(tracer.events, tracer.root, variables)
    first = _row("input", Event("note", tracer.root, "input", x, image(x.shape), True, True, 0), ())
    optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
    sizes = {
        "parameters": _bytes(params),
        "gradients": _bytes(params),
        "optimizer state": _bytes(jax.eval_shape(optimizer.init, params)),
        "statistics": _bytes(state),
        "activations": kept_for_gradient(
            module.apply, variables, jax.ShapeDtypeStruct((batch, *input_shape), dtype), **training
        ),
    }
    return Summary(
        title=f"{type(module).__name__} on {_by(input_shape)}, {jnp.dtype(dtype).name}",
        rows=(first, *rows),
        blocks=blocks,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        statistics=sum(leaf.size for leaf in jax.tree.leaves(state)),
        batch=batch,
        training=sizes,
        features=noted(tracer),
        compiled=_compile(module, optimizer, (batch, *input_shape), dtype)
        if compile_step
        else None,
    )


def _rows(events: Sequence[Event], root: Call, variables: Any) -> tuple[list[Row], dict[str, Row]]:
    """Make rows from events; returns them and the blocks (modules that call others) by path.

    The module itself has a row, named `module`, only if it is a layer or has parameters of its own.
    """
    rows: list[Row] = []
    blocks: dict[str, Row] = {}
    modules = {event.call.path for event in events if event.kind == "end"}
    counted: set[tuple[str, ...]] = set()
    for event, after in zip(events, [*events[1:], events[-1]], strict=True):
        call, path = (
            event.call,
            "/".join((*event.call.path, event.name) if event.name else event.call.path),
        )
        if event.kind == "op":
            noted = after.kind == "note" and after.call is call and not event.multiply_adds
            # A layer's row includes its own ops, and a feature map that is named right after a
            # pooling is the row of the pooling.
            if not call.is_block or noted:
                continue
            rows.append(_row(path, event, call.input))
        elif event.kind == "note":
            # A module's row already covers its own map, and a second name for a map adds no
            # row.
            if (*call.path, event.name) not in modules and event.touched:
                rows.append(_row(path, event, ()))
        else:
            weights, biases = (
                (0, 0) if call.path in counted else _weights_and_biases(variables, call.path)
            )
            counted.add(call.path)
            if call is root and call.is_block and not weights + biases:
                continue
            row = _row(
                path or "module",
                event._replace(worked=event.worked or weights + biases > 0),
                call.input,
                weights,
                biases,
            )
            if call.is_block and call is not root:
                blocks[path] = dataclasses.replace(
                    row, dense_multiply_adds=math.prod(call.input) * math.prod(row.volume)
                )
            if not call.is_block or row.values:
                rows.append(row)
    return rows, blocks


def _row(
    name: str, event: Event, volume_before: tuple[int, ...], weights: int = 0, biases: int = 0
) -> Row:
    volume = event.output.shape[1:]
    values = math.prod(volume) if event.worked else 0
    dense = (
        math.prod(volume_before) * math.prod(volume) if event.multiply_adds and volume_before else 0
    )
    field, stride = (event.seen.field(), event.seen.stride()) if event.seen else ((), ())
    return Row(
        name,
        volume,
        values,
        values * event.output.dtype.itemsize,
        weights,
        biases,
        event.multiply_adds,
        dense,
        field,
        stride,
    )


def _weights_and_biases(variables: Any, path: tuple[str, ...]) -> tuple[int, int]:
    own = {name: leaf.size for name, leaf in own_parameters(variables, path).items()}
    biases = own.pop("bias", 0)
    return sum(own.values()), biases


def _merged(name: str, rows: Sequence[Row], block: Row | None) -> Row:
    """Rows of one block added up; volume, field and stride are the block's."""
    last = block or rows[-1]
    sums = {
        column: sum(getattr(row, column) for row in rows)
        for column in ("values", "bytes", "weights", "biases", "multiply_adds")
    }
    return dataclasses.replace(last, name=name, **sums)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _compile(
    module: nn.Module, optimizer: optax.GradientTransformation, shape: tuple[int, ...], dtype: Any
) -> dict[str, float]:
    """XLA's figures for one training step of a batch."""
    images, labels = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    key = jax.random.key(0)
    state = jax.eval_shape(
        functools.partial(create_state, module, optimizer),
        key,
        jax.ShapeDtypeStruct((1, *shape[1:]), dtype),
    )
    step = make_train_step(module, optimizer)
    jitted = jax.jit(step, donate_argnums=0, compiler_options=compiler_options())
    lowered = jitted.lower(state, {"image": images, "label": labels}, key)
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds, memory = time.perf_counter() - began, compiled.memory_analysis()
    if memory is None:
        raise UserError(
            "XLA does not say here how much memory a program takes; leave --compile out"
        )
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    return {**sizes, "seconds": seconds}


def _by(volume: Sequence[int]) -> str:
    return "x".join(map(str, volume))


def _sizes(sizes: Sequence[float]) -> str:
    """Format sizes: one number if all axes agree, `all` for infinite ones, `-` for 0 or none."""
    shown = ["all" if size == math.inf else "-" if not size else f"{size:g}" for size in sizes]
    return (shown[0] if len(set(shown)) == 1 else "x".join(shown)) if shown else "-"
