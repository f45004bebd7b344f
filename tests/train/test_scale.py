"""Each option for scale against a plain run.

Sharded weights, accumulation, several steps per call, BatchNorm groups, rematerialization, float16.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.data.interface import describe
from jaxconv.data.loading import make_loader
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.layers import BatchNorm
from jaxconv.models import abstract_variables
from jaxconv.program import kept_for_gradient
from jaxconv.run import train
from jaxconv.train import parallel as spread
from jaxconv.train.build import build
from jaxconv.train.loop import Run
from jaxconv.train.parallel import Parallel, make_parallel
from jaxconv.train.start import open_sources
from jaxconv.train.step import rematerialised
from tests.conftest import tiny_config
from tests.train.test_parallel import run

pytestmark = pytest.mark.slow
WIDE = {"model__kwargs__neurons": (64,), "model__kwargs__batch_norm": False}


@pytest.fixture(scope="module")
def plain():
    return run("jit", 1, **WIDE)


def assert_same(one, other, rtol=1e-5):
    np.testing.assert_allclose(other[0], one[0], rtol=rtol)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6),
        other[1].params,
        one[1].params,
    )
    assert (
        other[2]["loss"] == pytest.approx(one[2]["loss"], rel=1e-4)
        and other[2]["top1"] == one[2]["top1"]
    )


def test_fsdp_is_jit_with_the_weights_in_parts(plain, monkeypatch):
    monkeypatch.setattr(spread, "LARGE", 1000)
    assert_same(plain, run("fsdp", 4, **WIDE))


def test_fsdp_lays_large_values_out_in_parts():
    config = tiny_config(parallel="fsdp", model__kwargs__neurons=(1024,))
    source = open_source(config.data, "train")
    parallel = make_parallel("fsdp", jax.devices()[:4])
    built = build(config, describe(source), len(source), None)
    state = parallel.init(built.init, parallel.key(0), built.abstract)
    large = [x for x in jax.tree.leaves((state.params, state.opt_state)) if x.size >= spread.LARGE]
    assert large and len(large) == 2 * sum(
        x.size >= spread.LARGE for x in jax.tree.leaves(state.params)
    )
    for leaf in large:
        assert leaf.addressable_shards[0].data.size == leaf.size // 4
    assert all(
        leaf.is_fully_replicated for leaf in jax.tree.leaves(state) if leaf.size < spread.LARGE
    )


@pytest.mark.parametrize("mode, devices", [("jit", 1), ("jit", 2), ("pmap", 2)])
def test_accumulated_gradients_are_the_whole_batchs(plain, mode, devices):
    assert_same(plain, run(mode, devices, accumulate=4, **WIDE))


@pytest.mark.parametrize("mode, devices", [("jit", 1), ("jit", 4), ("pmap", 4)])
def test_several_steps_a_call_are_the_same_steps(plain, mode, devices):
    """Ten steps in calls of three, three, three and one."""
    assert_same(
        plain,
        run(
            mode,
            devices,
            steps_per_call=3,
            log__every=20,
            eval__every=20,
            checkpoint__every=20,
            **WIDE,
        ),
    )


def test_calls_end_where_something_is_due(tmp_path, one_device):
    """So a run resumed from a checkpoint ends with the same bits."""
    settings = {
        "steps_per_call": 4,
        "log__every": 5,
        "eval__every": 10,
        "checkpoint__every": 7,
        "optimizer__schedule__name": "constant",
    }
    straight = train(tiny_config(steps=20, **settings), str(tmp_path / "a"), devices=one_device)
    train(tiny_config(steps=14, **settings), str(tmp_path / "b"), devices=one_device)
    assert (
        train(tiny_config(steps=20, **settings), str(tmp_path / "b"), devices=one_device)
        == straight
    )


def test_several_steps_a_call_want_resident_data(tmp_path, one_device):
    config = tiny_config(steps_per_call=4, data__resident_limit=0, steps=4)
    config.data.source = "tones"
    with pytest.raises(
        UserError, match="steps_per_call is 4, which needs the data in device memory"
    ):
        train(config, str(tmp_path), devices=one_device)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("mode, devices", [("jit", 4), ("pmap", 4), ("pmap", 2)])
@pytest.mark.parametrize("groups", [2, 4])
def test_groups_of_batch_norm_are_the_same_everywhere(mode, devices, groups):
    norm = {"model__kwargs__batch_norm": True, "model__norm_groups": groups}
    one, other = run("jit", 1, **norm), run(mode, devices, **norm)
    assert_same(one, other, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        other[1].model_state,
        one[1].model_state,
    )


def test_a_group_is_normalised_by_itself():
    x = jax.random.normal(jax.random.key(0), (8, 3, 3, 5)) * jnp.arange(1.0, 9)[:, None, None, None]
    norm = BatchNorm(use_running_average=False, groups=4)
    variables = norm.init(jax.random.key(0), x)
    y, changed = norm.apply(variables, x, mutable=["batch_stats"])
    plain = BatchNorm(use_running_average=False)
    parts = [plain.apply(variables, x[n : n + 2], mutable=["batch_stats"]) for n in range(0, 8, 2)]
    np.testing.assert_allclose(
        y, jnp.concatenate([part for part, _ in parts]), rtol=1e-4, atol=1e-5
    )
    for name in ("mean", "var"):
        mean = np.mean([state["batch_stats"][name] for _, state in parts], axis=0)
        np.testing.assert_allclose(changed["batch_stats"][name], mean, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"8 examples / 3 groups = 2.67"):
        BatchNorm(use_running_average=False, groups=3).apply(variables, x, mutable=["batch_stats"])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"accumulate": 3}, r"8 images / 1 devices / 3 parts = 2.67 is not whole; give 6 or 9"),
        ({"model__norm_groups": 3}, r"norm_groups is 3: 8 images / 3 = 2.67"),
        ({"accumulate": 0}, "accumulate is 0; it must be at least 1"),
        ({"steps_per_call": 0}, "steps_per_call is 0; it must be at least 1"),
        (
            {"steps_per_call": 4},
            "steps_per_call is 4, but log.every is 3, .* use at most 3, or increase "
            "--config.log.every",
        ),
        ({"profile": "11:12"}, "profile is '11:12', but the training has only 10 steps"),
        ({"parallel": "fsd"}, "did you mean 'fsdp'"),
    ],
)
def test_what_does_not_divide_is_said(tmp_path, one_device, changes, words):
    with pytest.raises(UserError, match=words):
        train(tiny_config(batch_size=8, **changes), str(tmp_path), devices=one_device)


def test_rematerialised_gradients_are_the_same():
    deep = {
        "model__name": "resnet20_cifar",
        "model__kwargs__units": (1, 1, 1),
        "optimizer__learning_rate": 0.01,
    }
    assert_same(
        run("jit", 1, batch_norm=False, **deep),
        run("jit", 1, batch_norm=False, model__remat=True, **deep),
        rtol=1e-4,
    )


def test_rematerialisation_keeps_less():
    """Of what JAX would store: on a CPU, XLA undoes it, and its memory for a whole step stays."""
    model = jaxconv.create_model("resnet20_cifar", 10)
    images = jax.ShapeDtypeStruct((32, 32, 32, 3), jnp.float32)
    variables = abstract_variables(model, images.shape)
    plain, less = (
        kept_for_gradient(apply, variables, images, train=True)
        for apply in (model.apply, rematerialised(model))
    )
    assert less < 0.35 * plain


def test_float16_scales_the_loss_and_passes_over_a_step_that_overflows():
    losses, state, _ = run("jit", 1, model__dtype="float16", **WIDE)
    # The initial scale is too large for some steps, each of which halves it.
    assert (
        2**10 <= float(state.loss_scale.scale) < 2**16
        and int(state.loss_scale.fin_steps) > 3
        and np.isfinite(losses).all()
    )
    config = tiny_config(model__dtype="float16")
    source = open_source(config.data, "train")
    built = build(config, describe(source), len(source), None)
    state = built.init(jax.random.key(0))
    state = state.replace(loss_scale=state.loss_scale.replace(scale=jnp.float32(2.0**120)))
    images = jnp.zeros((4, *describe(source)["image_shape"]), jnp.uint8)
    batch = {"image": images, "label": jnp.zeros(4, jnp.int32), "position": jnp.arange(4)}
    after, metrics = jax.jit(built.train_step)(state, {}, batch, jax.random.key(0))
    jax.tree.map(
        np.testing.assert_array_equal,
        (after.params, after.opt_state),
        (state.params, state.opt_state),
    )
    assert int(after.step) == 1 and float(after.loss_scale.scale) == 2.0**119
    assert dict(zip(built.metric_names, metrics.tolist(), strict=True))["grad_norm"] == 0


def test_a_trace_of_some_steps(tmp_path, one_device, caplog):
    with caplog.at_level("INFO", logger="jaxconv"):
        train(tiny_config(profile="3:4"), str(tmp_path), devices=one_device)
    assert list(tmp_path.glob("profile/**/*.xplane.pb")) and "profile written to" in caplog.text
    for wrong in ("4:3", "0:3", "3", "a:b"):
        with pytest.raises(UserError, match="must be FIRST:LAST"):
            train(tiny_config(profile=wrong), str(tmp_path / "no"), devices=one_device)


def test_start_up_says_how_the_run_is_spread(tmp_path, caplog):
    with caplog.at_level("INFO", logger="jaxconv"):
        train(tiny_config(parallel="fsdp", steps=3), str(tmp_path), devices=jax.devices()[:2])
    line = next(
        line
        for line in caplog.messages
        if line.startswith("fsdp on 2 x cpu, mesh data=2, 4 images each; ")
    )
    assert (
        " parameters, about " in line
        and "per device; first step after " in line
        and "steps 0 to 3" in line
    )


def test_the_estimate_of_memory_is_near_what_xla_takes(tmp_path, one_device):
    """Within a factor of two, for a network whose memory is mostly feature maps."""
    config = tiny_config(
        batch_size=64, model__name="text:[(conv3-16 relu)*2 maxpool2]*2 fc", steps=3
    )
    train_source, eval_source = open_sources(config)
    parallel = make_parallel("jit", one_device)
    built = build(config, describe(train_source), len(train_source), None)
    loop = Run(
        config,
        tmp_path,
        parallel,
        built,
        *(make_loader(source, parallel, config.data) for source in (train_source, eval_source)),
    )
    batch = next(iter(loop.train_data.train_batches(loop.order, 0, 1)))
    compiled = (
        loop.calls[1]
        .__wrapped__.lower(loop.first_state(), loop.train_data.data, batch, loop.key())
        .compile()
        .memory_analysis()
    )
    assert 0.5 < loop.memory / (compiled.temp_size_in_bytes + compiled.argument_size_in_bytes) < 2


def exhausted(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")


@pytest.mark.parametrize("place", ["compile_train", "compile_eval", "init"])
def test_too_little_memory_is_one_line_with_what_to_change(
    tmp_path, one_device, monkeypatch, place
):
    """In the first step, in the first evaluation, and at initialization."""
    monkeypatch.setattr(
        Parallel, place, exhausted if place == "init" else lambda *_, **__: exhausted
    )
    with pytest.raises(
        UserError,
        match=r"out of memory: training takes about .* of a device "
        r".*batch_size.*accumulate=2.*remat=True",
    ) as error:
        train(tiny_config(), str(tmp_path), devices=one_device)
    assert error.value.exit_code == 1


def test_too_little_memory_for_the_data_is_one_line(tmp_path, one_device, monkeypatch):
    monkeypatch.setattr(Parallel, "replicate", exhausted)
    with pytest.raises(
        UserError,
        match=r"out of memory: the data takes 24.1 kB .* try a smaller "
        r"--config.data.resident_limit",
    ):
        train(tiny_config(), str(tmp_path), devices=one_device)
