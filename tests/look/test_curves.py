"""The curves show the logged numbers."""

from jaxconv.look.curves import loss_and_accuracy, sweep_curves

ROWS = [
    {"step": 5, "train/loss": 2.0, "train/top1": 0.1},
    {"step": 10, "train/loss": 1.0, "train/top1": 0.4, "eval/loss": 1.5, "eval/top1": 0.3},
]


def lines(panel):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in panel.lines}


def test_one_run():
    loss, accuracy = loss_and_accuracy({"run": ROWS}).axes
    assert lines(loss) == {"train": [(5, 2.0), (10, 1.0)], "eval": [(10, 1.5)]}
    assert lines(accuracy) == {"train": [(5, 0.1), (10, 0.4)], "eval": [(10, 0.3)]}
    assert loss.get_xlabel() == "step" and "nats" in loss.get_title()


def test_several_runs_and_none():
    loss, _ = loss_and_accuracy({"a": ROWS, "b": ROWS[:1]}).axes
    assert set(lines(loss)) == {"a, train", "a, eval", "b, train"}
    assert loss_and_accuracy({"empty": []}).axes[0].lines[:] == []


def test_sweep_against_a_key():
    figure = sweep_curves(
        {"a": ROWS, "b": ROWS[:1]},
        "rate",
        {"": [(0.1, 1.0, 0.5), (0.01, 3.0, 0.2), (0.1, 2.0, 0.7)]},
    )
    curves, _, loss, accuracy = figure.axes
    assert set(lines(curves)) == {"a, train", "a, eval", "b, train"}
    means, points = loss.lines
    assert list(zip(*means.get_data(), strict=True)) == [(0.01, 3.0), (0.1, 1.5)]
    assert sorted(zip(*points.get_data(), strict=True)) == [(0.01, 3.0), (0.1, 1.0), (0.1, 2.0)]
    assert [y for _, y in zip(*accuracy.lines[1].get_data(), strict=True)] == [0.5, 0.2, 0.7]
    assert loss.get_xlabel() == "rate" and loss.get_xscale() == "log" and loss.get_legend() is None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    _, _, loss, _ = sweep_curves({}, "rate", {"x": [(1, 1, 1)], "$y$": [(2, 2, 2)]}).axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [
        "x",
        "$y$",
    ] and loss.get_xscale() == "linear"


def test_sweep_over_no_number_and_of_many_runs():
    figure = sweep_curves({str(n): ROWS for n in range(30)}, "", {})
    assert len(figure.axes) == 2 and len(figure.axes[0].lines) == 60 and not figure.legends
