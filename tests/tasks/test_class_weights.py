"""Class weights in the training loss: their text, their effect, and the normalization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.data.interface import Arrays
from jaxconv.errors import UserError
from jaxconv.run import train
from jaxconv.tasks.classification.losses import binary_cross_entropy, cross_entropy
from jaxconv.tasks.classification.weights import class_weights, weighted
from jaxconv.train.restore import restore_run
from jaxconv.train.workdir import read_metrics, saved_data
from tests.conftest import tiny_config

NAMES = ("cat", "dog", "fox, red")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1,2.5,0", [1, 2.5, 0]),
        ("dog:3", [1, 3, 1]),
        ("fox, red:2,cat:0.5", [0.5, 1, 2]),
    ],
)
def test_texts(text, wanted):
    np.testing.assert_array_equal(class_weights(text, NAMES), np.float32(wanted))


def test_balanced_weighs_every_class_alike():
    """By scikit-learn's formula; the mean weight of the training examples is 1."""
    found = class_weights("balanced", NAMES, [30, 10, 20])
    np.testing.assert_allclose(found, [60 / 90, 60 / 30, 60 / 60])
    np.testing.assert_allclose(found @ [30, 10, 20], 60)
    np.testing.assert_allclose(class_weights("balanced", NAMES, [30, 0, 10]), [40 / 60, 1, 2])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2", "has 2 numbers, but there are 3 classes"),
        ("dgo:2", "names 'dgo', which is not a class, did you mean 'dog'"),
        ("1,-2,1", "'-2' is not a number of at least 0"),
        ("1,inf,1", "'inf' is not a number"),
        ("balance", "'balance' is not a number .*or balanced"),
        ("dog:much", "'much' is not a number"),
        ("0,0,0", "no class counts"),
        ("balanced", "needs the labels"),
    ],
)
def test_wrong_texts(text, words):
    with pytest.raises(UserError, match=words):
        class_weights(text, NAMES)


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_the_loss_is_weighted_by_class_and_by_shares(loss):
    logits = jax.random.normal(jax.random.key(0), (4, 3))
    weights, labels = np.array([0.5, 2, 1], np.float32), jnp.array([0, 1, 2, 1])
    of = weighted(loss, weights)
    np.testing.assert_allclose(
        of(logits, labels), weights[labels] * loss(logits, labels), rtol=1e-6
    )
    whole = jax.nn.one_hot(labels, 3)
    np.testing.assert_allclose(of(logits, whole), of(logits, labels), rtol=1e-6)
    mixed = 0.75 * whole + 0.25 * whole[::-1]
    shares = 0.75 * weights[labels] + 0.25 * weights[labels[::-1]]
    np.testing.assert_allclose(of(logits, mixed), shares * loss(logits, mixed), rtol=1e-6)


def test_another_task_refuses_them(tmp_path):
    config = tiny_config(loss__class_weights="1,2")
    config.task.name = "experiments/own_task.py:Angle"
    config.data.source = "experiments/own_task.py:draw"
    with pytest.raises(UserError, match="loss.class_weights: the task .* does not use it"):
        train(config, str(tmp_path))


def sources():
    """48 examples of one class and 16 of the other."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (64, 16, 16, 1), np.uint8)
    source = Arrays(images, (np.arange(64) % 4 == 0).astype(np.int32), ("o", "x"))
    return source, source


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"parallel": "pmap"},
        {"accumulate": 2},
        {"parallel": "fsdp", "accumulate": 2},
        {"steps_per_call": 2, "log__every": 2},
    ],
)
def test_every_way_of_computing_gives_the_same(tmp_path, how):
    settings = {
        "loss__class_weights": "balanced",
        "augment__mixup": 0.2,
        "model__kwargs__dropout": 0.0,
    }
    settings |= {"steps": 4, "batch_size": 16}
    train(tiny_config(**settings), str(tmp_path / "jit"), sources=sources())
    train(tiny_config(**settings, **how), str(tmp_path / "other"), sources=sources())
    assert saved_data(tmp_path / "jit")["class_counts"] == [48, 16]
    (a, _), (b, _) = restore_run(tmp_path / "jit"), restore_run(tmp_path / "other")
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6), a.params, b.params
    )


@pytest.mark.slow
def test_weights_are_as_good_as_repeated_examples(tmp_path, one_device):
    """A batch with the weights 1, 3 gives the loss of one that has each of the second 3 times."""
    (source, _), losses = sources(), {}
    twice = np.concatenate([np.arange(64), *(2 * [np.arange(0, 64, 4)])])
    repeated = Arrays(source.images[twice], source.labels[twice], ("o", "x"))
    for name, (examples, weights) in {
        "weighted": (source, "1,3"),
        "repeated": (repeated, ""),
    }.items():
        config = tiny_config(
            batch_size=len(examples),
            steps=1,
            log__every=1,
            loss__class_weights=weights,
            optimizer__schedule__warmup_steps=0,
        )
        train(config, str(tmp_path / name), devices=one_device, sources=(examples, source))
        losses[name] = read_metrics(tmp_path / name)[0]["train/loss"]
    assert losses["weighted"] * 64 == pytest.approx(losses["repeated"] * 96, rel=1e-5)
