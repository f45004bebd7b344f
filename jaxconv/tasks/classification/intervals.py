"""Confidence intervals of the figures of a set: exact ones of shares, the rest by the bootstrap."""

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
from jaxconv.tasks.intervals import CONFIDENCE, exact_interval

# Values of the matrix of resamples that are processed at once: 32 MB.
_AT_ONCE = 2**23


def intervals(
    outcomes: Outcomes,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    bins: int = BINS,
) -> dict[str, tuple[float, float]]:
    """Confidence intervals (low, high) of the figures of `figures`.

    Those of the shares `top1` and `top5` are the exact ones of a binomial proportion (Clopper and
    Pearson 1934). For the others the examples are resampled, with replacement, `resamples` times
    (Efron and Tibshirani 1993, chapter 13). The interval of a mean is between percentiles of the
    resamples' means. The ECE of resamples is biased upwards, by about as much as that of the set
    itself (noise only adds to each bin's gap), so its percentiles are mirrored at the set's ECE and
    clipped at 0: the basic bootstrap (Davison and Hinkley 1997, section 5.2). An ECE may therefore
    lie above its own interval, see `on_intervals`. Where no prediction or every one is as far off
    in WordNet as it can be, all resamples are alike: then the height's interval is that of a share
    of the greatest height.

    Args:
      outcomes: of N examples.
      resamples: how many.
      seed: of the resampling; sets of equal size are resampled alike with the same seed.
      confidence: of the intervals.
      bins: of the ECE.

    Raises:
      ValueError: `resamples` is less than 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    values, count = per_example(outcomes), len(outcomes)
    place, gaps = bin_of(outcomes, bins), outcomes.confidence - within(outcomes, 1)
    columns = np.column_stack([*values.values(), np.eye(bins)[place] * gaps[:, None]]).astype(
        np.float32
    )
    random, sums, at_once = np.random.default_rng(seed), [], max(1, _AT_ONCE // count)
    for first in range(0, resamples, at_once):
        # How often each example is drawn, one row per resample.
        times = np.empty((min(at_once, resamples - first), count), np.float32)
        for row in times:
            row[:] = np.bincount(
                random.integers(count, size=count, dtype=np.int32), minlength=count
            )
        sums.append(times @ columns)
    drawn = np.concatenate(sums).astype(np.float64) / count
    tails = 100 * np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    found = {name: np.percentile(drawn[:, column], tails) for column, name in enumerate(values)}
    found |= {
        name: exact_interval(values[name], confidence)
        for name in ("top1", "top5")
        if name in values
    }
    if wordnet_ids(outcomes.class_names):
        greatest = greatest_height(outcomes)
        share = values["height"] / greatest
        if (share == share[0]).all() and share[0] in (0, 1):
            found["height"] = greatest * np.array(exact_interval(share, confidence))
    ece = np.percentile(np.abs(drawn[:, len(values) :]).sum(axis=1), tails)
    found["ece"] = np.maximum(0, 2 * calibration(outcomes, bins).ece - ece[::-1])
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def on_intervals(
    found: Mapping[str, float], between: Mapping[str, tuple[float, float]]
) -> list[str]:
    """Sentences on surprising `intervals`: exact ones, and an ECE outside its own interval."""
    said = []
    if found["top1"] in (0, 1):
        share = between["top1"][1] if found["top1"] == 0 else 1 - between["top1"][0]
        what = "right" if found["top1"] == 0 else "wrong"
        said.append(
            f"no example is {what}; among new examples up to {100 * share:.2f} % may be, by the "
            "exact interval of a share (Clopper and Pearson)"
        )
    if found["ece"] > between["ece"][1] + 5e-5:  # a difference that is visible in the output
        said.append(
            "with so few examples the ECE is biased upwards; its interval is corrected for that "
            "and lies below it"
        )
    return said
