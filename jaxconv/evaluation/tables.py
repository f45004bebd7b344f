"""What `jaxconv evaluate` says: the figures with their intervals, for people and for programs, and
the files that it writes.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.wordnet import readable, wordnet_ids
from jaxconv.errors import short
from jaxconv.evaluation.evaluation import Evaluation
from jaxconv.files import whole_file
from jaxconv.tasks.classification.intervals import CONFIDENCE, intervals, on_intervals
from jaxconv.tasks.classification.outcomes import (
    Outcomes,
    calibration,
    confusion,
    figures,
    heights,
    most_confused,
    per_class,
)
from jaxconv.train.evaluate import mean_and_spread

# What the files may be, by the option that asks for them.
SUFFIXES = {
    "predictions": (".npz", ".csv"),
    "confusion": (".csv", ".png"),
    "reliability": (".png",),
}
_TITLES = {"top1": "top-1", "top5": "top-5", "loss": "loss", "ece": "ECE", "height": "height"}
_SHARES = ("top1", "top5", "ece")
# Classes that are named as the worst and as the best, and pairs as the most confused.
_NAMED = 3
# Classes of an example in a table of predictions.
_TOP = 5

Record = dict[str, Any]
Rows = list[tuple[str, str]]


def make_record(evaluation: Evaluation, resamples: int) -> Record:
    """The evaluation's `result` but for the step, with what its outcomes tell; for JSON.

    Args:
      evaluation: of one network or several.
      resamples: of the bootstrap; 0 for no intervals.

    Returns:
      `result`; `ece`, of WordNet's classes `height`, and `intervals`, {figure: (low, high)};
      `view`, where it is not the middle. Of several networks those of each are in `members`, `ece`
      and `height` are means, and those of the averaged prediction begin with `ensemble_`.
    """
    record = {name: value for name, value in evaluation.result.items() if name != "step"}
    found = _of_outcomes(evaluation.outcomes, resamples)
    if evaluation.members:
        own = {
            name: _of_outcomes(outcomes, resamples) for name, outcomes in evaluation.members.items()
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
    return record if str(evaluation.view) == "center" else record | {"view": str(evaluation.view)}


def _of_outcomes(outcomes: Outcomes, resamples: int) -> Record:
    found: Record = {
        name: value for name, value in figures(outcomes).items() if name in ("ece", "height")
    }
    return found | ({"intervals": intervals(outcomes, resamples)} if resamples else {})


def make_rows(evaluation: Evaluation, record: Record, resamples: int) -> Rows:
    """What people read, as rows of a name and a text; `record` and `resamples` are those of
    `make_record`.
    """
    rows = [
        ("step", f"{evaluation.step:,}"),
        ("split", evaluation.split),
        ("examples", f"{len(evaluation.outcomes):,}"),
    ]
    if "view" in record:
        rows.append(("view", record["view"]))
    if evaluation.members:
        rows += _member_rows(record)
    else:
        rows += [
            (title, _figure(name, record)) for name, title in _TITLES.items() if name in record
        ]
    who = ", by the averaged prediction, as all below" if evaluation.members else ""
    rows += _remarks(evaluation.outcomes, who)
    if resamples:
        rows.append(
            (
                f"[{100 * CONFIDENCE:.0f} %]",
                f"intervals by {resamples:,} bootstrap resamples of the examples",
            )
        )
        prefix = "ensemble_" if evaluation.members else ""
        found = {name: record[prefix + name] for name in ("top1", "ece")}
        rows += [("", text) for text in on_intervals(found, record[f"{prefix}intervals"])]
    return rows


def _figure(name: str, record: Mapping[str, Any], prefix: str = "", spread: bool = False) -> str:
    """A figure with its interval, where there is one, or with its spread."""
    scale, form, unit = (100, ".2f", " %") if name in _SHARES else (1, ".4f", "")
    values = [
        record[prefix + name],
        *(
            (record[f"{name}_spread"],)
            if spread
            else record.get(f"{prefix}intervals", {}).get(name, ())
        ),
    ]
    first, *others = (format(scale * value, form) for value in values)
    return (
        f"{first} ± {others[0]}{unit}"
        if spread
        else f"{first}{unit} [{', '.join(others)}]"
        if others
        else f"{first}{unit}"
    )


def _member_rows(record: Record) -> Rows:
    """A line for each network, one for mean and spread, one for the averaged prediction, in
    columns.
    """
    names = [name for name in _TITLES if f"ensemble_{name}" in record]
    lines = {"": [_TITLES[name] for name in names]}
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


def _remarks(outcomes: Outcomes, who: str) -> Rows:
    """What lies behind the figures: mistakes, confidence, classes, confusions; `who` says whose
    they are.
    """
    mistakes, found, names = (
        outcomes.ranks > 0,
        per_class(outcomes),
        [short(readable(name), 30) for name in outcomes.class_names],
    )
    rows = [("wrong", f"{mistakes.sum():,} of {len(outcomes):,}{who}")]
    if wordnet_ids(outcomes.class_names) and mistakes.any():
        far = heights(outcomes)[mistakes].mean()
        rows.append(
            (
                "",
                f"what a mistake and the truth have in common lies {far:.2f} above them in "
                "WordNet, on average",
            )
        )
    rows.append(
        (
            "sure",
            f"{100 * outcomes.confidence.mean():.2f} % on average, and right in "
            f"{100 * np.mean(~mistakes):.2f} %",
        )
    )
    ranked = found.ranked()
    best = ranked[np.argsort(-found.accuracy[ranked], kind="stable")]
    parts = (
        {"classes": ranked}
        if len(ranked) <= 2 * _NAMED
        else {"worst": ranked[:_NAMED], "best": best[:_NAMED]}
    )
    rows += [
        (title, ", ".join(f"{names[k]} {100 * found.accuracy[k]:.2f} %" for k in classes))
        for title, classes in parts.items()
    ]
    if len(names) > 2 and mistakes.any():
        pairs = most_confused(confusion(outcomes), _NAMED)
        rows.append(
            (
                "confused",
                ", ".join(
                    f"{names[true]} taken for {names[said]} {count:,}"
                    for true, said, count in pairs
                ),
            )
        )
    return rows


def class_lines(outcomes: Outcomes) -> list[str]:
    """A table of all classes, the worst first: examples, accuracy, precision, and what most
    mistakes take it for.
    """
    found, counts, names = (
        per_class(outcomes),
        confusion(outcomes),
        [short(readable(name), 40) for name in outcomes.class_names],
    )
    mistaken = counts - np.diag(np.diag(counts))
    width = max(map(len, [*names, "class"]))
    lines = [f"{'class':<{width}}  examples  accuracy  precision  most often taken for"]
    for k in found.ranked():
        other = int(mistaken[k].argmax())
        taken = f"{names[other]} {mistaken[k, other]:,}" if mistaken[k, other] else "-"
        precision = f"{100 * found.precision[k]:7.2f} %" if found.predicted[k] else f"{'-':>9}"
        lines.append(
            f"{names[k]:<{width}}  {found.examples[k]:8,}  {100 * found.accuracy[k]:6.2f} %  "
            f"{precision}  {taken}"
        )
    return lines


def write_predictions(path: Path, evaluation: Evaluation) -> None:
    """Write what the network says of every example, whole or not at all.

    .npz: `labels` [N], `probabilities` [N, K] float32, `index` [N] (the examples' places in the
    split), `names` [N], `class_names` [K]. .csv: a line for each example: index, name, class, the
    class's probability, and the most probable classes with theirs.
    """
    outcomes = evaluation.outcomes
    names = [evaluation.source.name(int(i)) for i in outcomes.index]
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".npz":
            arrays = {
                "labels": outcomes.labels,
                "probabilities": outcomes.probabilities,
                "index": outcomes.index,
            }
            np.savez(
                temporary,
                **arrays,
                names=np.array(names),
                class_names=np.array(outcomes.class_names),
            )
        else:
            _write_rows(temporary, _prediction_rows(outcomes, names))


def _prediction_rows(outcomes: Outcomes, names: Sequence[str]) -> Iterator[list[Any]]:
    count, classes, probabilities = (
        min(_TOP, len(outcomes.class_names)),
        outcomes.class_names,
        outcomes.probabilities,
    )
    yield [
        "index",
        "name",
        "class",
        "probability",
        *(f"{what}_{k}" for k in range(1, count + 1) for what in ("predicted", "probability")),
    ]
    for row, name in enumerate(names):
        # By the logits: their order is that of the error rates, where probabilities may be rounded
        # to the same number.
        top = np.argsort(-outcomes.logits[row], kind="stable")[:count]
        said = [value for k in top for value in (classes[k], f"{probabilities[row, k]:.6g}")]
        label = outcomes.labels[row]
        yield [
            int(outcomes.index[row]),
            name,
            classes[label],
            f"{probabilities[row, label]:.6g}",
            *said,
        ]


def write_confusion(path: Path, evaluation: Evaluation) -> None:
    """Write the confusion matrix, a row for each true class, as .csv or as a picture."""
    counts, names = confusion(evaluation.outcomes), evaluation.outcomes.class_names
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".csv":
            rows = ([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
            _write_rows(temporary, [["true \\ predicted", *names], *rows])
        else:
            from jaxconv.tasks.classification.examples import confusions

            confusions(counts, names, title=evaluation.name).savefig(temporary, dpi=120)


def write_reliability(path: Path, evaluation: Evaluation) -> None:
    """Draw the reliability diagram into a file."""
    from jaxconv.tasks.classification.accuracy import reliability

    with whole_file(path) as temporary:
        reliability(calibration(evaluation.outcomes), evaluation.name).savefig(temporary, dpi=120)


def _write_rows(path: Path, rows: Iterator[Sequence[Any]] | Sequence[Sequence[Any]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


WRITERS = {
    "predictions": write_predictions,
    "confusion": write_confusion,
    "reliability": write_reliability,
}
