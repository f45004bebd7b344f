"""Writes results.md and its curves from workdirs of whole runs and results.tsv; see results.sh.

The workdirs are RUNS/EXPERIMENT[:ARGUMENT]/seed=N. A run that has not finished, that has other
steps than its experiment, or another seed than its folder says, is an error: the page claims
nothing that was not run. Other settings that differ from the experiment's become a part of the
command.
"""

import argparse
import csv
import dataclasses
import datetime
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jaxconv.config import MAY_DIFFER, flatten, load_config
from jaxconv.drawing.fonts import save_figure
from jaxconv.errors import UserError
from jaxconv.look.curves import loss_and_accuracy
from jaxconv.packaged import experiments
from jaxconv.results import renewed
from jaxconv.tasks import Figure, find_task
from jaxconv.train.workdir import read_json, read_metrics, saved_config

HERE = Path(__file__).resolve().parent
HEAD = """\
# Results

This page lists every experiment that was run at full length. If an experiment follows a paper, the
column "published" has the paper's result. An experiment that is not here was not run at full
length; [Experiments](experiments.md) and its docstring say what is known about it.
`docs/results.sh` makes this page.
"""
MEASURED = """\
## Measured from the files of the runs

Machine: {machine}. The time includes compilation
and evaluations. ± is the sample standard deviation over the seeds.
"""
DOCUMENTED = """\
## Documented in the experiments

The files of these runs are gone. The results are those in the docstrings of the experiments, which
also have the commands; `results.tsv` collects them. The date is that of the docstring.
"""
COLUMNS = ("experiment", "seeds", "time", "result", "published", "date")


class Run(NamedTuple):
    """A whole run.

    Attributes:
      seed: of its config.
      command: that trains it, without seed and workdir.
      value: the last evaluation's figure.
      seconds: of the training, with compilation and evaluations.
      rows: of metrics.jsonl.
      versions: the last entry of versions.json.
      date: when it ended.
    """

    seed: int
    command: str
    value: float
    seconds: float
    rows: list[dict[str, float]]
    versions: dict[str, Any]
    date: datetime.date


def read_run(folder: Path, spec: str, figure: Figure) -> Run:
    """Read a run of an experiment; raises UserError if it is not whole, or not one of it."""
    config, rows = saved_config(folder), read_metrics(folder)
    row = {"run": folder.name, "values": {}, "steps": None, "figure": dataclasses.asdict(figure)}
    found = renewed(row, folder.parent, rows=rows)
    if found["state"] != "finished":
        raise UserError(f"{folder}: is {found['state']}, at step {found['step']}")
    name, _, argument = spec.partition(":")
    differing = differences(
        flatten(config), flatten(load_config(f"jaxconv:{name}{argument and ':' + argument}"))
    )
    seed = differing.pop("seed", config.seed)
    if folder.name != f"seed={seed}":
        raise UserError(f"{folder}: its seed is {seed}")
    length = {"steps", "epochs"} & {*differing}
    if length:
        raise UserError(f"{folder}: has other {' and '.join(sorted(length))} than {spec}")
    settings = [f"--config.{key}={value}" for key, value in differing.items()]
    file = f"experiments/{name}.py{argument and ':' + argument}"
    last = [row for row in rows if f"eval/{figure.key}" in row][-1]
    if "seconds" not in rows[-1]:
        raise UserError(f"{folder}: an older version trained it, and did not note the time")
    ended = datetime.date.fromtimestamp((folder / "metrics.jsonl").stat().st_mtime)
    return Run(
        seed,
        shlex.join(["jaxconv", "train", f"--config={file}", *settings]),
        last[f"eval/{figure.key}"],
        rows[-1]["seconds"],
        rows,
        read_json(folder / "versions.json", list)[-1],
        ended,
    )


