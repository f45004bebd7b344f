"""The live trainer: it learns, starts, pauses, steps and rebuilds, and refuses bad values."""

import time

import jax
import numpy as np
import pytest

from jaxconv.data import xo
from jaxconv.errors import UserError
from jaxconv.playground.learner import Settings
from jaxconv.playground.trainer import Trainer, read, variation_of
from tests.conftest import write_images
from tests.playground.serving import SMALL, parts, until, xo_config


@pytest.fixture
def trainer():
    trainer = Trainer(xo_config(), (16, 16, 1), xo.CLASS_NAMES, lambda: None)
    trainer.set(SMALL)
    until(lambda: trainer.status == "paused")
    yield trainer
    trainer.close()


def share_right(trainer, count=100):
    """The accuracy on X's and O's of neither its training nor its test split."""
    shown, variables = trainer.network
    drawn = [xo.draw(7, "others", i, 16, trainer.variation) for i in range(count)]
    return np.mean(
        [
            parts(shown.answer(variables, image, {}))[0]["best"] == xo.CLASS_NAMES[label]
            for image, label in drawn
        ]
    )


def test_it_learns_and_pauses(trainer):
    assert trainer.step == 0 and not trainer.points
    before = share_right(trainer)
    trainer.start()
    until(lambda: trainer.points and trainer.points[-1].accuracy > 0.97 and trainer.step > 100)
    trainer.pause()
    until(lambda: trainer.status == "paused")
    step = trainer.step
    time.sleep(0.2)
    assert trainer.step == step < 1000
    assert trainer.points[-1].step == step and trainer.points[-1].loss < trainer.points[0].loss / 4
    assert share_right(trainer) > max(0.94, before)
    trainer.start()
    until(lambda: trainer.step > step)


def test_a_stroke_holds_it(trainer):
    trainer.start()
    until(lambda: trainer.step > 3)
    trainer.hold()
    trainer.hold()
    trainer.release()
    time.sleep(0.3)  # the step in progress
    step = trainer.step
    time.sleep(0.2)
    assert trainer.step == step and trainer.status == "training"
    trainer.release()
    until(lambda: trainer.step > step)


def test_a_step_is_one_step_and_a_rate_compiles_nothing(trainer):
    built, weights = trainer.network
    trainer.set(rate=0.0)
    for number in (1, 2):
        trainer.do_step()
        until(lambda number=number: len(trainer.points) == number)
        time.sleep(0.1)
        assert trainer.step == len(trainer.points) == number
    jax.tree.map(np.testing.assert_array_equal, weights, trainer.network[1])
    trainer.set(rate=0.1)
    trainer.do_step()
    until(lambda: len(trainer.points) == 3)
    assert trainer.network[0] is built
    assert all(
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(weights), jax.tree.leaves(trainer.network[1]), strict=True)
    )


def test_other_filters_make_another_network(trainer):
    trainer.do_step()
    until(lambda: len(trainer.points) == 1)
    assert trainer.parameters == (9 * 6 + 6) + (9 * 6 * 8 + 8) + (4 * 4 * 8 * 16 + 16) + (
        16 * 2 + 2
    )
    trainer.set(
        Settings(
            filters=(4,), filter_size=5, pool_window=3, pool_stride=3, neurons=(), batch_size=8
        )
    )
    until(lambda: trainer.step == 0 and trainer.status == "paused")
    # (16 - 3)/3 + 1 is 5, rounded down.
    assert trainer.parameters == (25 * 4 + 4) + (5 * 5 * 4 * 2 + 2)
    assert [(stage.name, stage.shape) for stage in trainer.network[0].stages] == [
        ("conv1_1", (16, 16, 4)),
        ("ReLU", (16, 16, 4)),
        ("pool1", (5, 5, 4)),
    ]
    assert not trainer.points


