"""Exact intervals of shares: those of scipy, and what follows from one more mistake."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from jaxconv.tasks import Figure, Task
from jaxconv.tasks.classification.intervals import intervals
from jaxconv.tasks.classification.outcomes import Outcomes, per_class
from jaxconv.tasks.classification.tables import class_lines
from jaxconv.tasks.intervals import exact_interval, share_interval
from jaxconv.tasks.task import Measured


@given(st.integers(1, 10**6), st.floats(0, 1), st.sampled_from([0.5, 0.95, 0.99]))
def test_they_are_scipys(examples, share, confidence):
    right = round(share * examples)
    wanted = binomtest(right, examples).proportion_ci(confidence, "exact")
    found = share_interval(right, examples, confidence)
    assert found == pytest.approx((wanted.low, wanted.high), rel=1e-6, abs=1e-9)


def test_every_further_mistake_lowers_both_ends():
    """One wrong of 2,000 had a higher lower end than none by the bootstrap."""
    low, high = share_interval(np.arange(2001), 2000)
    assert (np.diff(low) > 0).all() and (np.diff(high) > 0).all()
    assert low[-1] == pytest.approx(0.9981573, abs=1e-6) and high[-1] == 1 and low[0] == 0
    assert low[-2] == pytest.approx(0.9972174, abs=1e-6) and high[-2] < 1
    assert share_interval(0, 0) == (0, 1)


def outcomes(labels, predicted, classes=6):
    names = tuple(f"class {k}" for k in range(classes))
    return Outcomes(np.array(labels), 9.0 * np.eye(classes)[predicted], names)


def test_shares_of_a_classification():
    """Top-1 and top-5 of the whole set, and the accuracy of each class, without a seed."""
    found = outcomes([0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 1, 5])
    between = intervals(found, resamples=1)
    assert between["top1"] == pytest.approx(tuple(binomtest(5, 7).proportion_ci(0.95)))
    assert between["top5"] == exact_interval(np.ones(7))
    low, high = per_class(found).interval
    for k, (right, examples) in enumerate(((3, 4), (2, 2), (0, 1))):
        wanted = binomtest(right, examples).proportion_ci(0.95)
        assert (low[k], high[k]) == pytest.approx((wanted.low, wanted.high))
    assert "   75.00 % [ 19.41,  99.37]" in class_lines(found)[2]


def test_shares_of_a_task_of_ones_own():
    class Hits(Task):
        figures = (Figure("hit", "hits", share=True, higher=True), Figure("error", "error"))

    hits = np.array([1.0, 1.0, 0.0, 1.0])
    task = object.__new__(Hits)
    for error in (hits, np.array([0.5, 1, 2, 3])):
        found = task.intervals(Measured({"hit": hits, "error": error}, np.arange(4)), 50)
        assert found["hit"] == exact_interval(hits) and found["error"] != found["hit"]
    # A share whose values lie in between is no count.
    found = task.intervals(Measured({"hit": hits / 2}, np.arange(4)), 50)
    assert found["hit"] != exact_interval(hits) and found["hit"][1] <= 0.5
