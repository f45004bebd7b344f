"""Sections of a run's page that need only its files: functions from the run to a section's parts.

A section that a run cannot have, such as the filters of a network without convolutions, raises
`LeftOutError`; the page lists it with the reason.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.config import default_config, flatten
from jaxconv.data.interface import Part, Source, evenly
from jaxconv.data.wordnet import readable
from jaxconv.drawing.parts import Chart, LeftOutError, Series, Table, Text
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import Evaluation, evaluate_run
from jaxconv.files import expand
from jaxconv.look import opened
from jaxconv.look.curves import panels
from jaxconv.look.opened import OpenedNetwork
from jaxconv.own import shown_name
from jaxconv.tasks import Task, open_task
from jaxconv.train.build import total_steps
from jaxconv.train.code import with_code
from jaxconv.train.other_data import Overrides
from jaxconv.train.workdir import (
    opened_config,
    read_json,
    read_metrics,
    saved_config,
    saved_data,
    stopped_early,
)


class Memo:
    """A cache of results by name, each recomputed only when its version changes."""

    def __init__(self) -> None:
        self._found: dict[Any, tuple[Any, Any]] = {}

    def once(self, name: Any, version: Any, make: Callable[[], Any]) -> Any:
        """Return `make()`, or its cached result for this version."""
        if name not in self._found or self._found[name][0] != version:
            self._found[name] = version, make()
        return self._found[name][1]


@dataclasses.dataclass(frozen=True)
class RunReport:
    """The current state of a run.

    Attributes:
      folder: its workdir.
      config: the full config that the run has saved.
      data: the contents of data.json.
      rows: the rows of metrics.jsonl.
      weights: whether the page may use the weights.
      source: the examples to evaluate on, if not those that the config names.
      examples: the most examples to look at; 0: all.
      checkpoint: step and write time of the newest checkpoint; empty without one.
      kept: cached results of a checkpoint, for the next page of the same run.
      overrides: `KEY=VALUE` each, for the data to evaluate on, see train/other_data.py.
    """

    folder: Path
    config: Any
    data: dict[str, Any]
    rows: Sequence[dict[str, float]]
    weights: bool = True
    source: Source | None = None
    examples: int = 0
    checkpoint: tuple[int, ...] = ()
    kept: Memo = dataclasses.field(default_factory=Memo)
    overrides: Overrides = ()

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """Return `make()`, or its cached result for the newest checkpoint."""
        return self.kept.once(name, self.checkpoint, make)

    @property
    def step(self) -> int:
        """The last step in metrics.jsonl; 0 before the first."""
        return max(self.rows[-1]["step"] if self.rows else 0, self.stopped.get("step", 0))

    @property
    def steps(self) -> int:
        """The number of steps of the whole training."""
        return total_steps(self.config, self.data["train_examples"])

    @property
    def finished(self) -> bool:
        """Whether the last step, or that of an early stop, is done and its checkpoint complete."""
        ended = self.step in (self.steps, self.stopped.get("step"))
        return ended and (self.folder / "checkpoints" / str(self.step)).is_dir()

    @functools.cached_property
    def stopped(self) -> dict[str, Any]:
        """`step` and `why` of an early stop; empty without one."""
        return stopped_early(self.folder)

    @property
    def evaluated(self) -> dict[str, float]:
        """The newest row with an evaluation; empty before the first."""
        return next((row for row in reversed(self.rows) if "eval/loss" in row), {})

    @functools.cached_property
    def task(self) -> Task:
        """What the run learns."""
        return open_task(with_code(self.folder, self.config), self.data)

    @functools.cached_property
    def model(self) -> Any:
        """The network, without weights."""
        return self.task.model()

    def elements(self, places: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
        """The elements [...] of evaluated examples, given their rows in the outcomes."""
        for place in places:
            yield self._example(place)["image"]

    def images(self, places: Sequence[int] | np.ndarray) -> list[Any]:
        """The same elements as a picture shows them."""
        return [self.looked.shown(element) for element in self.elements(places)]

    def predictions_drawn(self, most: int = 16) -> tuple[Any, int]:
        """A figure of at most `most` evaluated examples with their predictions, and their number.

        See `Task.draw`.
        """
        places = evenly(len(self.evaluation.outcomes), most)
        return self.drawn_at(places), len(places)

    def drawn_at(self, places: Sequence[int] | np.ndarray) -> Any:
        """A figure of evaluated examples with their predictions, given their rows."""
        return self.looked.predictions_figure([self._example(place) for place in places])

    def caption(self, place: int) -> str:
        """The caption of an evaluated example, given its row; ImageNet's ids get their words."""
        return readable(self.task.caption_of(self._example(place)).replace("\n", ", "))

    def _example(self, place: int) -> dict[str, Any]:
        return self.evaluation.source.read(int(self.evaluation.outcomes.index[place]))

    @property
    def looked(self) -> OpenedNetwork:
        """The network with the latest checkpoint's weights; the first network of an ensemble."""
        with self._weights():
            return self.once("looked", self._opened)

    def _opened(self) -> OpenedNetwork:
        return opened.open_run(self.folder, source=self.source, overrides=self.overrides)

    @property
    def evaluation(self) -> Evaluation:
        """The latest checkpoint's evaluation on the test set, or on at most `examples` of it."""
        with self._weights():
            return self.once("evaluation", self._evaluate)

    def _evaluate(self) -> Evaluation:
        source = self.source
        if self.examples:
            source = self.looked.source()
            source = Part(source, self.examples) if len(source) > self.examples else self.source
        return evaluate_run(str(self.folder), source=source, overrides=self.overrides)

    @contextlib.contextmanager
    def _weights(self) -> Iterator[None]:
        """Raise LeftOutError if the weights or the examples are unavailable."""
        if not self.weights:
            raise LeftOutError("the run has several processes; run jaxconv report to add this")
        if not self.checkpoint:
            raise LeftOutError("the run has no checkpoint yet")
        try:
            yield
        except UserError as error:
            raise LeftOutError(str(error)) from error


