"""Several networks in one program: each member equals a separate run."""

import json
import types
from collections import Counter

import jax
import numpy as np
import pytest

from jaxconv.checks import FORMS, TRACED
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_workdir
from jaxconv.run import train
from jaxconv.train.ensemble import fastest_form, members_of
from jaxconv.train.parallel import make_parallel
from jaxconv.train.restore import restore_run
from jaxconv.train.start import open_sources
from jaxconv.train.workdir import read_metrics
from jaxconv.weights.export import load_run
from tests.conftest import rarely, tiny_config

pytestmark = pytest.mark.slow
SETTINGS = {
    "augment__flip": True,
    "model__kwargs__batch_norm": True,
    "model__kwargs__dropout": 0.2,
    "ema__decay": 0.5,
}


def close(one, other, rtol=2e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5), one, other)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The states of three runs with different seeds."""
    folder = tmp_path_factory.mktemp("alone")
    results = [
        train(
            tiny_config(seed=seed, **SETTINGS), str(folder / str(seed)), devices=jax.devices()[:1]
        )
        for seed in (5, 6, 7)
    ]
    return results, [restore_run(folder / str(seed))[0] for seed in (5, 6, 7)]


@pytest.mark.parametrize("form", FORMS)
def test_members_are_the_runs_that_they_would_have_been_alone(alone, tmp_path, form):
    """Within a relative 2e-4 after ten steps with augmentation, BatchNorm, dropout and EMA."""
    config = tiny_config(seed=5, ensemble__size=3, ensemble__by=form, **SETTINGS)
    result = train(config, str(tmp_path), devices=jax.devices()[:1])
    state, step = restore_run(tmp_path)
    assert step == 10
    for member, (before, single) in enumerate(zip(*alone, strict=True)):
        close(
            jax.tree.map(lambda x, n=member: x[n], (state.params, state.model_state, state.ema)),
            (single.params, single.model_state, single.ema),
        )
        assert result["members"][member]["loss"] == pytest.approx(before["loss"], rel=1e-3)
    losses = [member["loss"] for member in result["members"]]
    assert result["loss"] == pytest.approx(np.mean(losses)) and result[
        "loss_spread"
    ] == pytest.approx(np.std(losses, ddof=1))
    # Because -log is convex, the loss of the averaged prediction is at most the members' mean loss.
    assert result["ensemble_loss"] <= result["loss"] and result["examples"] == 30
    assert evaluate_workdir(str(tmp_path), devices=jax.devices()[:1]) == result | {"step": 10}


@pytest.mark.parametrize("mode", rarely(["jit", "pmap", "fsdp"], {"jit", "pmap"}))
def test_members_on_four_devices(tmp_path, mode):
    settings = {
        "ensemble__size": 2,
        "ensemble__by": "vmap",
        "model__kwargs__batch_norm": True,
        "steps_per_call": 2,
        "log__every": 4,
    }
    one = train(tiny_config(**settings), str(tmp_path / "one"), devices=jax.devices()[:1])
    four = train(
        tiny_config(parallel=mode, **settings), str(tmp_path / "four"), devices=jax.devices()[:4]
    )
    assert four["loss"] == pytest.approx(one["loss"], rel=1e-3)
    close(restore_run(tmp_path / "one")[0].params, restore_run(tmp_path / "four")[0].params)


def test_a_resumed_ensemble_ends_with_the_same_bits_and_keeps_to_its_form(tmp_path, one_device):
    settings = {
        "ensemble__size": 2,
        "ensemble__batches": "same",
        "optimizer__schedule__name": "plateau",
        "optimizer__schedule__patience": 1,
    }
    straight = train(tiny_config(steps=12, **settings), str(tmp_path / "a"), devices=one_device)
    form = json.loads((tmp_path / "a" / "ensemble.json").read_text())
    assert form["by"] in FORMS and set(form["seconds_a_step"]) == set(FORMS)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "ensemble.json").write_text(json.dumps({"by": form["by"]}))
    train(tiny_config(steps=8, **settings), str(tmp_path / "b"), devices=one_device)
    assert (
        train(tiny_config(steps=12, **settings), str(tmp_path / "b"), devices=one_device)
        == straight
    )


def test_the_first_process_alone_decides_how_often_a_form_is_measured(tmp_path):
    """Three timed steps of the first form, one of each other, whatever this process measures."""
    answers = iter([1, 1, 1, 1, 0, 1, 0])
    parallel = types.SimpleNamespace(
        broadcast_from_first=lambda number: next(answers, number),
        on_first_process=lambda action: action(),
    )
    taken = Counter()
    fastest_form(
        tiny_config(ensemble__size=2), tmp_path, parallel, lambda form: lambda: taken.update([form])
    )
    assert taken == {"unroll": 1 + 3, "map": 1 + 1, "vmap": 1 + 1}


def test_a_sweep_over_the_learning_rate(tmp_path, one_device):
    """Each member equals the run with that learning rate; one that diverges affects no other."""
    rates = (0.01, 0.05)
    singles = [
        train(
            tiny_config(optimizer__learning_rate=rate),
            str(tmp_path / str(rate)),
            devices=one_device,
        )
        for rate in rates
    ]
    config = tiny_config(ensemble__over="learning_rate:0.01,0.05,1e30", ensemble__by="unroll")
    result = train(config, str(tmp_path / "sweep"), devices=one_device)
    assert [member["name"] for member in result["members"]] == [
        "learning_rate 0.01",
        "learning_rate 0.05",
        "learning_rate 1e+30",
    ]
    for single, member in zip(singles, result["members"], strict=False):
        assert member["loss"] == pytest.approx(single["loss"], rel=1e-3)
    assert (
        "loss" not in result["members"][2]
        and np.isfinite([result["loss"], result["ensemble_loss"]]).all()
    )
    rows = read_metrics(tmp_path / "sweep")
    assert rows[-1]["learning_rate/1"] == pytest.approx(5 * rows[-1]["learning_rate/0"], rel=1e-5)
    assert "eval/loss/1" in rows[-1] and "eval/loss/2" not in rows[-1]
    assert (
        "loss"
        not in evaluate_workdir(str(tmp_path / "sweep"), checkpoint="best", devices=one_device)[
            "members"
        ][2]
    )
    with pytest.raises(UserError, match="the loss of every member became"):
        train(
            tiny_config(ensemble__over="learning_rate:1e29,1e30"),
            str(tmp_path / "all"),
            devices=one_device,
        )


@pytest.mark.full
@pytest.mark.parametrize(
    "key, values, settings",
    [
        ("l2", (0.0, 0.3), {}),
        (
            "weight_decay",
            (1.0, 60.0),
            {"optimizer__name": "adamw", "optimizer__learning_rate": 1e-3},
        ),
        ("momentum", (0.0, 0.8), {}),
        ("label_smoothing", (0.1, 0.4), {"optimizer__schedule__name": "cosine"}),
    ],
)
def test_a_sweep_over_another_number(tmp_path, one_device, key, values, settings):
    place = TRACED[key].replace(".", "__")
    singles = [
        train(
            tiny_config(**settings, **{place: value}),
            str(tmp_path / str(value)),
            devices=one_device,
        )
        for value in values
    ]
    assert singles[0]["loss"] != pytest.approx(singles[1]["loss"], rel=1e-2)
    config = tiny_config(
        ensemble__over=f"{key}:{values[0]},{values[1]}", ensemble__by="vmap", **settings
    )
    members = train(config, str(tmp_path / "sweep"), devices=one_device)["members"]
    assert [member["loss"] for member in members] == pytest.approx(
        [single["loss"] for single in singles], rel=1e-3
    )


def test_best_is_each_members_own(tmp_path, one_device):
    config = tiny_config(
        steps=24,
        ensemble__size=2,
        ensemble__by="unroll",
        eval__every=2,
        checkpoint__keep=1,
        optimizer__learning_rate=0.3,
    )
    train(config, str(tmp_path), devices=one_device)
    rows = [row for row in read_metrics(tmp_path) if "eval/top1/0" in row]
    best = [max(row[f"eval/top1/{n}"] for row in rows) for n in range(2)]
    found = evaluate_workdir(str(tmp_path), checkpoint="best", devices=one_device)
    assert [member["top1"] for member in found["members"]] == pytest.approx(best)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"ensemble__over": "learning_rat:0.1,0.2"}, "did you mean 'learning_rate'"),
        ({"ensemble__over": "learning_rate:0.1"}, "give two or more numbers above 0"),
        ({"ensemble__over": "learning_rate:0.1,x"}, "give two or more numbers above 0"),
        ({"ensemble__over": "momentum:0.9,1.5"}, "optimizer.momentum must be less than 1"),
        (
            {"ensemble__over": "label_smoothing:0.1,3", "loss__label_smoothing": 0.1},
            "loss.label_smoothing must be less than 1",
        ),
        ({"ensemble__over": "learning_rate:0.1,1e-1"}, "repeats a value"),
        ({"ensemble__over": "learning_rate:0.1,0.2", "ensemble__size": 3}, "leave the size at 1"),
        ({"ensemble__over": "learning_rate:0,0.2"}, "give two or more numbers above 0"),
        ({"ensemble__over": "l2:-1,0.2"}, "give two or more numbers of at least 0"),
        (
            {
                "ensemble__over": "label_smoothing:0,0.1",
                "loss__name": "experiments/own_pieces.py:focal",
            },
            "does not have this setting",
        ),
        ({"ensemble__size": 0}, "ensemble.size is 0; it must be at least 1"),
        ({"ensemble__by": "loop"}, "must be one of auto, vmap, map, unroll"),
    ],
)
def test_what_cannot_be_an_ensemble_is_said(tmp_path, one_device, changes, words):
    with pytest.raises(UserError, match=words):
        train(tiny_config(**changes), str(tmp_path), devices=one_device)


def test_one_network_has_no_members():
    assert members_of(tiny_config()) is None


def test_an_ensemble_predicts_by_its_mean_and_is_no_start_for_one_network(tmp_path, one_device):
    result = train(
        tiny_config(ensemble__size=2, ensemble__by="map"), str(tmp_path / "run"), devices=one_device
    )
    predictor = load_run(str(tmp_path / "run"))
    source = open_sources(tiny_config())[1]
    probabilities = predictor.predict(source.images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    loss = -np.log(probabilities[np.arange(30), source.labels]).mean()
    assert loss == pytest.approx(result["ensemble_loss"], rel=1e-4)
    with pytest.raises(UserError, match="holds an ensemble"):
        train(
            tiny_config(model__init_from=str(tmp_path / "run")),
            str(tmp_path / "next"),
            devices=one_device,
        )


def test_a_form_that_the_memory_does_not_do_for_is_passed_over(tmp_path, one_device):
    def prepare(form):
        def step():
            if form == "vmap":
                raise jax.errors.JaxRuntimeError(
                    "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes."
                )

        return step

    form, seconds = fastest_form(
        tiny_config(ensemble__size=2), tmp_path, make_parallel("jit", one_device), prepare
    )
    assert form in ("map", "unroll") and set(seconds) == {"map", "unroll"}
