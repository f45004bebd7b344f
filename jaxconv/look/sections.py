"""The sections of a run's page: functions from the run to what stands below a heading; `SECTIONS` lists them.

What a run cannot have, such as filters of a network without convolutions, is left out and said: `LeftOutError`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxconv.config import default_config, flatten
from jaxconv.data.interface import Source
from jaxconv.look import page
from jaxconv.look.page import Chart, Figures, Series, Table, Text
from jaxconv.train.build import build_model, total_steps
from jaxconv.train.ensemble import members_of
from jaxconv.train.workdir import expand, read_json, read_metrics, saved_config, saved_data

# Panels of the curves: the title, its unit, and the lines, (key of metrics.jsonl, label, look).
PANELS = (
    ("Loss", "nats", (("train/loss", "train", "thin"), ("eval/loss", "eval", "thick"), ("eval/ensemble_loss", "averaged", "dashed"))),
    ("Accuracy", "share", (("train/top1", "train", "thin"), ("eval/top1", "eval", "thick"), ("eval/ensemble_top1", "averaged", "dashed"))),
    ("Learning rate", "a step", (("learning_rate", "learning rate", "thin"),)),
    ("Gradient", "norm", (("train/grad_norm", "gradient norm", "thin"),)),
    ("Speed", "images/s", (("images_per_second", "images/s", "thin"),)),
)


class LeftOutError(Exception):
    """A section has no meaning for this run; the message says why."""


@dataclasses.dataclass(frozen=True)
class Reported:
    """A run as it stands.

    Attributes:
      folder: its workdir.
      config: the whole config.
      data: what data.json says.
      rows: of metrics.jsonl.
      weights: whether what needs the weights is wanted.
      source: the examples to evaluate on, where they are not those that the config names.
    """

    folder: Path
    config: Any
    data: dict[str, Any]
    rows: Sequence[dict[str, float]]
    weights: bool = True
    source: Source | None = None

    @property
    def step(self) -> int:
        """Steps done, as far as metrics.jsonl tells."""
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return total_steps(self.config, self.data["train_examples"])

    @property
    def finished(self) -> bool:
        """Whether the last step is done and its checkpoint whole."""
        return self.step == self.steps and (self.folder / "checkpoints" / str(self.steps)).is_dir()

    @property
    def evaluated(self) -> dict[str, float]:
        """The newest row with an evaluation; empty before the first."""
        return next((row for row in reversed(self.rows) if "eval/loss" in row), {})

    @functools.cached_property
    def model(self) -> Any:
        """The network."""
        return build_model(self.config.model, len(self.data["class_names"]))


def open_run(workdir: str | Path, weights: bool = True, source: Source | None = None) -> Reported:
    """The run in a workdir as it stands; raises UserError where there is none."""
    folder = expand(str(workdir))
    return Reported(folder, saved_config(folder), saved_data(folder), read_metrics(folder), weights, source)


def result(run: Reported) -> list[Any]:
    """The newest evaluation."""
    row, members = run.evaluated, members_of(run.config)
    if not row:
        raise LeftOutError("the run was not evaluated yet")
    best = max((r["eval/top1"], -r["step"]) for r in run.rows if "eval/top1" in r)
    items = [
        ("top-1", f"{100 * row['eval/top1']:.2f} %", f"of {run.data.get('eval_examples', 0):,} examples of {run.config.data.eval_split}"),
        ("loss", f"{row['eval/loss']:.4f}", "nats"),
        ("best top-1", f"{100 * best[0]:.2f} %", f"at step {-best[1]:,}"),
        ("steps", f"{run.step:,}", f"of {run.steps:,}"),
    ]
    parts: list[Any] = [Figures(items)]
    if members:
        table = [("network", "top-1", "loss")]
        for number, name in enumerate(members.names):
            top1, loss = (row.get(f"eval/{what}/{number}") for what in ("top1", "loss"))
            table.append((name, "diverged" if top1 is None else f"{100 * top1:.2f} %", page.short_number(loss)))
        table.append(("averaged prediction", f"{100 * row['eval/ensemble_top1']:.2f} %", page.short_number(row["eval/ensemble_loss"])))
        parts.append(Table("The networks of the ensemble", table, marked=frozenset({len(table) - 1})))
    return parts


def curves(run: Reported) -> list[Any]:
    """Every number of metrics.jsonl that is worth a line."""
    if not run.rows:
        raise LeftOutError("the run has logged no number yet")
    charts = []
    for title, unit, lines in PANELS:
        series = [s for key, label, look in lines for s in _lines(run.rows, key, label, look)]
        if series:
            charts.append(Chart(title, unit, "step", series))
    known = {key for _, _, lines in PANELS for key, _, _ in lines}
    own = sorted({key for row in run.rows for key in row if key.startswith("eval/") and key.count("/") == 1} - known)
    charts += [Chart(key.removeprefix("eval/"), "own metric", "step", _lines(run.rows, key, "eval", "thick")) for key in own]
    return charts


def _lines(rows: Sequence[dict[str, float]], key: str, label: str, look: str) -> list[Series]:
    """The line of one key, after the band of an ensemble's members."""
    found = [row for row in rows if key in row]
    if not found:
        return []
    number = {"train": 0, "eval": 1, "averaged": 2}.get(label, 0)
    steps = [row["step"] for row in found]
    each = [[value for name, value in row.items() if name.startswith(key + "/")] for row in found]
    edges = []
    if all(each):
        edges = [Series("", steps, [edge(values) for values in each], number, "edge") for edge in (max, min)]
    return [*edges, Series(label, steps, [row[key] for row in found], number, look)]


