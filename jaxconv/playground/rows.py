"""Which stages of a network get a row on the page, and the text of each row."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.data.interface import evenly
from jaxconv.inspect.stages import ACTIVATIONS, Stage
from jaxconv.program import own_parameters

# The most rows of a page: an answer to a stroke must be sent and painted within a few frames.
MOST = 18


@dataclasses.dataclass(frozen=True)
class MapRow:
    """A stage that can be shown.

    Attributes:
      name: of the layer, or of its operation if it has no name.
      what: a description for the page.
      value: [h, w, k]; neurons are maps of one pixel.
      kind: as in `inspect.stages.Stage`, or `norm`.
      depth: nesting of its layer: 0 for a layer of the network, 1 for one inside a block.
    """

    name: str
    what: str
    value: jax.Array
    kind: str
    depth: int


def rows_of(stages: Sequence[Stage], variables: Any, votes: Any) -> list[MapRow]:
    """The rows of all stages [1, h, w, k] or [1, k] except the input and the votes [1, K].

    The page shows those two elsewhere. A detector's outputs are several arrays, and no votes.
    """
    rows, after = [], ""
    last = stages[-1].value
    for stage in stages[1:-1] if last.shape == getattr(votes, "shape", None) else stages[1:]:
        after = stage.name or after
        if stage.value.ndim not in (2, 4) or stage.value.shape[0] != 1:
            continue
        # Repeated calls of a layer, and one of several outputs, append these signs to its path.
        path = stage.name.split("#")[0].split("[")[0].split("/")
        kind = stage.kind or ("norm" if own_parameters(variables, path) else "")
        value = jnp.asarray(
            stage.value[0] if stage.value.ndim == 4 else stage.value.reshape(1, 1, -1)
        )
        rows.append(
            MapRow(
                stage.name or kind,
                _what(kind, stage.name, after, stage.value.ndim),
                value,
                kind,
                after.count("/"),
            )
        )
    return rows


def _what(kind: str, name: str, after: str, ndim: int) -> str:
    if kind in ACTIVATIONS.values():
        if kind == "ReLU":
            return "ReLU: negative values become 0" if name else f"max(0, {after or 'x'})"
        return kind if name else f"of {after}"
    named = {
        "convolution": "filter responses",
        "fully connected": "neurons, fully connected",
        "norm": "normalised",
    }
    pooled = "pooled stack" if ndim == 4 else "each map pooled to one value"
    return (
        pooled if kind == "pooling" else named.get(kind, "feature maps" if ndim == 4 else "neurons")
    )


def chosen(rows: Sequence[MapRow], most: int = MOST) -> list[MapRow]:
    """Choose at most `most` rows, in their order.

    Norms are dropped first, then what is inside blocks, innermost first. If that leaves too many
    or would leave too few, whole groups are dropped: a convolution keeps its activation and its
    pooling. The first and the last group always stay.
    """
    if len(rows) <= most:
        return list(rows)
    kept = [row for row in rows if row.kind != "norm"]
    while len(kept) > most:
        innermost = max(row.depth for row in kept)
        outer = [row for row in kept if row.depth < innermost]
        if len(outer) < most / 2:
            break
        kept = outer
    groups = _groups(kept)
    count = len(groups)
    while count > 1 and sum(len(groups[place]) for place in evenly(len(groups), count)) > most:
        count -= 1
    return [row for place in evenly(len(groups), count) for row in groups[place]]


def _groups(rows: Sequence[MapRow]) -> list[list[MapRow]]:
    """Group rows: a layer with weights starts a group, as does a kind the group already has."""
    groups: list[list[MapRow]] = []
    for row in rows:
        if (
            not groups
            or row.kind in ("convolution", "fully connected")
            or row.kind in [other.kind for other in groups[-1]]
        ):
            groups.append([])
        groups[-1].append(row)
    return groups
