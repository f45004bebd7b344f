"""How far the runs of a sweep are, by the files in their workdirs, and what came of them: a table
and a plot.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxconv.drawing.parts import share
from jaxconv.grid import Trial, name_of, text_of
from jaxconv.train.build import total_steps
from jaxconv.train.workdir import read_metrics, saved_config, saved_data

# The last line of the log of a run that failed begins with it; launch/common.sh writes it too.
FAILED = "stopped with exit code"


def standing(trial: Trial, workdir: Path) -> dict[str, Any]:
    """How far a run is, by the files in its workdir: a row of the table.

    Returns:
      `run`, `values`, `state` (waiting, unfinished, failed or finished), `step`, `steps` of the
      whole training, the newest `loss` and `top1` of an evaluation, the `best_top1`, the median of
      `images_per_second`, and `why` it failed. What is not known yet is None.
    """
    return renewed(
        {"run": trial.name, "values": trial.values, "steps": trial.config.steps or None}, workdir
    )


def renewed(row: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """A row of sweep.json, see `standing`, as the run stands now."""
    folder, steps = workdir / row["run"], row["steps"]
    rows = read_metrics(folder)
    step = rows[-1]["step"] if rows else 0
    if not steps and (folder / "config.json").exists():
        steps = total_steps(saved_config(folder), saved_data(folder)["train_examples"])
    why = _why_failed(log_of(folder))
    # The last row is written before the last checkpoint, and a checkpoint's folder gets its name
    # when it is whole.
    finished = step == steps and (folder / "checkpoints" / str(steps)).is_dir()
    state = (
        "finished"
        if finished
        else "failed"
        if why
        else "unfinished"
        if (folder / "config.json").exists()
        else "waiting"
    )
    evaluated = [row for row in rows if "eval/loss" in row]
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return {
        "run": row["run"],
        "values": row["values"],
        "state": state,
        "step": step,
        "steps": steps,
        "loss": evaluated[-1]["eval/loss"] if evaluated else None,
        "top1": evaluated[-1]["eval/top1"] if evaluated else None,
        "best_top1": max((row["eval/top1"] for row in evaluated), default=None),
        "images_per_second": statistics.median(rates) if rates else None,
        "why": "" if finished else why,
    }


def log_of(folder: Path) -> Path:
    """What a run of a sweep said: beside its workdir."""
    return folder.with_name(f"{folder.name}.log")


def _why_failed(path: Path) -> str:
    """What the run said last, where its log ends with a failure; or nothing."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    if not lines or not lines[-1].startswith(FAILED):
        return ""
    start = max((number for number, line in enumerate(lines) if line.startswith("$ ")), default=0)
    said = [
        line.removeprefix("jaxconv: ") for line in lines[start:] if line.startswith("jaxconv: ")
    ]
    return said[-1] if said else lines[-1]


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and deviation (of a sample) of the finished runs that differ in the seed alone; empty
    where the grid has no seeds.

    Returns:
      Rows with `values` but the seed, `runs` and `finished`, and of `loss`, `top1` and `best_top1`
      pairs of mean and deviation, None where there are too few runs for it.
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
        for key in ("loss", "top1", "best_top1"):
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
    """The table in Markdown, a second one of means over seeds, and what failed runs said."""
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
    """Header and one row of texts for each run, of `standing`; the keys of the grid come first."""
    keys = list(rows[0]["values"])
    table = [[*keys, "steps", "eval loss", "top-1", "best top-1", "images/s", "state"]]
    for row in rows:
        steps = f"{row['step']:,}" + (
            f" of {row['steps']:,}" if row["steps"] and row["step"] < row["steps"] else ""
        )
        figures = [
            _figure(row["loss"]),
            share(row["top1"]),
            share(row["best_top1"]),
            _figure(row["images_per_second"], ",.0f"),
        ]
        table.append(
            [*(text_of(row["values"][key]) for key in keys), steps, *figures, row["state"]]
        )
    return table


def seed_table(means: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Header and one row of texts for each of the means of `over_seeds`; the keys of the grid but
    the seed come first.
    """
    others = list(means[0]["values"])
    table = [[*others, "seeds finished", "eval loss", "top-1", "best top-1"]]
    for mean in means:
        figures = [
            _spread(*mean["loss"], _figure),
            _spread(*mean["top1"], share),
            _spread(*mean["best_top1"], share),
        ]
        table.append(
            [
                *(text_of(mean["values"][key]) for key in others),
                f"{mean['finished']} of {mean['runs']}",
                *figures,
            ]
        )
    return table


def _figure(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _spread(
    mean: float | None, deviation: float | None, show: Callable[[float | None], str]
) -> str:
    return show(mean) + (f" ± {show(deviation)}" if deviation is not None else "")


def _lines(table: Sequence[Sequence[str]], texts: int) -> str:
    """A table in Markdown, aligned for a terminal too; the first `texts` columns to the left."""
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
