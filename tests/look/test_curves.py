"""The curves show the numbers."""

from jaxconv.look.curves import loss_and_accuracy

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
