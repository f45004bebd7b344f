"""What `jaxconv evaluate` prints about classes and mistakes, and the files that it writes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.wordnet import readable, wordnet_ids
from jaxconv.drawing.fonts import save_figure
from jaxconv.errors import columns, padded, short
from jaxconv.files import whole_file
from jaxconv.tasks.classification.outcomes import (
    Outcomes,
    calibration,
    confusion,
    heights,
    per_class,
)
from jaxconv.tasks.confused import most_confused
from jaxconv.tasks.files import write_rows

# How many classes are named as the worst and as the best, and how many confused pairs.
_NAMED = 3

# Classes per example in a table of predictions.
_TOP = 5


def remark_rows(outcomes: Outcomes, who: str) -> list[tuple[str, str]]:
    """Mistakes, confidence, classes and confusions, as rows; `who` names the predictor."""
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
                f"on average a mistake and the truth have their lowest common ancestor {far:.2f} "
                "levels up in WordNet",
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
                    f"{names[true]} as {names[said]} {count:,}" for true, said, count in pairs
                ),
            )
        )
    return rows


def class_lines(outcomes: Outcomes) -> list[str]:
    """A table of all classes, the worst first, each with its most frequent wrong prediction."""
    found, counts, names = (
        per_class(outcomes),
        confusion(outcomes),
        [short(readable(name), 40) for name in outcomes.class_names],
    )
    mistaken = counts - np.diag(np.diag(counts))
    width = max(map(columns, [*names, "class"]))
    heads = "examples  accuracy [   low,   high]  precision  most often mistaken for"
    lines, (low, high) = [f"{'class':<{width}}  {heads}"], found.interval
    for k in found.ranked():
        other = int(mistaken[k].argmax())
        taken = f"{names[other]} {mistaken[k, other]:,}" if mistaken[k, other] else "-"
        precision = f"{100 * found.precision[k]:7.2f} %" if found.predicted[k] else f"{'-':>9}"
        lines.append(
            f"{padded(names[k], width)}  {found.examples[k]:8,}  {100 * found.accuracy[k]:6.2f} % "
            f"[{100 * low[k]:6.2f}, {100 * high[k]:6.2f}]  {precision}  {taken}"
        )
    return lines


def write_predictions(path: Path, evaluation: Any) -> None:
    """Write the prediction for every example, atomically.

    .npz: `labels` [N], `probabilities` [N, K] float32, `index` [N] (the examples' positions in the
    split), `names` [N], `class_names` [K]. .csv: a line per example: index, name, class, the
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
            write_rows(temporary, _prediction_rows(outcomes, names))


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
        # By logits, as for the error rates: probabilities may be rounded to the same number.
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


def write_confusion(path: Path, evaluation: Any) -> None:
    """Write the confusion matrix, one row per true class, as .csv or as a picture."""
    counts, names = confusion(evaluation.outcomes), evaluation.outcomes.class_names
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".csv":
            rows = ([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
            write_rows(temporary, [["true \\ predicted", *names], *rows])
        else:
            from jaxconv.drawing.confusions import confusions

            figure = confusions(counts, names, most_confused(counts, 10), title=evaluation.name)
            save_figure(figure, temporary, dpi=120)


def write_reliability(path: Path, evaluation: Any) -> None:
    """Draw the reliability diagram into a file."""
    from jaxconv.tasks.classification.accuracy import reliability

    with whole_file(path) as temporary:
        figure = reliability(calibration(evaluation.outcomes), evaluation.name)
        save_figure(figure, temporary, dpi=120)
