"""Exact confidence intervals of shares, such as an accuracy."""

import numpy as np

# Confidence level of the intervals.
CONFIDENCE = 0.95


def share_interval(
    right: np.ndarray | float, examples: np.ndarray | int, confidence: float = CONFIDENCE
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of the share of examples that are right, by Clopper and Pearson 1934.

    It is the exact interval of a binomial proportion: that of `scipy.stats.binomtest`.

    Args:
      right, examples: counts, of the same shape or broadcast; without examples the interval is from
        0 to 1.
      confidence: of the interval.
    """
    from scipy.special import betaincinv

    right, examples = np.asarray(right, np.float64), np.asarray(examples, np.float64)
    tail, wrong = (1 - confidence) / 2, examples - right
    # The quantiles of beta distributions, which are not defined at 0 and 1.
    low = betaincinv(np.maximum(right, 1), wrong + 1, tail)
    high = betaincinv(right + 1, np.maximum(wrong, 1), 1 - tail)
    return np.where(right > 0, low, 0.0), np.where(wrong > 0, high, 1.0)


def is_share(values: np.ndarray) -> bool:
    """Whether every one of the values [N] is 0 or 1, so that their mean is a share of N."""
    return bool(np.isin(values, (0, 1)).all())


def exact_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """(low, high) of the mean of values [N] that are 0 or 1; see `share_interval`."""
    low, high = share_interval(np.sum(values), len(values), confidence)
    return float(low), float(high)
