"""Networks under JAX's transformations: `vmap`, `export`, `checkpoint`, `jvp`, `scan`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.ad_checkpoint import print_saved_residuals

import jaxconv

images = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
labels = jnp.arange(8) % 4
network = jaxconv.create_model("resnet20_cifar", num_classes=4, units=(1, 1), width=8)


def variables_of(key):
    return network.init(key, images[:1], train=False)


def loss_of(variables, x=images, train=True):
    """The loss of all images, and the statistics after them."""
    logits, state = network.apply(variables, x, train=train, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state


def gradient(params, stats):
    return jax.grad(lambda p: loss_of({"params": p, "batch_stats": stats})[0])(params)


def close(a, b, rtol=1e-3, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def test_an_ensemble_by_vmap_is_its_members_apart():
    """Initialisation, gradients and statistics over a leading axis of members."""
    keys = jax.random.split(jax.random.key(0), 3)
    members = jax.jit(jax.vmap(variables_of))(keys)
    one = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (losses, states), grads = jax.jit(jax.vmap(jax.value_and_grad(loss_of, has_aux=True)))(members)
    assert losses.shape == (3,) and len(set(losses.tolist())) == 3
    for n, key in enumerate(keys):
        alone = variables_of(key)
        close(jax.tree.map(lambda x, n=n: x[n], members), alone)
        (loss, state), grad = one(alone)
        close(jax.tree.map(lambda x, n=n: x[n], (losses, states, grads)), (loss, state, grad))


def test_a_program_for_any_batch_size_and_platform():
    variables = variables_of(jax.random.key(0))
    predict = jax.jit(lambda variables, x: network.apply(variables, x, train=False))
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 8, 8, 3"), jnp.float32)
    shapes = jax.eval_shape(lambda: variables)
    exported = jax.export.export(predict, platforms=["cpu", "cuda", "tpu"])(shapes, x)
    loaded = jax.export.deserialize(exported.serialize())
    for count in (1, 5):
        close(loaded.call(variables, images[:count]), predict(variables, images[:count]))


@pytest.mark.parametrize("kept", [(), ("conv1", "conv2")])
def test_checkpoint_keeps_the_maps_that_a_policy_names(kept, capsys):
    """The names of the feature maps are those of `save_only_these_names`."""
    variables = variables_of(jax.random.key(0))
    params, stats = variables["params"], variables["batch_stats"]
    policy = jax.checkpoint_policies.save_only_these_names(*kept)

    def loss(params):
        return loss_of({"params": params, "batch_stats": stats})[0]

    spare = jax.checkpoint(loss, policy=policy)
    close(jax.jit(jax.grad(spare))(params), jax.jit(jax.grad(loss))(params))

    def saved(f):
        print_saved_residuals(f, params)
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if "from the argument" not in line and "[8,8,8,8]" in line]

    assert [line.split("'")[1] for line in saved(spare)] == list(kept)
    assert len(saved(loss)) > 4


def test_hessian_vector_product():
    """Forward over reverse, in the direction of the gradient, against differences."""
    variables = variables_of(jax.random.key(0))
    params, stats = variables["params"], variables["batch_stats"]
    slope = gradient(params, stats)
    scale = 1e-3 / optax.tree.norm(slope)
    step = jax.tree.map(lambda g: scale * g, slope)
    gradient_here = jax.jit(lambda p: gradient(p, stats))
    product = jax.jit(lambda p, v: jax.jvp(lambda p: gradient(p, stats), (p,), (v,))[1])
    ahead, behind = (
        gradient_here(jax.tree.map(lambda p, v: p + sign * v, params, step))  # noqa: B023
        for sign in (0.5, -0.5)
    )
    wanted = jax.tree.map(jnp.subtract, ahead, behind)
    found = product(params, step)
    error = optax.tree.norm(jax.tree.map(jnp.subtract, wanted, found))
    assert error < 0.05 * optax.tree.norm(wanted)


def test_a_network_is_a_static_argument():
    @jax.jit(static_argnames="model")
    def predict(model, variables, x):
        return model.apply(variables, x, train=False)

    for units in ((1, 1), [1, 1]):
        model = jaxconv.create_model("resnet20_cifar", 4, units=units, width=8)
        variables = variables_of(jax.random.key(0))
        wanted = network.apply(variables, images, train=False)
        close(predict(model, variables, images), wanted)
    assert predict._cache_size() == 1  # the same network is compiled once


def test_several_steps_in_a_scan():
    optimizer = optax.sgd(0.1)
    step = jaxconv.make_train_step(network, optimizer)
    state = jaxconv.create_state(network, optimizer, jax.random.key(0), images)
    batches = {"image": images.reshape(2, 4, 8, 8, 3), "label": labels.reshape(2, 4)}
    key = jax.random.key(1)
    together, metrics = jax.jit(
        lambda state: jax.lax.scan(lambda state, batch: step(state, batch, key), state, batches)
    )(state)
    for n in range(2):
        batch = {name: value[n] for name, value in batches.items()}
        state, alone = jax.jit(step)(state, batch, key)
        np.testing.assert_allclose(metrics["loss"][n], alone["loss"], rtol=1e-4)
    close(together.variables, state.variables)
