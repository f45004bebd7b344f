"""`jaxconv report RUN`: everything there is to see of a run or a sweep, on one page.

`jaxconv report RUN RUN ...` compares runs.

sections.py and network_sections.py make its content, document.py its layout. If a section fails,
the page shows the error there and keeps the other sections.
"""

import dataclasses
import datetime
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxconv.cloud import refresh
from jaxconv.config import flatten
from jaxconv.data.interface import Source
from jaxconv.drawing.parts import Chart, LeftOutError, Series, Table, Text
from jaxconv.errors import UserError, in_words
from jaxconv.files import expand
from jaxconv.look.curves import panels
from jaxconv.own import shown_name
from jaxconv.report import document as page
from jaxconv.report import network_sections, sections
from jaxconv.report.document import Section
from jaxconv.report.sections import Memo, RunReport, newest_checkpoint, read_run
from jaxconv.results import (
    figure_of,
    log_of,
    over_seeds,
    queued_runs,
    renewed,
    run_table,
    seed_table,
    with_cancelled,
)
from jaxconv.tasks import Figure, Task, find_task
from jaxconv.train.other_data import Overrides
from jaxconv.train.workdir import in_use, opened_config, read_json, read_metrics

log = logging.getLogger(__name__)

Makers = Sequence[tuple[str, Callable[[Any], list[Any]]]]


def _once(make: Callable[[RunReport], list[Any]]) -> Callable[[RunReport], list[Any]]:
    """Make a section only once per checkpoint; it must not show what the run logs in between."""
    return lambda run: run.once(make, lambda: make(run))


# Before and after the sections of the task.
FIRST: Makers = (("Result", network_sections.result), ("Curves", sections.curves))
SECTIONS: Makers = (
    ("Filters", _once(network_sections.first_filters)),
    ("Activations", _once(network_sections.layers)),
    ("Patches", _once(network_sections.patches)),
    ("Attribution", _once(network_sections.attribution)),
    ("Network", _once(sections.network)),
    ("Data", sections.data),
    ("Config", sections.config),
    ("Versions", sections.versions),
)
# The most test examples to look at by default.
EXAMPLES = 10_000
# Seconds between two checks of a run in progress.
_EVERY = 2.0
# Seconds between two questions to Slurm.
_ASK_EVERY = 30.0
# The most runs of a sweep whose curves are drawn.
MOST_RUNS = 100


def report(
    workdir: str | Path,
    out: str | Path = "",
    weights: bool = True,
    source: Source | None = None,
    examples: int = EXAMPLES,
    kept: Memo | None = None,
    overrides: Overrides = (),
) -> Path:
    """Write the page of a run or a sweep atomically.

    Args:
      workdir: of the run, which may still be training, or of the sweep.
      out: the file; report.html in the workdir by default.
      weights: also make the sections that need the network's weights.
      source: the examples to evaluate on, if not those that the config names.
      examples: the most of them to look at, evenly spread; 0: all.
      kept: the cache of the previous page, from which unchanged parts are reused.
      overrides: `KEY=VALUE` each or values by key, such as data.source=folder:DIR,
        to show other data, see train/other_data.py.

    Returns:
      The file.

    Raises:
      UserError: there is neither a run nor a sweep.
      OSError: the file cannot be written.
    """
    folder, kept = expand(str(workdir)), kept or Memo()
    path = expand(str(out), "--out") if out else folder / "report.html"
    if is_sweep(folder):
        page.write(path, render_sweep(open_sweep(folder, kept)))
    else:
        page.write(
            path,
            render(
                read_run(
                    folder,
                    weights=weights,
                    source=source,
                    examples=examples,
                    kept=kept,
                    overrides=overrides,
                )
            ),
        )
    return path


def _of_task(run: RunReport) -> Makers:
    """The task's own sections, each made once per checkpoint."""
    return tuple((title, _once(make)) for title, make in run.task.sections())


