"""Optimizers and schedules of optax by name, and custom ones, alone and in whole runs."""

import inspect
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxconv.checks import check_config, check_effects, differing_runs
from jaxconv.config import default_config, group, load_config
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_run
from jaxconv.run import train
from jaxconv.tasks import open_task
from jaxconv.train.optim import make_optimizer, make_schedule
from jaxconv.train.restore import restore_run
from jaxconv.train.state import schedule_free_states
from jaxconv.train.workdir import saved_config, saved_data
from jaxconv.weights.export import load_run
from tests.conftest import ROOT, tiny_config

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    "fc": {"kernel": jnp.linspace(-1, 1, 8).reshape(4, 2), "bias": jnp.ones(2)},
}
# What optax's optimizers need that no step can give: a key, examples apart, a function.
SPECIAL = {"noisy_sgd", "dpsgd", "_deprecated_dpsgd", "lbfgs", "sophia", "scale_by_learning_rate"}


def settings(*overrides):
    """`config.optimizer` with overrides as on the command line."""
    return load_config(
        str(ROOT / "experiments/xo.py"), [f"optimizer.{text}" for text in overrides]
    ).optimizer


def follow(config, rate=0.1, steps=3, params=PARAMS):
    """Parameters after some steps, each with the gradient of half the sum of squares."""
    optimizer = make_optimizer(config, params)
    state = optimizer.init(params)
    for _ in range(steps):
        extra = {"learning_rate": jnp.float32(rate), "value": jnp.float32(1.0), "grad": params}
        updates, state = optimizer.update(params, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


def ready_made():
    for module in ("optax", "optax.contrib"):
        for name, function in vars(optax if module == "optax" else optax.contrib).items():
            takes = inspect.isfunction(function) and inspect.signature(function).parameters
            if takes and "learning_rate" in takes and not name.startswith("scale_by_"):
                yield f"{module}.{name}"


@pytest.mark.filterwarnings("ignore")  # some are deprecated
@pytest.mark.parametrize("name", [*ready_made()])
def test_every_optimizer_of_optax_descends_or_is_refused(name):
    more = ["kwargs.base_optimizer=optax.sgd"] if name.endswith(".schedule_free") else []
    config = settings(f"name={name}", *more)
    if name.rpartition(".")[2] in SPECIAL:
        with pytest.raises(UserError, match="config.optimizer"):
            make_optimizer(config, PARAMS)
        return
    before, after = (optax.tree.norm(p) for p in (PARAMS, follow(config, 0.01, 4)))
    assert after <= before * (1 + 1e-6) and np.isfinite(after)


@pytest.mark.parametrize(
    ("built_in", "overrides"),
    [
        (["momentum=0.0"], []),
        (["momentum=0.0", "l2=0.2"], ["l2=0.2"]),
        (["momentum=0.0", "weight_decay=0.2"], ["weight_decay=0.2"]),
        (["momentum=0.0", "clip_norm=0.5"], ["clip_norm=0.5"]),
        (["momentum=0.8", "nesterov=True"], ["kwargs.momentum=0.8", "kwargs.nesterov=True"]),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_groups_clipping_and_decay_are_those_of_the_built_in(built_in, overrides, grouped):
    configs = settings("name=sgd", *built_in), settings("name=optax.sgd", *overrides)
    for config in configs:
        if grouped:
            config.groups.slow = group("conv", learning_rate=0.5, weight_decay=2.0)
            config.groups.still = group("fc/bias", frozen=True)
    found, wanted = (follow(config) for config in configs)
    assert_close(found, wanted)
    assert not np.allclose(found["conv"]["bias"], PARAMS["conv"]["bias"])
    if grouped:
        np.testing.assert_array_equal(found["fc"]["bias"], PARAMS["fc"]["bias"])


def test_muon_orthogonalizes_filters_and_leaves_the_rest_to_adam():
    gradient = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), PARAMS)
    config = settings("name=optax.contrib.muon", "kwargs.ns_steps=5")
    config.groups.slow = group("fc", learning_rate=0.5)
    optimizer = make_optimizer(config, PARAMS)
    updates, _ = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS, learning_rate=0.1)
    # [3, 3, 2, 4] is the matrix [18, 4]; Newton-Schulz leaves singular values around 1.
    for layer, shape, rate in (("conv", (18, 4), 0.1), ("fc", (4, 2), 0.05)):
        update, towards = updates[layer]["kernel"], gradient[layer]["kernel"]
        values = np.linalg.svd(np.asarray(update).reshape(shape), compute_uv=False) / rate
        assert values.min() > 0.5 and values.max() < 1.4, values
        assert jnp.vdot(update, towards) < 0
    adam = optax.adam(0.1, nesterov=True)
    wanted, _ = adam.update(gradient, adam.init(PARAMS), PARAMS)
    assert_close(updates["conv"]["bias"], wanted["conv"]["bias"])
    assert_close(updates["fc"]["bias"], 0.5 * wanted["fc"]["bias"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["name=lion"], "one of sgd, .*optax.NAME"),
        (["name=optax.lionn"], "did you mean 'lion'"),
        (["name=optax.adam", "kwargs.epss=0.9"], "kwargs.epss: .*did you mean 'eps'"),
        (["name=optax.adam", "kwargs.learning_rate=0.9"], "set config.optimizer.learning_rate"),
        (["name=optax.adam", "kwargs.b1=high"], "optax.adam', which fails"),
        (["name=optax.contrib.schedule_free"], "lacks base_optimizer"),
        (["name=optax.scale_by_adam"], "not an optimizer with a learning rate"),
        (["name=optax.contrib.mechanize"], "not an optimizer with a learning rate"),
        (["name=optax.constant_schedule"], "not an optimizer with a learning rate"),
        (["name=optax.adamw", "weight_decay=0.1"], "weight_decay of its own"),
        (["name=optax.contrib.schedule_free_sgd", "weight_decay=0.1"], "that .* averages"),
        (["name=adamw", "kwargs.b1=0.9"], "takes no kwargs"),
        (["schedule.kwargs.alpha=0.9"], "takes no kwargs"),
        (["name=nothing.py:mine"], "not found|no file"),
    ],
)
def test_a_wrong_optimizer_is_refused(overrides, words):
    with pytest.raises(UserError, match=words) as error:
        spec = str(ROOT / "experiments/xo.py")
        config = load_config(spec, [f"optimizer.{one}" for one in overrides])
        check_config(config)
        make_optimizer(config.optimizer, PARAMS)
    assert "\n" not in str(error.value)