def read_run(workdir: str | Path, **settings: Any) -> RunReport:
    """Read the current state of the run in a workdir; see `RunReport` for the settings.

    Raises:
      UserError: there is no run, or its code may not be run.
    """
    folder = expand(str(workdir))
    newest = newest_checkpoint(folder)  # first, so that a later checkpoint counts as new
    config = saved_config(folder)
    # If its code may not be run, raise once and not per section.
    opened_config(folder, settings.get("overrides", ()))
    return RunReport(
        folder,
        config,
        saved_data(folder),
        read_metrics(folder),
        checkpoint=newest,
        **settings,
    )


def newest_checkpoint(folder: Path) -> tuple[int, ...]:
    """Step and write time of a run's newest checkpoint; empty if there is none."""
    step = max(
        (int(place.name) for place in (folder / "checkpoints").glob("*") if place.name.isdecimal()),
        default=-1,
    )
    return (step, (folder / "checkpoints" / str(step)).stat().st_mtime_ns) if step >= 0 else ()


def curves(run: RunReport) -> list[Any]:
    """Charts of all metrics in metrics.jsonl that are worth drawing."""
    if not run.rows:
        raise LeftOutError("the run has logged no numbers yet")
    charts, shown_panels = [], panels(type(run.task))
    for title, unit, lines in shown_panels:
        series = [s for key, label, look in lines for s in _lines(run.rows, key, label, look)]
        if series:
            charts.append(Chart(title, unit, "step", series))
    known = {key for _, _, lines in shown_panels for key, _, _ in lines}
    own = sorted(
        key
        for key in {key for row in run.rows for key in row} - known
        if re.fullmatch("eval/(?!ensemble_)[^/]+", key)
    )
    charts += [
        Chart(
            key.removeprefix("eval/"),
            "custom metric",
            "step",
            _lines(run.rows, key, "eval", "thick"),
        )
        for key in own
    ]
    return charts