def render(run: RunReport) -> str:
    """The page of a run as HTML."""
    going_on = in_use(run.folder) and not run.finished
    state = f"{'running' if going_on else 'stopped'} at step {run.step:,} of {run.steps:,}"
    if run.finished:
        state = f"finished, {run.step:,} steps"
    if run.finished and run.stopped:
        state += f" of {run.steps:,}: stopped early by {run.stopped['why']}"
    return page.html(
        run.folder.name,
        _sections((*FIRST, *_of_task(run), *SECTIONS), run),
        subtitle=f"{shown_name(run.config.model.name)} on {shown_name(run.config.data.source)}",
        state=state,
        going_on=going_on,
        written=_now(),
    )


def _now() -> str:
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _sections(makers: Makers, what: Any) -> list[Section]:
    """Make the sections of a run or a sweep; the last one lists what is left out."""
    made, left_out = [], []
    for title, make in makers:
        try:
            made.append(Section(title, make(what)))
        except LeftOutError as error:
            left_out.append((title, str(error)))
        except (
            Exception
        ) as error:  # it must not cost the other sections, nor fail a finished training
            log.warning("report.html: %s: %s", title.lower(), in_words(error))
            made.append(
                Section(title, (), why=f"This section could not be made: {in_words(error)}")
            )
    if left_out:
        made.append(
            Section(
                "Left out",
                [Table("What this page does not have", [("section", "why"), *left_out], texts=2)],
            )
        )
    return made


