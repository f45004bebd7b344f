"""A network as a part of an Equinox model: its `init` and `apply` inside of an `eqx.Module`.

The module's parameters are leaves of the Equinox model; BatchNorm's statistics go in and out.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxconv

STEPS = 10
images = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
labels = jnp.arange(8) % 4


class Classifier(eqx.Module):
    """Our features, and a head of Equinox's own."""

    params: dict
    head: eqx.nn.MLP
    network: nn.Module = eqx.field(static=True)

    def __init__(self, key):
        keys = jax.random.split(key)
        self.network = jaxconv.create_model("resnet20_cifar", num_classes=0, units=(1, 1))
        self.params = self.network.init(keys[0], images[:1], train=False)["params"]
        self.head = eqx.nn.MLP(32, 4, width_size=16, depth=1, key=keys[1])

    def __call__(self, stats, x, train):
        """Logits [N, 4], and the statistics after this batch."""
        features, state = self.network.apply(
            {"params": self.params, "batch_stats": stats}, x, train=train, mutable=["batch_stats"]
        )
        return jax.vmap(self.head)(features), state["batch_stats"]


def loss_fn(model, stats):
    logits, stats = model(stats, images, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), stats


optimizer = optax.adam(0.01)


@eqx.filter_jit
def step(model, stats, opt_state):
    (loss, stats), grads = eqx.filter_value_and_grad(loss_fn, has_aux=True)(model, stats)
    updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), stats, opt_state, loss


def test_an_equinox_model_with_our_features_learns():
    model = Classifier(jax.random.key(0))
    first = model.network.init(jax.random.key(0), images[:1], train=False)["batch_stats"]
    stats, opt_state, losses = first, optimizer.init(eqx.filter(model, eqx.is_array)), []
    for _ in range(STEPS):
        model, stats, opt_state, loss = step(model, stats, opt_state)
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]
    assert np.abs(stats["conv1"]["norm"]["mean"] - first["conv1"]["norm"]["mean"]).max() > 0.01


def test_its_gradients_are_those_of_the_pure_functions():
    model = Classifier(jax.random.key(0))
    stats = model.network.init(jax.random.key(0), images[:1], train=False)["batch_stats"]
    (loss, _), grads = eqx.filter_value_and_grad(loss_fn, has_aux=True)(model, stats)

    def plain(params):
        features, _ = model.network.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        logits = jax.vmap(model.head)(features)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(8), labels])

    wanted, wanted_grads = jax.value_and_grad(plain)(model.params)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        grads.params,
        wanted_grads,
    )


def test_a_model_is_saved_and_loaded_by_equinox(tmp_path):
    model = Classifier(jax.random.key(0))
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", model)
    other = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", Classifier(jax.random.key(7)))
    assert eqx.tree_equal(model, other)