def _lines(rows: Sequence[dict[str, float]], key: str, label: str, look: str) -> list[Series]:
    """The line of one key, preceded by the band of an ensemble's members."""
    found = [row for row in rows if key in row]
    if not found:
        return []
    number = {"train": 0, "eval": 1, "averaged": 2}.get(label, 0)
    steps, seconds = [row["step"] for row in found], seconds_of(found)
    each = [[value for name, value in row.items() if name.startswith(key + "/")] for row in found]
    edges = []
    if all(each):
        edges = [
            Series("", steps, [edge(values) for values in each], number, "edge", seconds)
            for edge in (max, min)
        ]
    return [*edges, Series(label, steps, [row[key] for row in found], number, look, seconds)]


def seconds_of(rows: Sequence[dict[str, float]]) -> list[float]:
    """The time of each row; empty if one of them has none, as in runs of older versions."""
    found = [row["seconds"] for row in rows if "seconds" in row]
    return found if len(found) == len(rows) else []


def network(run: RunReport) -> list[Any]:
    """The table of `jaxconv summary`."""
    from jaxconv.summary import summarize

    summary = summarize(
        run.model, tuple(run.data["image_shape"]), run.config.batch_size, run.config.model.dtype
    )
    table = summary.table()
    shape = " x ".join(map(str, run.data["image_shape"]))
    caption = f"{shown_name(run.config.model.name)} on {shape}, {run.config.model.dtype}"
    return [
        Table(caption, table, texts=2, marked=frozenset({len(table) - 1})),
        *map(Text, summary.notes()),
    ]


def data(run: RunReport) -> list[Any]:
    """The data that the network learns from."""
    names, config = run.data["class_names"], run.config.data
    rows = [
        ("source", config.source),
        ("training examples", f"{run.data['train_examples']:,} ({config.train_split})"),
        ("evaluation examples", f"{run.data.get('eval_examples', 0):,} ({config.eval_split})"),
        ("each example", f"{run.data['kind']}, {' x '.join(map(str, run.data['image_shape']))}"),
    ]
    if names:
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        rows.append(("classes", f"{len(names):,}: {shown}"))
    else:
        targets = (f"{n} {list(t.shape) or ''} {t.dtype}" for n, t in run.task.targets.items())
        rows.append(("targets", ", ".join(targets)))
    return [Table("What the network learns from", [("what", "value"), *rows], texts=2)]


def config(run: RunReport) -> list[Any]:
    """The config, with the keys that differ from the default first."""
    defaults, given = flatten(default_config()), flatten(run.config)
    differing = [
        key for key, value in given.items() if key not in defaults or value != defaults[key]
    ]

    def row(key: str) -> tuple[str, str, str]:
        return key, _value(given[key]), _value(defaults[key]) if key in defaults else "-"

    header = ("key", "value", "default")
    whole = [row(key) for key in given]
    marked = frozenset(number for number, (key, *_) in enumerate(whole, 1) if key in differing)
    return [
        Table(
            f"Keys that differ from the default: {len(differing)} of {len(given)}",
            [header, *map(row, differing)],
            texts=3,
        ),
        Table("All keys", [header, *whole], texts=3, marked=marked, mark="differs", folded=True),
    ]


def _value(value: Any) -> str:
    return (
        (",".join(map(str, value)) or "()")
        if isinstance(value, tuple)
        else repr(value)
        if value == ""
        else str(value)
    )


def versions(run: RunReport) -> list[Any]:
    """Versions and devices of the run, with a column for each start."""
    entries = [
        entry for entry in read_json(run.folder / "versions.json", list) if isinstance(entry, dict)
    ]
    names = list(
        dict.fromkeys(
            name for entry in entries for name in entry if name not in ("config", "from_step")
        )
    )
    rows = [(name, *(str(entry.get(name, "-")) for entry in entries)) for name in names]
    marked = frozenset(
        number for number, (_, *values) in enumerate(rows, 1) if len(set(values)) > 1
    )
    header = ("what", *(f"from step {entry.get('from_step', 0):,}" for entry in entries))
    return [
        Table(
            "Versions and devices at each start",
            [header, *rows],
            texts=len(header),
            marked=marked,
            mark="differs",
        )
    ]