def rates(config, total=20):
    return np.array([make_schedule(config, total)(step) for step in range(total)])


def test_schedules_of_optax_get_rate_and_length():
    steps = np.arange(20)
    name = "schedule.name=optax.warmup_cosine_decay_schedule"
    config = settings(name, "learning_rate=0.4", "schedule.warmup_steps=5",
                      "schedule.kwargs.init_value=0.0")  # fmt: skip
    wanted = optax.warmup_cosine_decay_schedule(0.0, 0.4, 5, 20)
    np.testing.assert_allclose(rates(config), [wanted(step) for step in steps], rtol=1e-6)
    # A length in the kwargs is kept, and the built-in warm-up is for schedules without one.
    config = settings("schedule.name=optax.cosine_decay_schedule", "learning_rate=0.4",
                      "schedule.warmup_steps=2", "schedule.kwargs.decay_steps=10")  # fmt: skip
    wanted = np.array([optax.cosine_decay_schedule(0.4, 10)(step) for step in steps])
    wanted[:2] = 0.2, 0.4
    np.testing.assert_allclose(rates(config), wanted, rtol=1e-6, atol=1e-8)
    config = settings("schedule.name=optax.linear_schedule", "learning_rate=0.4",
                      "schedule.warmup_steps=0", "schedule.kwargs.end_value=0.0")  # fmt: skip
    np.testing.assert_allclose(rates(config), 0.4 * (1 - steps / 20), rtol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["schedule.name=optax.cosine_decay"], "did you mean"),
        (["schedule.name=optax.cosine_decay_schedule", "schedule.kwargs.alfa=0"], "mean 'alpha'"),
        (["schedule.name=optax.warmup_cosine_decay_schedule"], "lacks init_value"),
        (["schedule.name=optax.sgdr_schedule"], "takes no learning rate"),
        (
            ["schedule.name=optax.linear_schedule", "schedule.kwargs.init_value=1.0"],
            "set config.optimizer.learning_rate",
        ),
        (["schedule.name=optax.sgd"], "optax.sgd', which fails"),
        (
            ["schedule.name=optax.cosine_decay_schedule", "schedule.kwargs.decay_steps=-1"],
            "which fails: ValueError",
        ),
    ],
)
def test_a_wrong_schedule_is_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        make_schedule(settings(*overrides), 20)


def test_a_run_may_be_lengthened_unless_its_schedule_looks_at_the_length():
    def differing(name, **kwargs):
        config = tiny_config(optimizer__schedule__name=name)
        config.optimizer.schedule.kwargs.update(kwargs)
        longer = config.copy_and_resolve_references()
        longer.steps = 20
        return differing_runs(config, longer)

    assert differing("optax.cosine_decay_schedule") == ["steps"]
    assert differing("optax.cosine_decay_schedule", decay_steps=10) == []
    assert differing("optax.constant_schedule") == []
    assert differing("cosine") == ["steps"] and differing("constant") == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.schedule.boundaries=2,3"], "boundaries .* 'cosine'.*it is for step"),
        (["optimizer.schedule.patience=1"], "it is for plateau"),
        (["optimizer.schedule.factor=0.5"], "it is for step, plateau"),
        (["optimizer.name=optax.lion", "optimizer.momentum=0.8"], "give config.optimizer.kwargs"),
        (["optimizer.beta2=0.9"], "it is for rmsprop, adamw, lamb"),
        (["optimizer.trust_coefficient=0.9"], "it is for lars"),
    ],
)
def test_settings_without_effect_are_refused(overrides, words):
    config = load_config(str(ROOT / "experiments/xo.py"), overrides)
    check_config(config)  # runs of earlier versions may have them
    with pytest.raises(UserError, match=words):
        check_effects(config)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "pmap", "fsdp"])