def is_sweep(folder: Path) -> bool:
    """Whether a folder is the workdir of a sweep that has started."""
    return (folder / "sweep.json").is_file() and not (folder / "config.json").is_file()


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The current state of a sweep.

    Attributes:
      folder: its workdir.
      rows: one per run, see `results.standing`; the state of a run in training is `running`.
      lines: the lines of each run that has begun, by its name and the key.
      task: of its first run that has begun; None before.
    """

    folder: Path
    rows: Sequence[dict[str, Any]]
    lines: Mapping[str, Mapping[str, Series]]
    task: type[Task] | None

    @property
    def going_on(self) -> bool:
        """Whether the sweep's process or one of its runs is running.

        A sweep that never had its own process also counts while any run is left.
        """
        states = {row["state"] for row in self.rows}
        left = not (self.folder / ".lock").exists() and states & {"waiting", "unfinished"}
        return in_use(self.folder) or "running" in states or bool(left)


def open_sweep(folder: Path, kept: Memo) -> Sweep:
    """Read the current state of a sweep; raises UserError if sweep.json is damaged.

    A run whose files are as they were for `kept` is not read again.
    """
    sweep = _read_runs(folder, read_json(folder / "sweep.json", dict)["runs"], {}, kept)
    # Slurm is not asked more often.
    queued = kept.once("queued", time.monotonic() // _ASK_EVERY, lambda: queued_runs(folder))
    return dataclasses.replace(sweep, rows=with_cancelled(sweep.rows, queued))


def _read_runs(
    folder: Path, rows: Sequence[dict[str, Any]], places: Mapping[str, Path], kept: Memo
) -> Sweep:
    """Read the runs of some rows; those that `places` lacks are in the folder, by their names."""
    places = {row["run"]: places.get(row["run"], folder / row["run"]) for row in rows}
    begun = [place for place in places.values() if (place / "config.json").is_file()]
    task = find_task(opened_config(begun[0]).task.name) if begun else None
    logged = sum((place / "metrics.jsonl").is_file() for place in places.values())
    most = page.points_of_each(min(logged, MOST_RUNS))
    now, lines = [], {}
    for row in rows:
        name, place = row["run"], places[row["run"]]
        if not place.exists() and not log_of(place).exists():
            now.append(row)  # it has not begun, or its files were moved away
            continue

        def read(row: dict[str, Any] = row, place: Path = place) -> Any:
            found = read_metrics(place)
            here = renewed(row | {"run": place.name}, place.parent, rows=found)
            return here | {"run": row["run"]}, _lines(row["run"], found, task, most)

        state, lines[name] = kept.once(place, (_traces(place), most), read)
        running = state["state"] != "finished" and in_use(place)
        now.append(state | {"state": "running"} if running else state)
    return Sweep(folder, now, lines, task)


def compare(workdirs: Sequence[str | Path], out: str | Path = "comparison.html") -> Path:
    """Write a page that compares runs: their results, settings that differ, and curves.

    Raises:
      UserError: there are not at least two different runs of one task.
      OSError: the file cannot be written.
    """
    path = expand(str(out), "--out")
    page.write(path, render_comparison([expand(str(place)) for place in workdirs]))
    return path


def render_comparison(folders: Sequence[Path]) -> str:
    """The page of several runs as HTML, see `compare`."""
    if len({*folders}) != len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise UserError(f"{twice}: the run is given twice")
    names = _short_names(folders)
    configs = {name: flatten(opened_config(f)) for name, f in zip(names, folders, strict=True)}
    tasks = {name: config["task.name"] for name, config in configs.items()}
    if len({*tasks.values()}) > 1:
        said = ", ".join(f"{name}: {task}" for name, task in tasks.items())
        raise UserError(f"runs of different tasks cannot be compared ({said})")
    figure = dataclasses.asdict(find_task(tasks[names[0]]).figures[0])
    rows = [{"run": n, "values": {"run": n}, "steps": None, "figure": figure} for n in names]
    sweep = _read_runs(folders[0], rows, dict(zip(names, folders, strict=True)), Memo())
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    differing = [
        [key, *values]
        for key in keys
        if len({*(values := [repr(c.get(key, "-")) for c in configs.values()])}) > 1
    ]

    def settings(_: Sweep) -> list[Any]:
        if not differing:
            return [Text("The configs of the runs are the same.")]
        table = [["key", *names], *differing]
        return [Table("Keys of the config that differ", table, texts=len(names) + 1)]

    return page.html(
        " and ".join([", ".join(names[:-1]), names[-1]]),
        _sections((("Runs", _runs), ("Curves", _curves), ("Settings", settings)), sweep),
        subtitle=f"a comparison of {len(names):,} runs",
        state=_states(sweep),
        going_on=False,
        written=_now(),
    )


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The ends of the paths, as long as it takes to tell them apart."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len({*names}) == len(names):
            return names
    return [str(folder) for folder in folders]


def render_sweep(sweep: Sweep) -> str:
    """The page of a sweep as HTML: its table, and the curves of its runs."""
    return page.html(
        sweep.folder.name,
        _sections((("Runs", _runs), ("Curves", _curves)), sweep),
        subtitle=f"a sweep of {len(sweep.rows):,} runs",
        state=_states(sweep),
        going_on=sweep.going_on,
        written=_now(),
    )


def _states(sweep: Sweep) -> str:
    states = [row["state"] for row in sweep.rows]
    return ", ".join(f"{states.count(state):,} {state}" for state in dict.fromkeys(states))


def _runs(sweep: Sweep) -> list[Any]:
    keys, means, ranked = list(sweep.rows[0]["values"]), over_seeds(sweep.rows), _ranked(sweep.rows)
    parts: list[Any] = [
        Table("Current state of the runs", run_table(sweep.rows), texts=len(keys), sortable=True)
    ]
    figure = figure_of(ranked[0])
    best = ranked[0][f"best_{figure.key}"]
    if best is not None:
        parts.insert(
            0,
            Text(
                f"The {_best(figure)} {figure.title} so far is {figure.show(best)}, of "
                f"{ranked[0]['run']}.",
                strong=True,
            ),
        )
    if means:
        parts.append(
            Table(
                "Mean and deviation over the seeds",
                seed_table(means),
                texts=len(keys) - 1,
                sortable=True,
            )
        )
    failed = [(row["run"], row["why"]) for row in sweep.rows if row["state"] == "failed"]
    return [*parts, Table("Failed", [("run", "why"), *failed], texts=2)] if failed else parts


def _best(figure: Figure) -> str:
    return "highest" if figure.higher else "lowest"


def _badness(row: dict[str, Any]) -> float:
    figure = figure_of(row)
    best = row[f"best_{figure.key}"]
    return math.inf if best is None else -best if figure.higher else best


def _ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs by their best value of the task's metric so far, best first; unknown ones last."""
    return sorted(
        rows,
        key=_badness,
    )