def network(run: Reported) -> list[Any]:
    """The table of `jaxconv summary`."""
    from jaxconv.summary import summarize

    summary = summarize(run.model, tuple(run.data["image_shape"]), run.config.batch_size, run.config.model.dtype)
    table = summary.table()
    shape = " x ".join(map(str, run.data["image_shape"]))
    caption = f"{run.config.model.name} on {shape}, {run.config.model.dtype}"
    return [Table(caption, table, texts=2, marked=frozenset({len(table) - 1})), *map(Text, summary.notes())]


def data(run: Reported) -> list[Any]:
    """What the network learns from."""
    names, config = run.data["class_names"], run.config.data
    rows = [
        ("source", config.source),
        ("examples to train on", f"{run.data['train_examples']:,} ({config.train_split})"),
        ("examples to evaluate on", f"{run.data.get('eval_examples', 0):,} ({config.eval_split})"),
        ("an example", f"{run.data['kind']}, {' x '.join(map(str, run.data['image_shape']))}"),
        ("classes", f"{len(names):,}: " + ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")),
    ]
    return [Table("What the network learns from", [("what", "value"), *rows], texts=2)]


def config(run: Reported) -> list[Any]:
    """The config, what is not the default first."""
    defaults, given = flatten(default_config()), flatten(run.config)
    differing = [key for key, value in given.items() if key not in defaults or value != defaults[key]]

    def row(key: str) -> tuple[str, str, str]:
        return key, _value(given[key]), _value(defaults[key]) if key in defaults else "-"

    header = ("key", "value", "default")
    whole = [row(key) for key in given]
    marked = frozenset(number for number, (key, *_) in enumerate(whole, 1) if key in differing)
    return [
        Table(f"What differs from the default, {len(differing)} of {len(given)} keys", [header, *map(row, differing)], texts=3),
        Table("All keys", [header, *whole], texts=3, marked=marked, mark="differs", folded=True),
    ]


def _value(value: Any) -> str:
    return (",".join(map(str, value)) or "()") if isinstance(value, tuple) else repr(value) if value == "" else str(value)


def versions(run: Reported) -> list[Any]:
    """With what the run was made, a column for each start."""
    entries = [entry for entry in read_json(run.folder / "versions.json", list) if isinstance(entry, dict)]
    names = list(dict.fromkeys(name for entry in entries for name in entry if name not in ("config", "from_step")))
    rows = [(name, *(str(entry.get(name, "-")) for entry in entries)) for name in names]
    marked = frozenset(number for number, (_, *values) in enumerate(rows, 1) if len(set(values)) > 1)
    header = ("what", *(f"from step {entry.get('from_step', 0):,}" for entry in entries))
    return [Table("Versions and devices at each start", [header, *rows], texts=len(header), marked=marked, mark="differs")]


SECTIONS: tuple[tuple[str, Callable[[Reported], list[Any]]], ...] = (
    ("Result", result),
    ("Curves", curves),
    ("Network", network),
    ("Data", data),
    ("Config", config),
    ("Versions", versions),
)