def test_begin_anew_has_other_weights(trainer):
    trainer.do_step()
    until(lambda: len(trainer.points) == 1)
    weights = trainer.network[1]["params"]["conv1_1"]["kernel"]
    trainer.begin()
    until(lambda: trainer.step == 0 and trainer.status == "paused")
    assert np.any(trainer.network[1]["params"]["conv1_1"]["kernel"] != weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"filters": (4, 4), "pool_window": 5, "pool_stride": 5},
            r"pool2: \(3 - 5\)/5 \+ 1 = 0.60: a 5-wide window is larger than 3",
        ),
        (
            {"pool_window": 3, "rounding": "exact"},
            r"pool1: \(16 - 3\)/2 \+ 1 = 7.50: a 3-wide window at stride 2 does not fit 16",
        ),
        (
            {"filter_size": 4},
            r"filter size: keeping the size needs padding \(4 - 1\)/2 = 1.5, which is not a whole "
            r"number: choose an odd size",
        ),
        ({"filters": 3}, "filters: 3 is not a list of numbers"),
        ({"neurons": 3}, "neurons: 3 is not a list of numbers"),
        ({"pool_window": (2,)}, r"pool window: \(2,\) is not one number"),
        ({"filters": (8, 100)}, "filters: 100 is not a whole number from 1 to 64"),
        ({"filters": ()}, "filters: 0 numbers; give 1 to 4, one per layer"),
        ({"neurons": (8,) * 9}, "neurons: 9 numbers; give up to 3, one per layer"),
        ({"pool_stride": 2.5}, "pool stride: 2.5 is not a whole number"),
        ({"pool_stride": None}, "pool stride: None is not a whole number from 1 to 5"),
        ({"batch_size": True}, "batch size: True is not"),
        ({"rounding": "up"}, "rounding is 'up'"),
    ],
)
def test_what_does_not_fit_is_said_and_changes_nothing(trainer, settings, message):
    with pytest.raises(UserError, match=message):
        trainer.set(Settings(**settings))
    assert trainer.settings == SMALL and trainer.status == "paused"


def test_a_loss_that_is_no_number_stops_it_with_a_word(trainer):
    with pytest.raises(UserError, match="the learning rate is 11; it must be between 0 and 10"):
        trainer.set(rate=11)
    with trainer._wake:
        trainer._state = trainer._state.replace(
            params=jax.tree.map(lambda x: x * np.inf, trainer._state.params)
        )
    trainer.start()
    until(lambda: trainer.status == "stopped")
    assert (
        trainer.message
        == "the loss is nan after step 1: the learning rate is too high; lower it and reset"
    )
    header, *_ = parts(
        trainer.network[0].answer(trainer.network[1], np.zeros((16, 16, 1), np.uint8), {})
    )
    assert all(vote["vote"] is None for vote in header["votes"])
    assert all(part["peak"] is None for part in (header["filters"], *header["stages"]))
    trainer.begin()
    until(lambda: trainer.status == "paused" and trainer.step == 0)
    trainer.do_step()
    until(lambda: len(trainer.points) == 1)
    assert np.isfinite(trainer.points[-1].loss)


def test_other_pictures_keep_the_network(trainer):
    trainer.do_step()
    until(lambda: len(trainer.points) == 1)
    trainer.set(variation=xo.Variation())
    trainer.do_step()
    until(lambda: len(trainer.points) == 2)
    _, train, _ = trainer._data
    assert len(np.unique(train.images, axis=0)) == 2  # one X and one O


def test_trouble_in_the_thread_is_said(trainer, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr("jaxconv.playground.trainer.read", fail)
    trainer.start()
    until(lambda: trainer.status == "stopped")
    assert trainer.message == "RuntimeError: no memory"


def test_pictures_of_a_folder(tmp_path):
    config = xo_config()
    config.data.source = f"folder:{write_images(tmp_path)}"
    train, test = read(config, (8, 8, 3), variation_of(config))
    assert train.images.shape == test.images.shape == (12, 8, 8, 3)
    with pytest.raises(
        UserError, match=r"are \(8, 8, 3\), but the network of the run takes \(16, 16, 3\)"
    ):
        read(config, (16, 16, 3), variation_of(config))
    config.data.resident_limit = 100
    with pytest.raises(
        UserError, match=r"has 2,304 bytes of pictures; the playground trains only from memory"
    ):
        read(config, (8, 8, 3), variation_of(config))