def test_schedule_free_is_evaluated_by_its_own_weights(tmp_path, parallel):
    config = tiny_config(
        optimizer__name="optax.contrib.schedule_free_sgd",
        optimizer__kwargs__b1=0.8,
        optimizer__schedule__name="constant",
        optimizer__learning_rate=0.5,
        checkpoint__every=5,
        parallel=parallel,
    )
    config.optimizer.groups.still = group("conv1_1", frozen=True)
    result = train(config, str(tmp_path))
    state, step = restore_run(tmp_path)
    (average,) = schedule_free_states(state.opt_state)
    assert step == 10 and float(average.weight_sum) > 0
    trained = {name: state.params[name] for name in state.params if name != "conv1_1"}
    z = average._replace(z={name: average.z[name] for name in trained})
    wanted = optax.contrib.schedule_free_eval_params(z, trained)
    found = state.variables["params"]
    assert_close({name: found[name] for name in trained}, wanted)
    assert_close(found["conv1_1"], state.params["conv1_1"])
    assert not np.allclose(found["votes"]["kernel"], state.params["votes"]["kernel"])
    # What `evaluate` and `predict` use, and what the run itself measured.
    assert evaluate_run(str(tmp_path)).result["loss"] == pytest.approx(result["loss"], rel=1e-5)
    image = np.zeros((1, 16, 16, 1), np.uint8)
    model = open_task(saved_config(tmp_path), saved_data(tmp_path)).model()
    served = load_run(str(tmp_path)).program(image)["logits"]
    assert_close(served, model.apply(state.variables, image / 255 * 2 - 1, train=False))


@pytest.mark.slow
def test_members_average_apart(tmp_path):
    """An ensemble over the learning rate: each member's average is its own."""
    config = tiny_config(
        optimizer__name="optax.contrib.schedule_free_sgd",
        optimizer__schedule__name="constant",
        ensemble__over="learning_rate:0.05,0.5",
        ensemble__by="vmap",
        steps=4,
    )
    train(config, str(tmp_path / "both"))
    state, _ = restore_run(tmp_path / "both")
    for n, rate in enumerate((0.05, 0.5)):
        alone = tiny_config(
            optimizer__name="optax.contrib.schedule_free_sgd",
            optimizer__schedule__name="constant",
            optimizer__learning_rate=rate,
            steps=4,
        )
        train(alone, str(tmp_path / str(n)))
        one, _ = restore_run(tmp_path / str(n))
        mine = jax.tree.map(lambda x, n=n: x[n], state.variables)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            mine,
            one.variables,
        )


@pytest.mark.slow
def test_a_run_with_a_custom_optimizer_resumes_to_the_same_bits(tmp_path):
    (tmp_path / "tx.py").write_text(
        "import optax\n"
        "def mine(learning_rate, b1=0.9):\n"
        "    return optax.contrib.schedule_free(optax.sgd(learning_rate), learning_rate, b1)\n"
        "def half(learning_rate, total_steps):\n"
        "    return lambda step: learning_rate * (1 - 0.5 * step / total_steps)\n"
    )
    config = tiny_config(
        optimizer__name=f"{tmp_path}/tx.py:mine",
        optimizer__schedule__name=f"{tmp_path}/tx.py:half",
        optimizer__schedule__warmup_steps=0,
        log__every=1,
    )
    config.optimizer.kwargs.b1 = 0.8
    whole = train(config, str(tmp_path / "whole"))
    assert rows(tmp_path / "whole")[4]["learning_rate"] == pytest.approx(0.02 * (1 - 0.5 * 0.4))
    config.checkpoint.keep = 3
    train(config, str(tmp_path / "cut"))
    for step in ("8", "10"):  # as if killed after step 4
        shutil.rmtree(tmp_path / "cut/checkpoints" / step)
    (tmp_path / "tx.py").rename(tmp_path / "gone.py")  # the workdir has a copy
    assert train(config, str(tmp_path / "cut")) == whole
    assert evaluate_run(str(tmp_path / "cut")).result["loss"] == pytest.approx(whole["loss"])


def test_a_rate_that_cannot_be_traced_is_refused_before_the_run(tmp_path):
    config = tiny_config(
        optimizer__schedule__name="optax.warmup_cosine_decay_schedule",
        optimizer__schedule__kwargs__init_value=0.0,
        ensemble__over="learning_rate:0.01,0.1",
    )
    with pytest.raises(UserError, match="cannot take a traced learning rate.*jaxconv sweep"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run/config.json").exists()


def test_an_average_of_its_own_excludes_another(tmp_path):
    config = tiny_config(
        optimizer__name="optax.contrib.schedule_free_sgd",
        optimizer__schedule__name="constant",
        ema__decay=0.9,
    )
    with pytest.raises(UserError, match="averages the weights itself"):
        train(config, str(tmp_path / "run"))


def test_default_config_stays_built_in():
    config = default_config()
    check_effects(config)
    assert not config.optimizer.kwargs and not config.optimizer.schedule.kwargs
