"""A loop in the manner of big_vision: parameters alone, one update function, no mutable state.

With `norm="group"` a network has no collection but `params`, so that the whole state is
(params, opt).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxconv
from jaxconv.data.xo import draw_split

STEPS, BATCH = 30, 32


def train(norm: str):
    """The losses of all steps, and the share of the test images that are right after them."""
    sets = [draw_split(s, 16, train_examples=256, test_examples=64) for s in ("train", "test")]
    model = jaxconv.create_model("resnet20_cifar", num_classes=2, units=(1, 1), norm=norm)

    @jax.jit
    def init(rng):
        params = model.init(rng, jnp.zeros((1, 16, 16, 1)), train=False)
        return {"params": params.pop("params"), "rest": params}

    variables = init(jax.random.key(0))
    assert not variables["rest"], "this loop has no place for mutable state"
    params = variables["params"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 5, STEPS)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-3))
    opt = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update_fn(params, opt, rng, images, labels):
        def loss_fn(params):
            logits = model.apply({"params": params}, images, train=True, rngs={"dropout": rng})
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, loss

    @jax.jit
    def predict_fn(params, images):
        return model.apply({"params": params}, images, train=False).argmax(-1)

    images, test_images = (np.float32(s.images) / 127.5 - 1 for s in sets)
    losses = []
    for step in range(STEPS):
        rows = np.arange(step * BATCH, (step + 1) * BATCH) % len(images)
        rng = jax.random.fold_in(jax.random.key(1), step)
        params, opt, loss = update_fn(params, opt, rng, images[rows], sets[0].labels[rows])
        losses.append(float(loss))
    return losses, np.mean(predict_fn(params, test_images) == sets[1].labels)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_parameters_alone_are_trained(norm):
    losses, right = train(norm)
    assert losses[-1] < 0.05 and right > 0.95


def test_batchnorm_has_state_that_this_loop_would_lose():
    with pytest.raises(AssertionError, match="no place for mutable state"):
        train("batch")
