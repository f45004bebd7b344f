"""Mistakes in loops of one's own: errors that say what is wrong and what to do."""

import jax
import numpy as np
import optax
import pytest
from flax.training import train_state

import jaxconv

images = np.zeros((4, 8, 8, 1), np.float32)
network = jaxconv.create_model("chain", num_classes=3, filters=(4,))
optimizer = optax.sgd(0.1)
state = jaxconv.create_state(network, optimizer, jax.random.key(0), images)
train = jax.jit(jaxconv.make_train_step(network, optimizer))
evaluate = jax.jit(jaxconv.make_eval_step(network))


@pytest.mark.parametrize(
    "batch, words",
    [
        ({"labels": np.arange(4) % 3}, "the batch has image, labels.*; it must have `label`"),
        ({"label": np.zeros((4, 1), np.int32)}, r"int32 \[4, 1\] .* integer labels \[4\]"),
        ({"label": np.zeros(4, np.float32)}, r"float32 \[4\] .* integer labels \[4\]"),
        ({"label": np.zeros(5, np.int32)}, r"int32 \[5\] .* integer labels \[4\]"),
    ],
)
def test_labels(batch, words):
    batch = {"image": images} | batch
    with pytest.raises(ValueError, match=words):
        train(state, batch, jax.random.key(0))
    with pytest.raises(ValueError, match=words):
        evaluate(state, batch)


def test_states():
    batch = {"image": images, "label": np.arange(4) % 3}
    settings = {"apply_fn": network.apply, "tx": optimizer}
    other = train_state.TrainState.create(params=state.params, **settings)
    with pytest.raises(TypeError, match="flax.*TrainState; it must be what jaxconv.create_state"):
        train(other, batch, jax.random.key(0))
    for wrong, found in ((other, "TrainState"), (state.params, "a dict with conv1_1, votes")):
        with pytest.raises(TypeError, match=f"the state is {found}.* network's variables"):
            evaluate(wrong, batch)