def _curves(sweep: Sweep) -> list[Any]:
    """A chart for each line of the task's panels, with a line for each of the best runs."""
    begun = [row for row in sweep.rows if row["step"]]
    drawn = {row["run"] for row in _ranked(begun)[:MOST_RUNS]}
    names = [row["run"] for row in begun if row["run"] in drawn]
    each = [
        {key: dataclasses.replace(line, number=number) for key, line in sweep.lines[name].items()}
        for number, name in enumerate(names)
    ]
    charts = [
        Chart(f"{title}, {label}" if len(lines) > 1 else title, unit, "step", found)
        for title, unit, lines in panels(sweep.task)
        for key, label, _ in lines
        if (found := [of_run[key] for of_run in each if key in of_run])
    ]
    if not charts:
        raise LeftOutError("no run has logged any numbers yet")
    figure = figure_of(sweep.rows[0])
    said = (
        f"The {len(names)} runs with the {_best(figure)} {figure.title} so far, of "
        f"{len(begun):,} that have begun; "
        "the table above lists all."
    )
    return [*([Text(said)] if len(names) < len(begun) else []), *charts]


def _lines(
    name: str, rows: Sequence[dict[str, float]], task: type[Task] | None, most: int
) -> dict[str, Series]:
    """The lines of a run by key, each of at most `most` points."""
    keys = [(key, look) for *_, lines in panels(task) for key, _, look in lines]
    of_keys = [(key, look, [row for row in rows if key in row]) for key, look in keys]
    return {
        key: page.thinned(
            Series(
                name,
                [row["step"] for row in found],
                [row[key] for row in found],
                look=look,
                seconds=sections.seconds_of(found),
            ),
            most,
        )
        for key, look, found in of_keys
        if found
    }


def watch(
    workdir: str | Path,
    out: str | Path = "",
    examples: int = EXAMPLES,
    every: float = _EVERY,
    overrides: Overrides = (),
) -> Iterator[Path]:
    """Write the page now, whenever the run has logged or saved something, and when it has ended.

    Args:
      workdir, out, examples, overrides: as for `report`.
      every: seconds between two checks.

    Yields:
      The file, each time it has been written.
    """
    folder, before, going_on, kept = expand(str(workdir)), None, True, Memo()
    while going_on:
        # Check before making the page, so that the next check sees what changes meanwhile.
        going_on, now = _looked_at(folder, kept)
        if now != before:
            yield report(workdir, out, examples=examples, kept=kept, overrides=overrides)
            before = now
        if going_on:
            time.sleep(every)


def _looked_at(folder: Path, kept: Memo) -> tuple[bool, Any]:
    """Whether a run or a sweep is still running, and the state that its page depends on."""
    refresh(folder)
    if not is_sweep(folder):
        going_on = in_use(folder)
        return going_on, (going_on, _traces(folder))
    sweep = open_sweep(folder, kept)
    return sweep.going_on, (sweep.going_on, sweep.rows)


def _traces(folder: Path) -> tuple[Any, ...]:
    """What changes when a run begins, logs, saves or fails."""
    files = [
        file.stat()
        for file in (folder / "metrics.jsonl", folder / "config.json", log_of(folder))
        if file.exists()
    ]
    return *((file.st_size, file.st_mtime_ns) for file in files), newest_checkpoint(folder)
