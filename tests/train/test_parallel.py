"""One device, four under jit, four under pmap: the same losses and the same parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.data.interface import describe
from jaxconv.data.loading import make_loader
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.train.build import build
from jaxconv.train.evaluate import evaluate
from jaxconv.train.loop import Run
from jaxconv.train.parallel import all_finite, fingerprint, make_parallel
from tests.conftest import tiny_config

STEPS = 10


def run(mode, devices, batch_norm=True, **changes):
    """(losses, final state on one device, evaluation) of a short run."""
    norm = {"model__kwargs__batch_norm": True} if batch_norm else {}
    config = tiny_config(
        parallel=mode, steps=STEPS, augment__pad_crop=2, augment__flip=True, **norm | changes
    )
    parallel = make_parallel(mode, jax.devices()[:devices])
    train, test = (open_source(config.data, split) for split in ("train", "test"))
    built = build(config, describe(train), len(train), parallel.axis_name)
    loop = Run(
        config,
        None,
        parallel,
        built,
        *(make_loader(source, parallel, config.data) for source in (train, test)),
    )
    state, key, losses = parallel.to_steps(loop.first_state()), loop.key(), []
    for count, batch in zip(
        loop._calls(0),
        loop.train_data.train_batches(loop.order, 0, STEPS, loop._calls(0)),
        strict=True,
    ):
        state, metrics = loop.calls[count](state, loop.train_data.data, batch, key)
        losses += np.asarray(metrics)[..., built.metric_names.index("loss")].reshape(-1).tolist()
    result = evaluate(loop.eval_step, parallel, state, loop.eval_data, config.eval.batch_size)
    return losses, jax.device_get(parallel.to_whole(state)), result


@pytest.fixture(scope="module")
def on_one():
    return run("jit", 1)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_four_devices_train_as_one(on_one, mode):
    """With BatchNorm of the global batch, and augmentation."""
    losses, state, result = run(mode, 4)
    np.testing.assert_allclose(losses, on_one[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        state.params,
        on_one[1].params,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        state.model_state,
        on_one[1].model_state,
    )
    assert result["examples"] == 30
    assert (
        result["loss"] == pytest.approx(on_one[2]["loss"], rel=1e-4)
        and result["top1"] == on_one[2]["top1"]
    )


@pytest.fixture(scope="module")
def mixed_on_one():
    return run("jit", 1, **MIXED)


MIXED = {
    "augment__mixup": 0.5,
    "augment__cutmix": 1.0,
    "augment__repeats": 2,
    "augment__erasing__probability": 0.5,
    "augment__colour_jitter__brightness": 0.4,
    "augment__colour_jitter__contrast": 0.4,
    "ema__decay": 0.9,
    "optimizer__clip_norm": 0.5,
    "loss__name": "binary",
    "loss__threshold": 0.2,
}


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_four_devices_mix_as_one(mixed_on_one, mode):
    """Mixing pairs are those of the global batch, on any device; weights are averaged as well."""
    losses, state, result = run(mode, 4, **MIXED)
    np.testing.assert_allclose(losses, mixed_on_one[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state.params,
        mixed_on_one[1].params,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state.ema,
        mixed_on_one[1].ema,
    )
    assert result["loss"] == pytest.approx(mixed_on_one[2]["loss"], rel=1e-4)


def test_dropout_is_the_same_on_four_devices_under_jit():
    dropout = {"model__kwargs__dropout": 0.5}
    one, four = run("jit", 1, **dropout), run("jit", 4, **dropout)
    np.testing.assert_allclose(four[0], one[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        four[1].params,
        one[1].params,
    )


def test_each_device_drops_other_values_under_pmap():
    """Four devices with the same examples differ only by dropout, through the device's index."""
    from jaxconv.models import create_model
    from jaxconv.train.optim import make_optimizer, make_schedule
    from jaxconv.train.state import create_state
    from jaxconv.train.step import make_train_step

    config = tiny_config()
    seen = []

    def loss(logits, label):
        jax.debug.callback(lambda v: seen.append(np.asarray(v)), logits)
        return jnp.sum(logits, axis=-1)

    model = create_model("chain", 2, filters=(4,), dropout=0.5)
    image = jnp.ones((2, 8, 8, 1))
    params = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)["params"]
    optimizer = make_optimizer(config.optimizer, params)
    state = create_state(model, optimizer, jax.random.key(0), image)
    parallel = make_parallel("pmap", jax.devices()[:4])
    step = make_train_step(
        model,
        optimizer,
        loss=loss,
        axis_name=parallel.axis_name,
        learning_rate=make_schedule(config.optimizer, 10),
    )
    batch = {"image": np.ones((8, 8, 8, 1), np.float32), "label": np.zeros(8, np.int32)}
    compiled = parallel.compile_train(
        lambda state, data, batch, key: step(state, batch, key), state
    )
    compiled(
        parallel.replicate(state),
        parallel.replicate(np.zeros(())),
        parallel.shard(batch),
        jax.random.key(0),
    )
    jax.effects_barrier()
    assert len(seen) == 4
    assert len({logits.tobytes() for logits in seen}) == 4


def test_batch_that_does_not_divide_is_said():
    parallel = make_parallel("jit", jax.devices()[:4])
    parallel.check_batch(8, "batch_size")
    with pytest.raises(
        UserError,
        match=r"config.batch_size is 10: 10 images / 4 devices = 2.50 is not whole; give 8 or 12",
    ):
        parallel.check_batch(10, "batch_size")
    with pytest.raises(UserError, match="give 4$"):
        parallel.check_batch(3, "batch_size")


def test_fingerprint_tells_any_bit_and_not_the_sharding():
    tree = {
        "a": jnp.arange(6.0).reshape(2, 3),
        "b": jnp.ones((), jnp.int32),
        "c": jnp.ones(3, jnp.bfloat16),
    }
    print_ = int(fingerprint(tree))
    assert int(fingerprint(make_parallel("jit").replicate(tree))) == print_
    for changed in (
        tree | {"a": tree["a"].at[1, 2].set(np.nextafter(np.float32(5), np.float32(6)))},
        tree | {"a": tree["a"][::-1]},
        tree | {"b": jnp.zeros((), jnp.int32)},
        tree | {"c": -tree["c"]},
    ):
        assert int(fingerprint(changed)) != print_


def test_all_finite():
    assert all_finite({"a": jnp.ones(3)})
    assert not all_finite({"a": jnp.ones(3), "b": jnp.array([1, jnp.nan])})
    assert not all_finite({"a": jnp.array(jnp.inf)})
