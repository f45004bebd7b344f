"""`shard_map` over four devices, BatchNorm synchronised over them: the result of one device.

By default `shard_map` follows which values differ between devices, and sums the gradients of those
that do not. An own step therefore takes the mean of the loss over the devices, and no mean of the
gradients; `make_train_step` gives the same whether `check_vma` is on or off.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jaxconv

STEPS = 2
optimizer = optax.sgd(0.1, momentum=0.9)
batch = {
    "image": jax.random.normal(jax.random.key(1), (8, 8, 8, 3)),
    "label": jnp.arange(8) % 4,
}


def network(axis_name=None):
    return jaxconv.create_model("resnet20_cifar", 4, axis_name=axis_name, units=(1,), width=8)


def mesh():
    return Mesh(np.array(jax.devices()[:4]), ("data",))


def first_state(**settings):
    key = jax.random.key(0)
    return jaxconv.create_state(network(), optimizer, key, batch["image"], **settings)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), a, b)


def own_step(axis_name):
    """A user's own step with our network, on one device or inside of `shard_map`."""
    model = network(axis_name)

    def step(variables, opt_state, images, labels):
        def loss_fn(params):
            logits, state = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return (loss if axis_name is None else jax.lax.pmean(loss, axis_name)), state

        (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **state}, opt_state, loss

    return step


def test_an_own_step_on_four_devices_is_that_on_one():
    parts = (P(), P(), P("data"), P("data"))
    four = jax.jit(jax.shard_map(own_step("data"), mesh=mesh(), in_specs=parts, out_specs=P()))
    results = []
    for step in (jax.jit(own_step(None)), four):
        state = first_state()
        variables, opt_state = state.variables, state.opt_state
        for _ in range(STEPS):
            variables, opt_state, loss = step(variables, opt_state, *batch.values())
        results.append((variables, loss))
    close(*results)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), variables, first_state().variables)
    assert min(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("all_settings", [False, True])
def test_our_step_on_four_devices_is_that_on_one(all_settings, check_vma):
    settings = {"accumulate": 2, "remat": True, "ema_decay": 0.9} if all_settings else {}
    start = {"ema": all_settings, "loss_scale": all_settings}
    results = []
    for axis_name in (None, "data"):
        step = jaxconv.make_train_step(
            network(axis_name), optimizer, axis_name=axis_name, **settings
        )
        if axis_name:
            parts, places = (P(), P("data"), P()), {"mesh": mesh(), "check_vma": check_vma}
            step = jax.shard_map(step, in_specs=parts, out_specs=P(), **places)
        step, state = jax.jit(step), first_state(**start)
        for _ in range(STEPS):
            state, metrics = step(state, batch, jax.random.key(0))
        results.append((state.variables, metrics))
    close(*results)
