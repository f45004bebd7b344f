"""How sure one can be of the figures of a set of examples: by the bootstrap, and exactly where
there is nothing to resample.
"""

from collections.abc import Mapping

import numpy as np

from jaxconv.data.wordnet import wordnet_ids
from jaxconv.tasks.classification.outcomes import (
    BINS,
    Outcomes,
    bin_of,
    calibration,
    greatest_height,
    per_example,
    within,
)
from jaxconv.tasks.task import CONFIDENCE

# Values of the matrix of resamples that are worked off at once: 32 MB.
_AT_ONCE = 2**23


def intervals(
    outcomes: Outcomes,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    bins: int = BINS,
) -> dict[str, tuple[float, float]]:
    """What the figures of `figures` may have been by another draw of as many examples: (low, high)
    of each, by the bootstrap.

    The examples are drawn anew, with replacement, `resamples` times (Efron and Tibshirani 1993,
    chapter 13). The interval of a mean is between percentiles of the resamples' means. The ECE of
    resamples is too large, by about as much as that of the set itself (noise adds to every bin's
    gap, and never takes away), so that its percentiles are mirrored at the set's ECE, and cut off
    at 0: the basic bootstrap (Davison and Hinkley 1997, section 5.2). So an ECE may lie above its
    own interval, see `on_intervals`. Where all examples are alike, as without a mistake, so are all
    resamples: then the interval of a share is the exact one of a binomial share (Clopper and
    Pearson 1934).

    Args:
      outcomes: of N examples.
      resamples: how many.
      seed: of the draws; the same seed draws the same examples of any set of as many.
      confidence: of the intervals.
      bins: of the ECE.

    Raises:
      ValueError: fewer than 1 resample.
    """
    if resamples < 1:
        raise ValueError(f"{resamples} resamples; it must be at least 1")
    values, count = per_example(outcomes), len(outcomes)
    place, gaps = bin_of(outcomes, bins), outcomes.confidence - within(outcomes, 1)
    columns = np.column_stack([*values.values(), np.eye(bins)[place] * gaps[:, None]]).astype(
        np.float32
    )
    random, sums, at_once = np.random.default_rng(seed), [], max(1, _AT_ONCE // count)
    for first in range(0, resamples, at_once):
        # How often each example is drawn, a row for each resample.
        times = np.empty((min(at_once, resamples - first), count), np.float32)
        for row in times:
            row[:] = np.bincount(
                random.integers(count, size=count, dtype=np.int32), minlength=count
            )
        sums.append(times @ columns)
    drawn = np.concatenate(sums).astype(np.float64) / count
    tails = 100 * np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    found = {name: np.percentile(drawn[:, column], tails) for column, name in enumerate(values)}
    for name, greatest in _greatest(outcomes).items():
        if (values[name] == values[name][0]).all() and values[name][0] in (0, greatest):
            found[name] = _exact(values[name][0], count, confidence, greatest)
    ece = np.percentile(np.abs(drawn[:, len(values) :]).sum(axis=1), tails)
    found["ece"] = np.maximum(0, 2 * calibration(outcomes, bins).ece - ece[::-1])
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def on_intervals(
    found: Mapping[str, float], between: Mapping[str, tuple[float, float]]
) -> list[str]:
    """Sentences on what may surprise in the `intervals` of `figures`: exact ones, and an ECE
    outside of its own.
    """
    said = []
    if found["top1"] in (0, 1):
        share = between["top1"][1] if found["top1"] == 0 else 1 - between["top1"][0]
        what = "right" if found["top1"] == 0 else "wrong"
        said.append(
            f"no example is {what}; of others up to {100 * share:.2f} % may be, by the exact "
            "interval of a share (Clopper and Pearson)"
        )
    if found["ece"] > between["ece"][1] + 5e-5:  # by more than is shown
        said.append(
            "of so few examples the ECE comes out too large; its interval is corrected for that, "
            "and lies below it"
        )
    return said


def _greatest(outcomes: Outcomes) -> dict[str, float]:
    """The greatest value that one example can have, of the figures that are 0 or that value for
    every example of a perfect network.
    """
    greatest = {"top1": 1.0} | ({"top5": 1.0} if len(outcomes.class_names) > 5 else {})
    return greatest | (
        {"height": greatest_height(outcomes)} if wordnet_ids(outcomes.class_names) else {}
    )


def _exact(value: float, count: int, confidence: float, greatest: float) -> tuple[float, float]:
    """The interval of the mean of `count` values that were all 0 or all the greatest: with shares 0
    and 1 that of Clopper and Pearson.
    """
    least = ((1 - confidence) / 2) ** (1 / count)  # of a share of 1
    return (0.0, greatest * (1 - least)) if value == 0 else (value * least, float(value))
