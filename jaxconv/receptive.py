"""Receptive fields: what each value of a program sees of its input, read from the program itself.

A value at index i along an axis sees the pixels jump * i + low ... jump * i + high of one axis of
the image. Convolution, pooling, slicing and padding each map such a triple to another:

    window F, stride S,              jump * S, low - jump * P, high + jump * ((F - 1) * D - P)
      dilation D, padding P
    slice from B in steps of S       jump * S, low + jump * B, high + jump * B
    sum, mean or maximum over n      no jump,  low,            high + jump * (n - 1)
    sum of two values                the wider of both

These rules hold however a layer is written. `jump` is the stride of the feature map and
high - low + 1 its receptive field (Araujo et al. 2019, doi:10.23915/distill.00021), not clipped at
the image's edges.
"""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

EVERYWHERE = (-math.inf, math.inf)

# These keep the shape of their operand, but each value depends on all others along an axis.
_ALONG_AN_AXIS = (
    "cum",
    "sort",
    "fft",
    "cholesky",
    "triangular",
    "scatter",
    "dynamic_update",
    "while",
    "scan",
)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What an array sees of the image.

    Attributes:
      axes: for each axis of the array, (axis of the image, jump), or None if all indices see the
        same.
      extents: for each axis of the image that is seen, (low, high) in pixels for index 0;
        `EVERYWHERE` if every position sees the whole axis.
    """

    axes: tuple[tuple[int, Fraction] | None, ...]
    extents: dict[int, tuple[float, float]]

    def field(self) -> tuple[float, ...]:
        """The receptive field along each axis of the image in pixels; infinite if unbounded."""
        return tuple(
            math.floor(high) - math.ceil(low) + 1 if high < math.inf else math.inf
            for _, (low, high) in sorted(self.extents.items())
        )

    def stride(self) -> tuple[float, ...]:
        """Pixels between neighbouring values along each image axis; 0 if there is only one."""
        jumps = {entry[0]: entry[1] for entry in self.axes if entry}
        return tuple(_whole(abs(jumps.get(axis, Fraction(0)))) for axis in sorted(self.extents))


def image(shape: Sequence[int]) -> Seen:
    """The image itself, [N, *spatial, C]: each position sees itself."""
    ndim = len(shape) - 2
    return Seen(
        (None, *((axis, Fraction(1)) for axis in range(ndim)), None),
        dict.fromkeys(range(ndim), (0, 0)),
    )


def seen_by(eqn: Any, operands: Sequence[Seen | None]) -> Seen | None:
    """What the output of a jaxpr equation sees, given what its operands see.

    None means that a value does not depend on the image, such as a weight.
    """
    shapes = [getattr(var.aval, "shape", ()) for var in eqn.invars]
    seeing = [
        (seen, shape) for seen, shape in zip(operands, shapes, strict=True) if seen is not None
    ]
    if not seeing:
        return None
    out, name, params = eqn.outvars[0].aval.shape, eqn.primitive.name, eqn.params
    if name == "dot_general":
        return _dot(operands, shapes, params["dimension_numbers"], len(out))
    if len(seeing) == 1 and operands[0] is not None:
        seen, shape = seeing[0]
        rule = _RULES.get(name)
        if name.startswith("reduce_window"):
            rule = _reduce_window
        elif "axes" in params and len(out) == len(shape) - len(params["axes"]):
            rule = _reduce
        if rule is not None:
            return rule(seen, shapes, params, out)
    if name == "concatenate":
        axis = params["dimension"]
        return union([_collapse(seen, shape, [axis]) for seen, shape in seeing])
    if name == "pad" and len(seeing) == 2:  # the padding value depends on the image too
        return union(
            [
                _pad(seeing[0][0], shapes, params, out),
                Seen((None,) * len(out), seeing[1][0].extents),
            ]
        )
    if any(word in name for word in _ALONG_AN_AXIS) or not all(
        broadcasts(shape, out) for _, shape in seeing
    ):
        return everything([seen for seen, _ in seeing], len(out))
    return union([seen for seen, _ in seeing])


def broadcasts(shape: Sequence[int], out: Sequence[int]) -> bool:
    """Whether `shape` broadcasts to `out`: a scalar, or the same rank with equal sizes or 1."""
    return not shape or (
        len(shape) == len(out)
        and all(size in (1, whole) for size, whole in zip(shape, out, strict=True))
    )


def union(seeing: Sequence[Seen]) -> Seen:
    """What a value sees if it is computed from the same index of several arrays."""
    extents: dict[int, tuple[float, float]] = {}
    axes: list = [None] * max(len(seen.axes) for seen in seeing)
    for axis in sorted(set().union(*(seen.extents for seen in seeing))):
        those = [seen for seen in seeing if axis in seen.extents]
        maps = [_maps(seen, axis) for seen in those]
        best = max(maps, key=len)
        for position, jump in best.items():
            axes[position] = (axis, jump)
        lows, highs = zip(*(seen.extents[axis] for seen in those), strict=True)
        # If the arrays step differently, the union depends on the index: take everything.
        extents[axis] = (min(lows), max(highs)) if all(m == best for m in maps) else EVERYWHERE
    return Seen(tuple(axes), extents)


def everything(seeing: Sequence[Seen], ndim: int) -> Seen:
    """The conservative answer for an array that depends on `seeing` in an unknown way."""
    return Seen(
        (None,) * ndim, dict.fromkeys(set().union(*(seen.extents for seen in seeing)), EVERYWHERE)
    )


def _maps(seen: Seen, axis: int) -> dict[int, Fraction]:
    return {
        position: entry[1] for position, entry in enumerate(seen.axes) if entry and entry[0] == axis
    }


def _whole(jump: Fraction) -> float:
    return int(jump) if jump.denominator == 1 else float(jump)


def _collapse(seen: Seen, shape: Sequence[int], positions: Sequence[int]) -> Seen:
    """One value for all indices along these axes of the array."""
    axes, extents = list(seen.axes), dict(seen.extents)
    for position in positions:
        if entry := axes[position]:
            axis, jump = entry
            reach = jump * (shape[position] - 1)
            low, high = extents[axis]
            extents[axis] = (low + min(0, reach), high + max(0, reach))
            axes[position] = None
    return Seen(tuple(axes), extents)


def _window(
    seen: Seen,
    position: int,
    out: int,
    axes: list,
    extents: dict,
    stride: int,
    low: int,
    reach: int,
    spread: int = 1,
) -> None:
    """Slide a window along one axis.

    It starts `low` positions before the array and extends `reach` further; `spread` dilates the
    input.
    """
    if entry := seen.axes[position]:
        axis, jump = entry[0], entry[1] / spread
        before, after = extents[axis]
        extents[axis] = (before - jump * low, after + jump * (reach - low))
        axes[out] = (axis, jump * stride)


def _conv(seen: Seen, shapes: Sequence, params: dict, out: Sequence[int]) -> Seen:
    numbers = params["dimension_numbers"]
    (batch, channels, *spatial), (out_batch, _, *out_spatial) = numbers.lhs_spec, numbers.out_spec
    seen = _collapse(seen, shapes[0], [channels])
    axes: list = [None] * len(out)
    axes[out_batch], extents = seen.axes[batch], dict(seen.extents)
    for k, (position, out_position) in enumerate(zip(spatial, out_spatial, strict=True)):
        reach = (shapes[1][numbers.rhs_spec[2 + k]] - 1) * params["rhs_dilation"][k]
        stride, low = params["window_strides"][k], params["padding"][k][0]
        _window(
            seen,
            position,
            out_position,
            axes,
            extents,
            stride,
            low,
            reach,
            params["lhs_dilation"][k],
        )
    return Seen(tuple(axes), extents)


def _reduce_window(seen: Seen, shapes: Sequence, params: dict, out: Sequence[int]) -> Seen:
    axes, extents = list(seen.axes), dict(seen.extents)
    for position, size in enumerate(params["window_dimensions"]):
        stride, low = params["window_strides"][position], params["padding"][position][0]
        reach = (size - 1) * params["window_dilation"][position]
        _window(
            seen,
            position,
            position,
            axes,
            extents,
            stride,
            low,
            reach,
            params["base_dilation"][position],
        )
    return Seen(tuple(axes), extents)


def _reduce(seen: Seen, shapes: Sequence, params: dict, out: Sequence[int]) -> Seen:
    seen = _collapse(seen, shapes[0], params["axes"])
    return Seen(
        tuple(entry for position, entry in enumerate(seen.axes) if position not in params["axes"]),
        seen.extents,
    )


def _slice(seen: Seen, shapes: Sequence, params: dict, out: Sequence[int]) -> Seen:
    axes, extents = list(seen.axes), dict(seen.extents)
    for position, start in enumerate(params["start_indices"]):
        stride = params["strides"][position] if params["strides"] else 1
        _window(seen, position, position, axes, extents, stride, -start, 0)
    return Seen(tuple(axes), extents)


def _pad(seen: Seen, shapes: Sequence, params: dict, out: Sequence[int]) -> Seen:
    axes, extents = list(seen.axes), dict(seen.extents)
    for position, (low, _, interior) in enumerate(params["padding_config"]):
        _window(seen, position, position, axes, extents, 1, low, 0, interior + 1)
    return Seen(tuple(axes), extents)


def _transpose(seen: Seen, shapes: Sequence, params: dict, out: Sequence[int]) -> Seen:
    return Seen(tuple(seen.axes[position] for position in params["permutation"]), seen.extents)


def _reverse(seen: Seen, shapes: Sequence, params: dict, out: Sequence[int]) -> Seen:
    axes, extents = list(seen.axes), dict(seen.extents)
    for position in params["dimensions"]:
        if entry := axes[position]:
            low, high = extents[entry[0]]
            shift = entry[1] * (shapes[0][position] - 1)
            extents[entry[0]], axes[position] = (low + shift, high + shift), (entry[0], -entry[1])
    return Seen(tuple(axes), extents)


def _broadcast(seen: Seen, shapes: Sequence, params: dict, out: Sequence[int]) -> Seen:
    axes: list = [None] * len(out)
    for position, target in enumerate(params["broadcast_dimensions"]):
        if shapes[0][position] == out[target]:
            axes[target] = seen.axes[position]
    return Seen(tuple(axes), seen.extents)


def _dynamic_slice(seen: Seen, shapes: Sequence, params: dict, out: Sequence[int]) -> Seen:
    return _collapse(
        seen,
        shapes[0],
        [position for position, size in enumerate(out) if size != shapes[0][position]],
    )


def _split(seen: Seen, shapes: Sequence, params: dict, out: Sequence[int]) -> Seen:
    return _collapse(seen, shapes[0], [params["axis"]])


def _reshape(seen: Seen, shapes: Sequence, params: dict, out: Sequence[int]) -> Seen:
    """Merge and split runs of axes whose sizes have equal products, ignoring axes of length 1."""
    shape = shapes[0]
    old = [position for position, size in enumerate(shape) if size != 1]
    new = [position for position, size in enumerate(out) if size != 1]
    seen = _collapse(
        seen, shape, [position for position in range(len(shape)) if position not in old]
    )
    axes: list = [None] * len(out)
    while old and new:
        merged, split = [old.pop(0)], [new.pop(0)]
        while (have := math.prod(shape[p] for p in merged)) != (
            want := math.prod(out[p] for p in split)
        ):
            if have < want:
                merged.append(old.pop(0))
            else:
                split.append(new.pop(0))
        entries = [entry for p in merged if (entry := seen.axes[p])]
        # Merged axes step evenly if each step spans the whole next axis; then the axes that they
        # are split into step evenly too.
        even = len(entries) == len(merged) and all(
            left[0] == right[0] and left[1] == right[1] * shape[p]
            for left, right, p in zip(entries, entries[1:], merged[1:], strict=False)
        )
        if even:
            axis, jump = entries[-1]
            for position in reversed(split):
                axes[position] = (axis, jump)
                jump *= out[position]
        else:
            seen = _collapse(seen, shape, merged)
    return Seen(tuple(axes), seen.extents)


def _dot(operands: Sequence[Seen | None], shapes: Sequence, numbers: Any, ndim: int) -> Seen:
    (contracted, batch), parts = numbers, []
    free_before = 0
    for seen, shape, gone, kept in zip(operands, shapes, contracted, batch, strict=True):
        free = [position for position in range(len(shape)) if position not in (*gone, *kept)]
        if seen is not None:
            seen = _collapse(seen, shape, gone)
            axes: list = [None] * ndim
            for target, position in enumerate(kept):
                axes[target] = seen.axes[position]
            for target, position in enumerate(free, len(kept) + free_before):
                axes[target] = seen.axes[position]
            parts.append(Seen(tuple(axes), seen.extents))
        free_before += len(free)
    return union(parts)


_RULES = {
    "conv_general_dilated": _conv,
    "slice": _slice,
    "pad": _pad,
    "transpose": _transpose,
    "rev": _reverse,
    "broadcast_in_dim": _broadcast,
    "split": _split,
    "reshape": _reshape,
    "squeeze": _reshape,
    "dynamic_slice": _dynamic_slice,
}