def differences(given: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide the numbers and differ from the usual ones."""

    def file_alone(value: Any) -> Any:  # a run notes the whole path of custom code
        is_code = isinstance(value, str) and ".py:" in value
        return value.rpartition("/")[2] if is_code else value

    length = ("steps", "epochs")
    keys = [key for key in given if key in length or not key.startswith((*MAY_DIFFER, "callbacks"))]
    return {key: given[key] for key in keys if file_alone(given[key]) != file_alone(usual.get(key))}


def measured(place: Path, published: dict[str, str]) -> tuple[dict[str, str], str]:
    """The row of an experiment's runs, and a paragraph; draws their curves."""
    spec = place.name
    folders = sorted(place.glob("seed=*"), key=lambda folder: int(folder.name.partition("=")[2]))
    if not folders:
        raise UserError(f"{place}: has no seed=N")
    config = saved_config(folders[0])
    task = find_task(config.task.name)
    figure = task.figures[0]
    runs = [read_run(folder, spec, figure) for folder in folders]
    if len({run.command for run in runs}) > 1:
        raise UserError(f"{place}: its runs differ in more than the seed")
    values, seconds = [run.value for run in runs], sorted(run.seconds for run in runs)
    result = f"{figure.title} {figure.show(statistics.mean(values))}"
    if len(values) > 1:
        result += f" ± {figure.show(statistics.stdev(values))}"
    picture = HERE / "results" / f"{spec.replace(':', '_')}.png"
    picture.parent.mkdir(exist_ok=True)
    named = {f"seed {run.seed}": run.rows for run in runs}
    save_figure(loss_and_accuracy(named, task), picture, dpi=60)
    times = f"{seconds[0]:.0f} s" + (f" to {seconds[-1]:.0f} s" if len(runs) > 1 else "")
    row = {
        "experiment": f"[`{spec}`](../experiments/{spec.partition(':')[0]}.py)",
        "seeds": ", ".join(str(run.seed) for run in runs),
        "time": times,
        "result": result,
        "published": published.get(spec, "") or "–",
        "date": max(run.date for run in runs).isoformat(),
    }
    each = ", ".join(figure.show(value) for value in values)
    used = runs[-1].versions
    text = (
        f"### {spec}\n\n    {runs[0].command} --config.seed=SEED --workdir=DIR\n\n"
        f"{figure.title} by seed: {each}. Versions: Python {used['python']}, "
        + ", ".join(f"{name} {used[name]}" for name in ("jax", "flax", "optax", "numpy"))
        + f"; device {used['device']}.\n\n"
        f"![{figure.panel or figure.title} and loss of {spec} against step, "
        f"{result} at the end](results/{picture.name})\n"
    )
    return row, text


def table(rows: list[dict[str, str]], columns: tuple[str, ...]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def documented(path: Path) -> list[dict[str, str]]:
    """The rows of results.tsv; raises UserError if one is not of an experiment, or lacks a cell."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    known = {one.name for one in experiments()}
    for row in rows:
        if row["experiment"].partition(":")[0] not in known:
            raise UserError(f"{path}: {row['experiment']} is no experiment")
        if None in row or not all(row.values()):
            raise UserError(f"{path}: the row of {row['experiment']} lacks a cell")
    return rows


def page(runs: Path, machine: str) -> str:
    """The whole page."""
    carried = documented(HERE / "results.tsv")
    places = sorted(place for place in runs.iterdir() if any(place.glob("seed=*")))
    if not places:
        raise UserError(f"--runs={runs}: has no EXPERIMENT/seed=N")
    published = {row["experiment"]: row["published"] for row in carried}
    made = [measured(place, published) for place in places]
    again = {place.name for place in places}
    left = [row for row in carried if row["experiment"] not in again]
    for row in left:
        name = row["experiment"].partition(":")[0]
        row["experiment"] = f"[`{row['experiment']}`](../experiments/{name}.py)"
        row["curve"] = "–" if row["curve"] == "-" else f"[curve]({row['curve']})"
    return "\n".join(
        [
            HEAD,
            MEASURED.format(machine=machine),
            table([row for row, _ in made], COLUMNS),
            DOCUMENTED,
            table(left, (*COLUMNS, "machine", "curve")),
            "## Commands and curves\n",
            *(text for _, text in made),
        ]
    )


def main() -> int:
    """Write the page; 2 if a run is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--machine", required=True)
    args = parser.parse_args()
    try:
        text = page(args.runs, args.machine)
    except (UserError, OSError) as error:
        print(f"results.py: {error}", file=sys.stderr)
        return 2
    (HERE / "results.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
