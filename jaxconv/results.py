"""Progress and results of the runs of a sweep, read from the files in their workdirs, as tables."""

import dataclasses
import shlex
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxconv.config import default_config
from jaxconv.grid import Trial, name_of, text_of
from jaxconv.tasks import Figure, find_task
from jaxconv.train.build import total_steps
from jaxconv.train.workdir import read_metrics, saved_config, saved_data, stopped_early

# The last line of a failed run's log begins with this; launch/common.sh writes it too.
FAILED = "stopped with exit code"
# The file in a sweep's workdir with the number of its job array in Slurm.
SLURM_JOB = "slurm_job.txt"


def standing(trial: Trial, workdir: Path) -> dict[str, Any]:
    """The progress of a run, read from the files in its workdir: a row of the table.

    Returns:
      `run`, `values`, `state` (waiting, unfinished, failed or finished; in a sweep also running,
      and cancelled if Slurm no longer has it), `step`, `steps` of the
      whole training, the `figure` that runs are compared by, the latest evaluated `loss` and figure
      (by its key, such as `top1`), the best one (`best_top1`), the median of `images_per_second`,
      and `why` it failed. Unknown values are None.
    """
    figure = dataclasses.asdict(find_task(trial.config.task.name).figures[0])
    steps, folder = trial.config.steps, workdir / trial.name
    if not steps and (folder / "config.json").exists():
        steps = total_steps(trial.config, saved_data(folder)["train_examples"])
    row = {"run": trial.name, "values": trial.values, "steps": steps or None, "figure": figure}
    return renewed(row, workdir, trial.config)


def figure_of(row: Mapping[str, Any]) -> Figure:
    """The figure that runs are compared by: the first of the task.

    Rows of an older sweep.json are of the default task.
    """
    if "figure" in row:
        return Figure(**row["figure"])
    return find_task(default_config().task.name).figures[0]


