"""The training step with any optax optimizer, and under accumulation in float16."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxconv
from jaxconv.tasks.labels import objective
from jaxconv.train.state import named_key
from jaxconv.train.step import averaged, gradient, loss_of, microbatched

IMAGES = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype(np.float32)
BATCH = {"image": IMAGES, "label": np.arange(8, dtype=np.int32) % 2}
KEY = jax.random.key(0)


@functools.cache
def network():
    return jaxconv.create_model("chain", 2, filters=(4,))


def state_of(optimizer, **settings):
    return jaxconv.create_state(network(), optimizer, KEY, jnp.asarray(IMAGES[:1]), **settings)


def grads(state):
    def loss(params):
        logits = network().apply({"params": params}, IMAGES, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["label"]).mean()

    return jax.grad(loss)(state.params)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1),
        optax.adam(1e-2),
        optax.adamw(optax.cosine_decay_schedule(1e-2, 10), weight_decay=0.1),
        optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, momentum=0.9)),
        optax.inject_hyperparams(optax.adam)(learning_rate=optax.linear_schedule(0.1, 0.0, 10)),
        optax.MultiSteps(optax.sgd(0.1), 2),
        optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    ],
    ids=["sgd", "adam", "adamw", "chain", "injected", "multisteps", "schedule_free"],
)
def test_an_optax_optimizer_is_used_as_it_is(optimizer):
    state = state_of(optimizer)
    after, metrics = jax.jit(jaxconv.make_train_step(network(), optimizer))(state, BATCH, KEY)
    updates, _ = optimizer.update(grads(state), state.opt_state, state.params)
    wanted = optax.apply_updates(state.params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.params, wanted
    )
    assert ("learning_rate" in metrics) == hasattr(state.opt_state, "hyperparams")


def test_a_step_of_sgd_lowers_the_loss():
    optimizer = optax.sgd(0.05)
    step, state = jax.jit(jaxconv.make_train_step(network(), optimizer)), state_of(optimizer)
    losses = []
    for _ in range(10):
        state, metrics = step(state, BATCH, KEY)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.95 * losses[0] and losses == sorted(losses, reverse=True)


def test_an_injected_rate_can_be_traced():
    """One program for several rates, and the rate in the metrics."""
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    state, step = state_of(optimizer), jaxconv.make_train_step(network(), optimizer)

    def with_rate(rate):
        hyperparams = state.opt_state.hyperparams | {"learning_rate": rate}
        opt_state = state.opt_state._replace(hyperparams=hyperparams)
        after, metrics = step(state.replace(opt_state=opt_state), BATCH, KEY)
        return after.params, metrics["learning_rate"]

    rates = jnp.array([0.1, 0.2])
    params, found = jax.jit(jax.vmap(with_rate))(rates)
    np.testing.assert_allclose(found, rates)
    moved = jax.tree.map(lambda after, before: after - before[None], params, state.params)
    jax.tree.map(lambda x: np.testing.assert_allclose(2 * x[0], x[1], rtol=2e-3, atol=1e-6), moved)


def test_the_old_schedule_still_works_with_a_warning():
    rate, direction = optax.constant_schedule(0.05), optax.trace(0.9)
    with pytest.warns(DeprecationWarning, match="give a whole optimizer"):
        old = jaxconv.make_train_step(network(), direction, rate)
    optimizer = optax.chain(direction, optax.scale_by_learning_rate(rate))
    new = jaxconv.make_train_step(network(), optimizer, learning_rate=rate)
    states = state_of(direction), state_of(optimizer)
    for _ in range(3):
        (a, of_old), (b, of_new) = (
            jax.jit(step)(state, BATCH, KEY) for step, state in zip((old, new), states, strict=True)
        )
        states = a, b
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a.params, b.params)
    assert of_old["learning_rate"] == of_new["learning_rate"] == pytest.approx(0.05)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_loss_scale_changes_once_a_step(parts):
    """However many parts: it grows after 2000 finite steps, and shrinks once for several parts."""
    optimizer = optax.sgd(0.1)
    state = state_of(optimizer, loss_scale=True)
    compute = gradient(loss_of(network().apply, objective()), None)
    compute = jax.jit(averaged(microbatched(compute, parts), None))

    def scale_after(steps, scale, batch=BATCH):
        before = state.loss_scale.replace(fin_steps=jnp.int32(steps), scale=jnp.float32(scale))
        found = compute(state.replace(loss_scale=before), batch, KEY)
        return float(found.loss_scale.scale), int(found.loss_scale.fin_steps), bool(found.finite)

    assert scale_after(5, 2.0**16) == (2.0**16, 6, True)
    assert scale_after(1999, 2.0**16) == (2.0**16, 2000, True)
    assert scale_after(2000, 2.0**16) == (2.0**17, 0, True)
    one_bad = IMAGES.copy()
    one_bad[3] = np.inf  # in one part only
    assert scale_after(5, 2.0**16, BATCH | {"image": one_bad}) == (2.0**15, 0, False)
    all_bad = np.full_like(IMAGES, np.inf)
    assert scale_after(2000, 2.0**16, BATCH | {"image": all_bad}) == (2.0**15, 0, False)


class Shifted(nn.Module):
    """A network that takes one argument more."""

    @nn.compact
    def __call__(self, x, train, shift=0.0):
        return nn.Dense(2)(x.reshape(len(x), -1)) + shift


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_network_gets_what_is_drawn_by_the_step_s_keys(accumulate):
    """One for each example: the same in any parts of the batch, another one for the next step."""

    def draw(batch):
        return jax.vmap(jax.random.uniform)(batch["random_key"])

    def call(batch):
        return {"shift": draw(batch)[:, None]}

    def objective(outputs, batch):
        plain = Shifted().apply({"params": start.params}, batch["image"], train=True)
        same = {"drawn": draw(batch), "shift": jnp.mean(outputs - plain, axis=1)}
        return jnp.sum(outputs**2, axis=1), same

    optimizer, settings = optax.sgd(0.0), {"objective": objective, "call": call}
    start = jaxconv.create_state(Shifted(), optimizer, KEY, jnp.asarray(IMAGES[:1]))
    step = jax.jit(jaxconv.make_train_step(Shifted(), optimizer, accumulate=accumulate, **settings))
    state, first = step(start, BATCH, KEY)
    assert first["shift"] == pytest.approx(float(first["drawn"]), rel=1e-4)
    assert step(start, BATCH, KEY)[1]["drawn"] == first["drawn"]
    assert step(state, BATCH, KEY)[1]["drawn"] != first["drawn"]
    keys = [jax.random.fold_in(named_key(KEY, 0, "task"), n) for n in range(len(BATCH["image"]))]
    wanted = np.mean([float(jax.random.uniform(key)) for key in keys])
    assert first["drawn"] == pytest.approx(wanted, rel=1e-6)
