"""Averages of the weights: their formula, their use in evaluation, and resuming."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.evaluation.evaluation import evaluate_workdir
from jaxconv.models import create_model
from jaxconv.run import train
from jaxconv.train.optim import make_optimizer, make_schedule
from jaxconv.train.parallel import fingerprint
from jaxconv.train.restore import restore_run
from jaxconv.train.state import create_state
from jaxconv.train.step import make_eval_step, make_train_step
from tests.conftest import tiny_config

DESCRIPTION = {
    "image_shape": [16, 16, 1],
    "kind": "image",
    "cropped": False,
    "class_names": ["o", "x"],
}


def parts(decay):
    config = tiny_config()
    model = create_model("chain", 2, filters=(4,), batch_norm=True)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    params = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]
    optimizer = make_optimizer(config.optimizer, params)
    step = make_train_step(
        model,
        optimizer,
        ema_decay=decay,
        learning_rate=make_schedule(config.optimizer, 100),
    )
    state = jax.jit(lambda key: create_state(model, optimizer, key, images, ema=decay > 0))(
        jax.random.key(0)
    )
    batch = {"image": images, "label": jnp.array([0, 1, 1, 0])}
    return model, jax.jit(step, donate_argnums=0), state, batch


def test_average_of_weights_and_statistics():
    model, step, state, batch = parts(0.5)
    expected = jax.device_get(state.variables)
    for n in range(6):
        state, _ = step(state, batch, jax.random.key(0))
        now, d = (
            jax.device_get({"params": state.params, **state.model_state}),
            min(0.5, (1 + n) / (10 + n)),
        )
        expected = jax.tree.map(lambda e, v, d=d: d * e + (1 - d) * v, expected, now)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.ema, expected
    )
    assert set(state.ema) == {"params", "batch_stats"}

    sums = make_eval_step(model)(state, batch | {"mask": jnp.ones(4)})
    swapped = state.replace(
        params=state.ema["params"], model_state={"batch_stats": state.ema["batch_stats"]}, ema={}
    )
    assert float(sums["loss"]) == float(
        make_eval_step(model)(swapped, batch | {"mask": jnp.ones(4)})["loss"]
    )
    assert float(sums["loss"]) != float(
        make_eval_step(model)(state.replace(ema={}), batch | {"mask": jnp.ones(4)})["loss"]
    )


def test_none_costs_nothing():
    _, step, state, batch = parts(0.0)
    assert state.ema == {}
    plain, averaged = state.params, parts(0.9)
    plain, _ = step(state, batch, jax.random.key(0))
    other, _ = averaged[1](averaged[2], batch, jax.random.key(0))
    assert int(fingerprint(plain.params)) == int(fingerprint(other.params))


@pytest.mark.slow
def test_resumed_averages_are_the_same(tmp_path, one_device):
    """Four steps plus four resumed steps equal eight, bit for bit; `evaluate` uses the averages."""
    changes = {
        "ema__decay": 0.5,
        "augment__flip": True,
        "model__kwargs__batch_norm": True,
        "optimizer__schedule__name": "constant",
    }
    config = tiny_config(steps=8, **changes)
    straight = train(config, str(tmp_path / "straight"), devices=one_device)
    train(tiny_config(steps=4, **changes), str(tmp_path / "resumed"), devices=one_device)
    resumed = train(config, str(tmp_path / "resumed"), devices=one_device)
    assert resumed == straight
    prints = []
    for name in ("straight", "resumed"):
        state, step = restore_run(tmp_path / name)
        assert step == 8 and set(state.ema) == {"params", "batch_stats"}
        prints.append(int(fingerprint(state)))
    assert prints[0] == prints[1]
    evaluated = evaluate_workdir(str(tmp_path / "straight"), devices=one_device)
    assert evaluated["loss"] == straight["loss"]