def renewed(
    row: Mapping[str, Any],
    workdir: Path,
    config: Any = None,
    rows: Sequence[Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """An updated row of sweep.json, see `standing`.

    A run that was stopped early is finished, unless `config` has another early stopping. `rows` are
    those of its metrics.jsonl, if they have been read.
    """
    folder, steps = workdir / row["run"], row["steps"]
    rows = read_metrics(folder) if rows is None else rows
    stopped = stopped_early(folder)
    if config and stopped.get("early_stopping") != config.early_stopping.to_dict():
        stopped = {}
    step = max(rows[-1]["step"] if rows else 0, stopped.get("step", 0))
    if not steps and (folder / "config.json").exists():
        steps = total_steps(saved_config(folder), saved_data(folder)["train_examples"])
    why = _why_failed(log_of(folder))
    # The last row is written before the last checkpoint, whose folder gets its name only when it is
    # complete.
    ended = step in (steps, stopped.get("step"))
    finished = ended and (folder / "checkpoints" / str(step)).is_dir()
    state = (
        "finished"
        if finished
        else "failed"
        if why
        else "unfinished"
        if (folder / "config.json").exists()
        else "waiting"
    )
    figure = figure_of(row)
    key, best = figure.key, max if figure.higher else min
    evaluated = [row for row in rows if "eval/loss" in row]
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return {
        "run": row["run"],
        "values": row["values"],
        "state": state,
        "step": step,
        "steps": steps,
        "figure": dataclasses.asdict(figure),
        "loss": evaluated[-1]["eval/loss"] if evaluated else None,
        key: evaluated[-1][f"eval/{key}"] if evaluated else None,
        f"best_{key}": best((row[f"eval/{key}"] for row in evaluated), default=None),
        "images_per_second": statistics.median(rates) if rates else None,
        "why": "" if finished else why,
    }


def with_cancelled(rows: Sequence[dict[str, Any]], queued: set[str] | None) -> list[dict[str, Any]]:
    """The rows, in which runs that Slurm no longer has and that are not done are `cancelled`.

    Args:
      rows: see `standing`.
      queued: the names of the runs that it has, see `queued_runs`; None if that is unknown.
    """
    if queued is None:
        return [*rows]
    return [
        row | {"state": "cancelled"}
        if row["state"] in ("waiting", "unfinished") and row["run"] not in queued
        else row
        for row in rows
    ]


def queued_runs(workdir: Path) -> set[str] | None:
    """The runs of a sweep that are in Slurm's queue, by name; None if it cannot be asked.

    Slurm forgets jobs that were cancelled, or have ended, a few minutes later.
    """
    job, commands = workdir / SLURM_JOB, workdir / "commands.txt"
    if not job.is_file() or not commands.is_file() or not shutil.which("squeue"):
        return None
    number = job.read_text().strip()
    asked = subprocess.run(
        ["squeue", "--noheader", "--array", f"--jobs={number}", "--format=%K"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return None  # the controller does not answer
    tasks = {int(word) for word in asked.stdout.split() if word.isdecimal()}
    places = [
        next(word for word in shlex.split(line) if word.startswith("--workdir="))
        for line in commands.read_text().splitlines()
    ]
    return {Path(place).name for n, place in enumerate(places, 1) if n in tasks}


def log_of(folder: Path) -> Path:
    """The log of a run of a sweep, next to its workdir."""
    return folder.with_name(f"{folder.name}.log")


def _why_failed(path: Path) -> str:
    """The last message of a run whose log ends with a failure; empty otherwise."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    if not lines or not lines[-1].startswith(FAILED):
        return ""
    start = max((number for number, line in enumerate(lines) if line.startswith("$ ")), default=0)
    said = [
        line.removeprefix("jaxconv: ") for line in lines[start:] if line.startswith("jaxconv: ")
    ]
    return said[-1] if said else lines[-1]


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample deviation of finished runs that differ only in the seed; empty without seeds.

    Returns:
      Rows with `values` without the seed, `runs` and `finished`, and for `loss`, the figure and the
      best one a pair of mean and deviation; None where there are too few runs.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if "seed" in row["values"]:
            groups.setdefault(name_of(_but_seed(row["values"])), []).append(row)
    means = []
    for group in groups.values():
        finished = [row for row in group if row["state"] == "finished"]
        mean = {
            "values": _but_seed(group[0]["values"]),
            "runs": len(group),
            "finished": len(finished),
        }
        figure = figure_of(group[0])
        mean["figure"] = dataclasses.asdict(figure)
        for key in ("loss", figure.key, f"best_{figure.key}"):
            numbers = [row[key] for row in finished]
            mean[key] = (
                statistics.mean(numbers) if numbers else None,
                statistics.stdev(numbers) if len(numbers) > 1 else None,
            )
        means.append(mean)
    return means


def _but_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "seed"}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown, a second one of means over seeds, and messages of failed runs."""
    keys = list(rows[0]["values"])
    parts = [_lines(run_table(rows), len(keys))]
    means = over_seeds(rows)
    if means:
        parts += ["Mean and deviation over the seeds:", _lines(seed_table(means), len(keys) - 1)]
    failed = [f"- {row['run']}: {row['why']}" for row in rows if row["state"] == "failed"]
    if failed:
        parts += ["Failed:", "\n".join(failed)]
    return "\n\n".join(parts)


def run_table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A header and one row of strings per row of `standing`; the keys of the grid come first."""
    keys = list(rows[0]["values"])
    table = [[*keys, "steps", *_titles(rows[0]), "images/s", "state"]]
    for row in rows:
        steps = f"{row['step']:,}" + (
            f" of {row['steps']:,}" if row["steps"] and row["step"] < row["steps"] else ""
        )
        figures = [show(row[key]) for key, show in _columns(row).items()]
        figures.append(_figure(row["images_per_second"], ",.0f"))
        table.append(
            [*(text_of(row["values"][key]) for key in keys), steps, *figures, row["state"]]
        )
    return table


def seed_table(means: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A header and one row of strings per row of `over_seeds`; the keys come first."""
    others = list(means[0]["values"])
    table = [[*others, "seeds finished", *_titles(means[0])]]
    for mean in means:
        figures = [
            _spread(center, deviation, show)
            for key, show in _columns(mean).items()
            for center, deviation in [mean[key]]
        ]
        table.append(
            [
                *(text_of(mean["values"][key]) for key in others),
                f"{mean['finished']} of {mean['runs']}",
                *figures,
            ]
        )
    return table


def _titles(row: Mapping[str, Any]) -> list[str]:
    """Titles of the columns of `_columns`."""
    title = figure_of(row).title
    return [*(["eval loss"] if figure_of(row).key != "loss" else []), title, f"best {title}"]


def _columns(row: Mapping[str, Any]) -> dict[str, Callable[[float | None], str]]:
    """Keys of the loss, the figure and the best one, with how each is shown."""
    figure = figure_of(row)
    return {"loss": _figure, figure.key: figure.show, f"best_{figure.key}": figure.show}


def _figure(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _spread(
    mean: float | None, deviation: float | None, show: Callable[[float | None], str]
) -> str:
    return show(mean) + (f" ± {show(deviation)}" if deviation is not None else "")


def _lines(table: Sequence[Sequence[str]], texts: int) -> str:
    """A table in Markdown, also aligned for a terminal; the first `texts` columns to the left."""
    table = [[cell.replace("|", r"\|") for cell in cells] for cells in table]
    widths = [max(3, *map(len, column)) for column in zip(*table, strict=True)]
    rule = [
        "-" * width if column < texts else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    aligned = [
        [
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        for cells in table
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (aligned[0], rule, *aligned[1:]))
