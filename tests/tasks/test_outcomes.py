"""Statistics of predictions, against numbers computed by hand, definitions and laws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxconv.data import wordnet
from jaxconv.tasks.classification.accuracy import accuracy_of_classes, reliability
from jaxconv.tasks.classification.intervals import intervals, on_intervals
from jaxconv.tasks.classification.outcomes import (
    Outcomes,
    averaged,
    calibration,
    confused_examples,
    confusion,
    figures,
    heights,
    log_mean,
    per_class,
    within,
    worst,
)
from jaxconv.tasks.confused import most_confused
from jaxconv.train.evaluate import mean_and_spread

ABC = ("a", "b", "c")
# Four examples of three classes: right, second, third, right by a tie.
HAND = Outcomes(
    np.array([0, 1, 2, 1]),
    np.log(np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.25, 0.25], [0.2, 0.4, 0.4]])),
    ABC,
)


def drawn(examples, classes, seed=0, sharpness=2.0):
    random = np.random.default_rng(seed)
    labels, logits = (
        random.integers(0, classes, examples),
        random.normal(0, sharpness, (examples, classes)).astype(np.float32),
    )
    logits[np.arange(examples), labels] += 1
    return Outcomes(labels, logits, tuple(f"class {k}" for k in range(classes)))


def test_by_hand():
    assert HAND.ranks.tolist() == [0, 1, 2, 0] and HAND.predicted.tolist() == [0, 0, 0, 1]
    assert [within(HAND, k).mean() for k in (1, 2, 3)] == [0.5, 0.75, 1]
    np.testing.assert_allclose(
        HAND.losses, [-math.log(p) for p in (0.7, 0.3, 0.25, 0.4)], rtol=1e-6
    )
    assert confusion(HAND).tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    found = per_class(HAND)
    assert (
        found.examples.tolist() == [1, 2, 1]
        and found.right.tolist() == [1, 1, 0]
        and found.predicted.tolist() == [3, 1, 0]
    )
    assert found.accuracy.tolist() == [1, 0.5, 0] and found.ranked().tolist() == [2, 1, 0]
    np.testing.assert_allclose(found.precision, [1 / 3, 1, np.nan])
    # In three bins: 0.4 right, 0.6 and 0.5 wrong between 1/3 and 2/3; 0.7 right above.
    diagram = calibration(HAND, bins=3)
    assert diagram.examples.tolist() == [0, 3, 1]
    np.testing.assert_allclose(diagram.accuracy, [np.nan, 1 / 3, 1])
    np.testing.assert_allclose(diagram.confidence, [np.nan, 0.5, 0.7], rtol=1e-6)
    assert diagram.ece == pytest.approx((3 * (0.5 - 1 / 3) + 0.3) / 4)
    assert most_confused(confusion(HAND), 5) == [(1, 0, 1), (2, 0, 1)]


def test_a_bin_holds_its_upper_edge():
    outcomes = Outcomes(np.array([0, 1]), np.log(np.array([[0.75, 0.25], [0.5, 0.5]])), ("a", "b"))
    assert calibration(outcomes, bins=4).examples.tolist() == [0, 1, 1, 0]
    assert np.isnan(calibration(outcomes, bins=4).accuracy[[0, 3]]).all()


def test_logits_that_are_no_numbers_are_never_right():
    logits = np.array([[np.nan, np.inf, np.nan], [1.0, np.nan, 0.0], [0.0, 3.0, 1.0]], np.float32)
    outcomes = Outcomes(np.array([0, 0, 1]), logits, ABC)
    assert within(outcomes, 1).tolist() == [False, False, True]
    assert np.isnan(outcomes.losses[:2]).all() and outcomes.losses[2] == pytest.approx(
        math.log(1 + math.exp(-3) + math.exp(-2)), rel=1e-6
    )


@pytest.mark.parametrize(
    "labels, logits, words",
    [
        ([0, 3], np.zeros((2, 3)), "label 3 is out of range; .* classes, 3"),
        ([0, -1], np.zeros((2, 3)), "label -1 is out of range"),
        (
            [0, 1],
            np.zeros((2, 2)),
            r"logits \[2, 2\] and index \[2\] do not fit 2 labels and 3 classes",
        ),
        ([], np.zeros((0, 3)), "do not fit 0 labels"),
    ],
)
def test_what_does_not_fit(labels, logits, words):
    with pytest.raises(ValueError, match=words):
        Outcomes(np.array(labels, int), logits, ABC)


def test_against_definitions_written_out():
    """One example after the other, as the textbooks have it."""
    outcomes, bins = drawn(500, 7), 15
    p = np.exp(outcomes.logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    counts, top, loss, gathered = (
        np.zeros((7, 7), int),
        dict.fromkeys((1, 3, 5), 0),
        0.0,
        [[] for _ in range(bins)],
    )
    for row, label in enumerate(outcomes.labels):
        order = sorted(range(7), key=lambda k: -p[row, k])
        counts[label, order[0]] += 1
        loss -= math.log(p[row, label]) / 500
        for k in top:
            top[k] += label in order[:k]
        confidence = p[row, order[0]]
        place = next(m for m in range(bins) if m / bins < confidence <= (m + 1) / bins)
        gathered[place].append((confidence, order[0] == label))
    ece = sum(
        len(each) / 500 * abs(np.mean([c for c, _ in each]) - np.mean([right for _, right in each]))
        for each in gathered
        if each
    )
    assert (confusion(outcomes) == counts).all() and {
        k: within(outcomes, k).sum() for k in top
    } == top
    assert figures(outcomes) == pytest.approx(
        {"loss": loss, "top1": top[1] / 500, "top5": top[5] / 500, "ece": ece}, rel=1e-5
    )
    np.testing.assert_allclose(outcomes.probabilities, p, atol=1e-6)


SETS = st.builds(
    drawn, st.integers(1, 60), st.integers(2, 9), st.integers(0, 10**6), st.floats(0.0, 30.0)
)


@settings(deadline=None, max_examples=50)
@given(SETS, st.integers(0, 10**6))
def test_laws(outcomes, seed):
    counts, found, all_figures = confusion(outcomes), per_class(outcomes), figures(outcomes)
    assert (
        counts.sum()
        == len(outcomes)
        == found.examples.sum()
        == found.predicted.sum()
        == calibration(outcomes).examples.sum()
    )
    assert (counts.sum(axis=1) == found.examples).all() and (np.diag(counts) == found.right).all()
    assert (
        np.trace(counts) == within(outcomes, 1).sum()
        and all_figures["top1"] == within(outcomes, 1).mean()
    )
    assert 0 <= all_figures["ece"] <= 1 and all_figures["loss"] >= 0
    assert all(
        within(outcomes, k).sum() <= within(outcomes, k + 1).sum()
        for k in range(1, len(outcomes.class_names))
    )
    assert within(outcomes, len(outcomes.class_names)).all()
    order = np.random.default_rng(seed).permutation(len(outcomes))
    mixed = Outcomes(outcomes.labels[order], outcomes.logits[order], outcomes.class_names)
    assert figures(mixed) == pytest.approx(all_figures) and (confusion(mixed) == counts).all()


def test_the_interval_of_a_share_is_that_of_the_textbook():
    """p ± 1.96 sqrt(p (1 - p) / N), which the percentiles come to."""
    outcomes = drawn(2000, 10)
    p = figures(outcomes)["top1"]
    low, high = intervals(outcomes, resamples=2000)["top1"]
    half = 1.96 * math.sqrt(p * (1 - p) / 2000)
    assert low == pytest.approx(p - half, abs=0.1 * half) and high == pytest.approx(
        p + half, abs=0.1 * half
    )
    narrower = intervals(outcomes, resamples=2000, confidence=0.5)["top1"]
    assert low < narrower[0] < p < narrower[1] < high


@pytest.mark.parametrize("right", [0.8, 0.9])
def test_intervals_hold_the_truth_19_times_out_of_20(right):
    """Predictions that are 80 % sure and right with a known probability, of which the ECE is 0 or
    10 %: 200 draws of 300 examples.
    """
    truth, held = {"top1": right, "ece": right - 0.8}, {"top1": 0, "ece": 0}
    logits = np.tile(np.log([[0.8, 0.2]]), (300, 1))
    for seed in range(200):
        labels = (np.random.default_rng(seed).random(300) >= right).astype(int)
        found = intervals(Outcomes(labels, logits, ("a", "b")), resamples=200, seed=seed)
        for name, value in truth.items():
            held[name] += found[name][0] - 1e-9 <= value <= found[name][1] + 1e-9
    assert all(180 <= count <= 200 for count in held.values()), held


def test_without_a_mistake_intervals_are_exact():
    """(alpha / 2)^(1 / N), as Clopper and Pearson's interval is there; of the heights that share of
    the greatest height.
    """
    logits, names = np.eye(6) * 9, tuple(f"class {k}" for k in range(6))
    found = intervals(Outcomes(np.arange(6), logits, names), resamples=20)
    assert found["top1"] == found["top5"] == (pytest.approx(0.025 ** (1 / 6)), 1.0)
    none = Outcomes(np.array([0, 1, 2]), logits[[3, 4, 5]] - np.eye(6)[[0, 1, 2]], names)
    between = intervals(none, resamples=20)
    assert between["top1"] == between["top5"] == (0.0, pytest.approx(1 - 0.025 ** (1 / 3)))
    assert (
        "no example is right; among new examples up to 70.76 %"
        in on_intervals(figures(none), between)[0]
    )
    dogs = Outcomes(np.array([0, 1]), np.eye(3)[:2], ("n02109961", "n02110063", "n03481172"))
    farthest = heights(Outcomes(np.array([0]), np.eye(3)[2:], dogs.class_names))[0]
    assert intervals(dogs, resamples=20)["height"] == (
        0.0,
        pytest.approx(farthest * (1 - 0.025**0.5)),
    )


def test_an_ece_above_its_interval_is_explained():
    assert on_intervals({"top1": 0.5, "ece": 0.012}, {"top1": (0.4, 0.6), "ece": (0.0, 0.011)})[
        0
    ].startswith("with so few examples the ECE")
    assert (
        on_intervals({"top1": 0.5, "ece": 0.012}, {"top1": (0.4, 0.6), "ece": (0.0, 0.012)}) == []
    )


def test_the_worst_mistakes_and_the_confused_examples():
    assert worst(HAND, 5).tolist() == [2, 1] and worst(HAND, 1).tolist() == [2]
    assert [
        rows.tolist() for rows in confused_examples(HAND, most_confused(confusion(HAND), 5))
    ] == [[1], [2]]


def test_the_same_seed_draws_the_same():
    outcomes = drawn(100, 8)
    assert (
        intervals(outcomes, 50, seed=3)
        == intervals(outcomes, 50, seed=3)
        != intervals(outcomes, 50, seed=4)
    )
    assert set(intervals(outcomes, 1)) == {"loss", "top1", "top5", "ece"}
    with pytest.raises(ValueError, match="resamples is 0"):
        intervals(outcomes, 0)


IMAGENET = tuple(synset.id for synset in wordnet.synsets().values() if synset.label >= 0)


def test_how_far_a_mistake_is_off():
    husky, malamute, hammer = "n02109961", "n02110063", "n03481172"
    logits = np.eye(3)[[0, 1, 2, 0]]
    outcomes = Outcomes(np.array([0, 0, 0, 0]), logits, (husky, malamute, hammer))
    of = wordnet.heights()
    near, far = (of[wordnet.lowest_common_ancestor(husky, other)] for other in (malamute, hammer))
    assert heights(outcomes).tolist() == [0, near, far, 0] and 0 < near < far
    assert figures(outcomes)["height"] == (near + far) / 4
    assert "height" in intervals(outcomes, 10) and "height" not in figures(HAND)
    with pytest.raises(ValueError, match="not those of WordNet: a, b, c"):
        heights(HAND)


def test_imagenets_classes_by_their_words():
    words = [", ".join(wordnet.synsets()[id].words) for id in IMAGENET]
    assert (
        wordnet.wordnet_ids(words)
        == IMAGENET
        == wordnet.wordnet_ids([text.split(",")[0].replace(" ", "_") for text in words])
    )
    assert wordnet.wordnet_ids(IMAGENET[5:7]) == IMAGENET[5:7]
    assert (
        wordnet.wordnet_ids(words[:999])
        == ()
        == wordnet.wordnet_ids([*words[1:], words[0]])
        == wordnet.wordnet_ids(ABC)
    )


def test_the_average_is_of_probabilities():
    one, other = drawn(20, 4, seed=1), drawn(20, 4, seed=1, sharpness=9.0)
    joint = averaged([one, other])
    np.testing.assert_allclose(
        joint.probabilities, (one.probabilities + other.probabilities) / 2, atol=1e-6
    )
    np.testing.assert_allclose(
        np.exp(log_mean([one.logits, other.logits])).sum(axis=1), 1, atol=1e-6
    )
    assert averaged([one]).logits is one.logits
    with pytest.raises(ValueError, match="different examples"):
        averaged([one, drawn(20, 4, seed=2)])
    assert mean_and_spread([{"loss": 1.0, "x": 2.0}, {"loss": 3.0}]) == {
        "loss": 2.0,
        "loss_spread": pytest.approx(math.sqrt(2)),
    }


def test_the_pictures_show_the_numbers(tmp_path):
    outcomes = drawn(400, 50)
    diagram, found = calibration(outcomes), per_class(outcomes)
    picture = reliability(diagram, "run $a^$b_")
    bars = [patch.get_height() for patch in picture.axes[0].containers[0]]
    np.testing.assert_allclose(bars, diagram.accuracy[diagram.examples > 0])
    assert f"ECE {100 * diagram.ece:.2f} %" in [text.get_text() for text in picture.axes[0].texts]
    picture.savefig(tmp_path / "reliability.png")
    names = [f"${k}^$ a name that is longer than there is room for" for k in range(50)]
    picture = accuracy_of_classes(found, names, "run $a^$b_")
    widths = [patch.get_width() for patch in picture.axes[0].containers[0]]
    ranked = found.ranked()
    np.testing.assert_allclose(widths, 100 * found.accuracy[[*ranked[:20], *ranked[-20:]]])
    assert f"{len(ranked) - 40} classes between" in [
        text.get_text() for text in picture.axes[0].texts
    ]
    picture.savefig(tmp_path / "classes.png")
    assert len(accuracy_of_classes(per_class(HAND), ABC).axes[0].containers[0]) == 3
