"""The output of `jaxconv evaluate`: figures with their intervals, for people and programs."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxconv.evaluation.evaluation import Evaluation
from jaxconv.evaluation.several import evaluate_runs
from jaxconv.own import shown_name
from jaxconv.tasks import Figure, Task
from jaxconv.tasks.task import CONFIDENCE
from jaxconv.train.evaluate import mean_and_spread

Record = dict[str, Any]
Rows = list[tuple[str, str]]


def evaluate(
    workdir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    split: str = "",
    checkpoint: str = "latest",
    bootstrap: int = 1000,
    **settings: Any,
) -> Record:
    """Evaluate a run, or several together, as `jaxconv evaluate` does.

    Args:
      workdir: of the run, or those of several.
      split: by default the config's `data.eval_split`.
      checkpoint: `latest`, `best`, or a step.
      bootstrap: resamples for the intervals; 0 for no intervals.
      **settings: `devices`, `source`, `overrides`, `views`, `scales`, `crop_ratio`, `own_size`
        and `only_present`, as for `evaluation.evaluate_run`.

    Returns:
      What the command prints as JSON, see `make_record`, and the `step` of the checkpoint.

    Raises:
      UserError: as `several.evaluate_runs`.
    """
    one = isinstance(workdir, (str, os.PathLike))
    workdirs = [os.fspath(place) for place in ([workdir] if one else workdir)]
    evaluation = evaluate_runs(workdirs, split, checkpoint, **settings)
    return make_record(evaluation, bootstrap) | {"step": evaluation.step}


def make_record(evaluation: Evaluation, resamples: int) -> Record:
    """The evaluation's `result` without the step, and the figures of its outcomes, for JSON.

    Args:
      evaluation: of one network or several.
      resamples: of the bootstrap; 0 for no intervals.

    Returns:
      `result`, more figures of the task, and `intervals`, {figure: (low, high)}; the `source` of
      the examples; `view`, unless it is `center`. For several networks, `members` holds the figures
      of each; top-level figures are means, and those of the averaged prediction begin with
      `ensemble_`.
    """
    record = {name: value for name, value in evaluation.result.items() if name != "step"}
    task = evaluation.task
    found = _of_outcomes(task, evaluation.outcomes, resamples)
    if evaluation.members:
        own = {
            name: _of_outcomes(task, outcomes, resamples)
            for name, outcomes in evaluation.members.items()
        }
        record["members"] = [member | own.get(member["name"], {}) for member in record["members"]]
        means = mean_and_spread(
            [
                {name: value for name, value in each.items() if name != "intervals"}
                for each in own.values()
            ]
        )
        record |= means | {f"ensemble_{name}": value for name, value in found.items()}
    else:
        record |= found
    record["source"] = evaluation.data
    return record if str(evaluation.view) == "center" else record | {"view": str(evaluation.view)}


def _of_outcomes(task: Task, outcomes: Any, resamples: int) -> Record:
    found: Record = task.more_figures(outcomes)
    return found | ({"intervals": task.intervals(outcomes, resamples)} if resamples else {})


def make_rows(evaluation: Evaluation, record: Record, resamples: int) -> Rows:
    """The output for people, as rows (name, text).

    Args:
      evaluation: of one network or several.
      record: from `make_record`.
      resamples: as for `make_record`.
    """
    rows = [
        ("step", f"{evaluation.step:,}"),
        ("source", shown_name(evaluation.data)),
        ("split", evaluation.split),
        ("examples", f"{len(evaluation.outcomes):,}"),
    ]
    if "classes" in record:
        count = f"{record['classes']:,.0f} of {len(evaluation.task.class_names):,}"
        rows.append(("classes", f"{count}: those that the set has examples of"))
    if "view" in record:
        rows.append(("view", record["view"]))
    task = evaluation.task
    if evaluation.members:
        rows += _member_rows(task, record)
    else:
        rows += [(f.title, _figure(f, record)) for f in task.figures if f.key in record]
    who = ", by the averaged prediction, like everything below" if evaluation.members else ""
    rows += task.rows(evaluation.outcomes, who)
    if resamples:
        rows.append(
            (
                f"[{100 * CONFIDENCE:.0f} %]",
                "intervals: exact ones of shares of examples, the rest by "
                f"{resamples:,} bootstrap resamples",
            )
        )
        prefix = "ensemble_" if evaluation.members else ""
        found = {f.key: record[prefix + f.key] for f in task.figures if prefix + f.key in record}
        rows += [("", text) for text in task.remarks(found, record[f"{prefix}intervals"])]
    return rows


def _figure(
    figure: Figure, record: Mapping[str, Any], prefix: str = "", spread: bool = False
) -> str:
    """A figure with its interval, if it has one, or with its spread."""
    scale, form, unit = (100, ".2f", " %") if figure.share else (1, ".4f", "")
    intervals = record.get(f"{prefix}intervals", {})
    others = (record[f"{figure.key}_spread"],) if spread else intervals.get(figure.key, ())
    first, *rest = (format(scale * value, form) for value in (record[prefix + figure.key], *others))
    if spread:
        return f"{first} ± {rest[0]}{unit}"
    return f"{first}{unit} [{', '.join(rest)}]" if rest else f"{first}{unit}"


def _member_rows(task: Task, record: Record) -> Rows:
    """One aligned line per network, one for mean and spread, one for the averaged prediction."""
    names = [figure for figure in task.figures if f"ensemble_{figure.key}" in record]
    lines = {"": [figure.title for figure in names]}
    lines |= {
        member["name"]: [_figure(name, member) for name in names]
        for member in record["members"]
        if "loss" in member
    }
    lines["mean and spread"] = [_figure(name, record, spread=True) for name in names]
    lines["averaged"] = [_figure(name, record, "ensemble_") for name in names]
    widths = [max(map(len, column)) for column in zip(*lines.values(), strict=True)]
    rows = [
        (name, "   ".join(map(str.ljust, cells, widths)).rstrip()) for name, cells in lines.items()
    ]
    return rows + [
        (member["name"], "diverged") for member in record["members"] if "loss" not in member
    ]
