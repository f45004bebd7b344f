"""`jaxconv report --workdir=RUN`: all that there is to see of a run, or of a sweep, as one page.

What stands on it is in sections.py, how it looks in page.py. What goes wrong in one section is said there, and the others stand.
"""

import datetime
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxconv.data.interface import Source
from jaxconv.errors import in_words
from jaxconv.look import network_sections, page, sections
from jaxconv.look.page import Chart, Section, Series, Table
from jaxconv.look.sections import LeftOutError, Reported, open_run
from jaxconv.results import run_table, seed_table
from jaxconv.train.workdir import expand, in_use, read_json, read_metrics

log = logging.getLogger(__name__)

Makers = Sequence[tuple[str, Callable[[Any], list[Any]]]]

SECTIONS: Makers = (
    ("Result", network_sections.result),
    ("Curves", sections.curves),
    ("Predictions", network_sections.predictions),
    ("Mistakes", network_sections.mistakes),
    ("Calibration", network_sections.calibration),
    ("Filters", network_sections.first_filters),
    ("Activations", network_sections.layers),
    ("Patches", network_sections.patches),
    ("Attribution", network_sections.attribution),
    ("Network", sections.network),
    ("Data", sections.data),
    ("Config", sections.config),
    ("Versions", sections.versions),
)
# Examples of the test set that are looked at, at most, unless more are asked for.
EXAMPLES = 10_000
# Seconds between two looks at a run that goes on.
_EVERY = 2.0


def report(workdir: str | Path, out: str | Path = "", weights: bool = True, source: Source | None = None, examples: int = EXAMPLES) -> Path:
    """Write the page of a run, or of a sweep, whole or not at all.

    Args:
      workdir: of the run, which may be going on, or of the sweep.
      out: the file; by default report.html in the workdir.
      weights: make the sections that need the network's weights too.
      source: the examples to evaluate on, where they are not those that the config names.
      examples: of them to look at, at most, evenly spread; 0: all.

    Returns:
      The file.

    Raises:
      UserError: there is no run, and no sweep.
      OSError: the file cannot be written.
    """
    folder = expand(str(workdir))
    path = expand(str(out), "--out") if out else folder / "report.html"
    page.write(
        path, render_sweep(folder) if is_sweep(folder) else render(open_run(folder, weights=weights, source=source, examples=examples))
    )
    return path


def render(run: Reported) -> str:
    """The page of a run as HTML."""
    going_on = in_use(run.folder) and not run.finished
    state = f"{'going on' if going_on else 'stopped'} at step {run.step:,} of {run.steps:,}"
    return page.html(
        run.folder.name,
        _sections(SECTIONS, run),
        subtitle=f"{run.config.model.name} on {run.config.data.source}",
        state=f"finished, {run.step:,} steps" if run.finished else state,
        going_on=going_on,
        written=_now(),
    )


def _now() -> str:
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _sections(makers: Makers, what: Any) -> list[Section]:
    """What the functions make of a run; last, what is left out."""
    made, left_out = [], []
    for title, make in makers:
        try:
            made.append(Section(title, make(what)))
        except LeftOutError as error:
            left_out.append((title, str(error)))
        except Exception as error:  # the other sections stand, and a training that has finished has finished
            log.warning("report.html: %s: %s", title.lower(), in_words(error))
            made.append(Section(title, (), why=f"This section could not be made: {in_words(error)}"))
    if left_out:
        made.append(Section("Left out", [Table("What this page does not have", [("section", "why"), *left_out], texts=2)]))
    return made


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep, whose runs have started."""
    return (folder / "sweep.json").is_file() and not (folder / "config.json").is_file()


def render_sweep(folder: Path) -> str:
    """The page of a sweep as HTML: its table, and the curves of its runs."""
    found = read_json(folder / "sweep.json", dict)
    states = [row["state"] for row in found["runs"]]
    return page.html(
        folder.name,
        _sections((("Runs", _runs), ("Curves", _curves)), (folder, found)),
        subtitle=f"a sweep of {len(states)} runs",
        state=", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)),
        going_on=in_use(folder),
        written=_now(),
    )


def _runs(sweep: tuple[Path, dict[str, Any]]) -> list[Any]:
    _, found = sweep
    keys = list(found["runs"][0]["values"])
    parts = [Table("The runs, as they stand", run_table(found["runs"]), texts=len(keys))]
    if found["over_seeds"]:
        parts.append(Table("Mean and deviation over the seeds", seed_table(found["over_seeds"]), texts=len(keys) - 1))
    failed = [(row["run"], row["why"]) for row in found["runs"] if row["state"] == "failed"]
    return [*parts, Table("Failed", [("run", "why"), *failed], texts=2)] if failed else parts


def _curves(sweep: tuple[Path, dict[str, Any]]) -> list[Any]:
    folder, found = sweep
    runs = {row["run"]: read_metrics(folder / row["run"]) for row in found["runs"]}
    charts = []
    for title, unit, key, look in (
        ("Training loss", "nats", "train/loss", "thin"),
        ("Loss", "nats, evaluation", "eval/loss", "thick"),
        ("Accuracy", "share, evaluation", "eval/top1", "thick"),
    ):
        each = {name: [row for row in rows if key in row] for name, rows in runs.items()}
        lines = [
            Series(name, [row["step"] for row in rows], [row[key] for row in rows], number, look)
            for number, (name, rows) in enumerate(each.items())
            if rows
        ]
        if lines:
            charts.append(Chart(title, unit, "step", lines))
    if not charts:
        raise LeftOutError("no run has logged a number yet")
    return charts


def watch(workdir: str | Path, out: str | Path = "", examples: int = EXAMPLES, every: float = _EVERY) -> Iterator[Path]:
    """Write the page now, and again whenever the run has logged or saved something, until it ends.

    Args:
      workdir, out, examples: as for `report`.
      every: seconds between two looks.

    Yields:
      The file, each time that it was written.
    """
    folder, before, going_on = expand(str(workdir)), None, True
    while True:
        # Before the look, so that what comes after it is seen by the next.
        going_on, now = in_use(folder), _traces(folder)
        if now != before:
            yield report(workdir, out, examples=examples)
            before = now
        if not going_on:
            return
        time.sleep(every)


def _traces(folder: Path) -> tuple[Any, ...]:
    """What changes when a run, or one of a sweep, logs or saves."""
    files, checkpoints = [folder / name for name in ("metrics.jsonl", "sweep.json")], folder / "checkpoints"
    files += sorted(folder.glob("*/metrics.jsonl"))
    sizes = [(file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else (0, 0) for file in files]
    return *sizes, *sorted(place.name for place in (checkpoints.iterdir() if checkpoints.exists() else ()) if place.name.isdecimal())
