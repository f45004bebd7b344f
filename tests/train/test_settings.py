"""What a run says and stores of its settings: without effect, changed on resume, not finite."""

import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.config import group
from jaxconv.errors import UserError
from jaxconv.files import to_json
from jaxconv.report.sections import read_run
from jaxconv.report.write import render
from jaxconv.run import train
from jaxconv.sweep import sweep
from jaxconv.train.optim import update_plateau
from jaxconv.train.state import Plateau
from jaxconv.train.workdir import read_metrics, saved_config
from tests.conftest import tiny_config


def strict(text):
    """Parse JSON as other languages do, which know no NaN."""

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_json_has_null_for_what_is_no_number():
    value = {"a": [1.0, float("nan"), (float("inf"), 2)], "b": {"c": -float("inf")}, "d": "NaN"}
    assert strict(to_json(value)) == {"a": [1.0, None, [None, 2]], "b": {"c": None}, "d": "NaN"}


@pytest.mark.slow
def test_a_metric_that_is_nan(tmp_path, one_device):
    """Every line is valid JSON, and the rest of the run, its curves and its page are as ever."""
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp\n"
        "def odd(logits, label):\n    return jnp.log(-jnp.ones(len(label)))\n"
    )
    config = tiny_config(eval__metrics=f"{tmp_path}/mine.py:odd", log__tensorboard=True)
    folder = tmp_path / "run"
    train(config, str(folder), devices=one_device)
    rows = [strict(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if "eval/odd" in row]
    assert evaluated and all(row["eval/odd"] is None for row in evaluated)
    assert all(math.isnan(row["eval/odd"]) for row in read_metrics(folder) if "eval/odd" in row)
    for step in (folder / "checkpoints").iterdir():
        strict((step / "metrics" / "metrics").read_text())
    assert (folder / "curves.png").is_file() and "finished, 10 steps" in render(read_run(folder))
    # Files of earlier versions have NaN.
    old = (folder / "metrics.jsonl").read_text().replace("null", "NaN")
    (folder / "metrics.jsonl").write_text(old)
    again = read_metrics(folder)
    assert [row["step"] for row in again] == [row["step"] for row in rows]
    assert train(config, str(folder), devices=one_device)["examples"] == 30


def test_a_plateau_after_nan_goes_on():
    """NaN is not an improvement, and later values are compared with the best of the others."""
    plateau = Plateau(scale=jnp.ones(()), best=jnp.full((), -jnp.inf), since=jnp.zeros((), int))
    for value in (0.5, float("nan"), 0.6):
        plateau = update_plateau(plateau, value, 0.1, 2, True)
    np.testing.assert_allclose([plateau.best, plateau.scale, plateau.since], [0.6, 1, 0], rtol=1e-6)


@pytest.mark.slow
def test_config_json_follows_a_longer_training(tmp_path, one_device):
    def config_of(steps, **changes):
        return tiny_config(steps=steps, optimizer__schedule__name="constant", **changes)

    train(config_of(4), str(tmp_path), devices=one_device)
    first = (tmp_path / "config.json").read_text()
    train(config_of(4), str(tmp_path), devices=one_device)
    assert (tmp_path / "config.json").read_text() == first
    train(config_of(8, checkpoint__keep=3), str(tmp_path), devices=one_device)
    saved = saved_config(tmp_path)
    assert saved.steps == 8 and saved.checkpoint.keep == 3 and saved.seed == 0
    run = read_run(tmp_path)
    assert run.steps == 8 and run.finished and "finished, 8 steps" in render(run)
    # A shorter one is refused, and changes nothing.
    with pytest.raises(UserError, match="already done 8 steps"):
        train(config_of(6), str(tmp_path), devices=one_device)
    assert saved_config(tmp_path).steps == 8


@pytest.mark.slow
def test_a_longer_sweep_continues_its_runs(tmp_path):
    (tmp_path / "one.py").write_text(
        "from tests.conftest import tiny_config\n"
        "def get_config():\n"
        "    config = tiny_config(steps=0, optimizer__schedule__name='constant')\n"
        "    config.epochs = 0.25\n"
        "    return config\n"
    )
    arguments = (str(tmp_path / "one.py"), str(tmp_path / "sweep"), {"seed": ["0"]})
    for epochs, steps in ((0.25, 2), (0.5, 4)):
        assert sweep(*arguments, overrides=[f"epochs={epochs}"]) == 0
        (row,) = json.loads((tmp_path / "sweep/sweep.json").read_text())["runs"]
        assert (row["state"], row["step"], row["steps"]) == ("finished", steps, steps)
    with pytest.raises(UserError, match="boundaries .*does not use it"):
        sweep(*arguments[:2], {"seed": ["7"]}, ["optimizer.schedule.boundaries=2"], table_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"optimizer__schedule__name": "step", "optimizer__schedule__boundaries": (2, 30)},
            "boundaries has 30, but the training has only 4 steps",
        ),
        (
            {"optimizer__schedule__name": "constant", "optimizer__schedule__warmup_steps": 40},
            "warmup_steps is 40, but the training has only 4 steps: .* ends at 0.1 of",
        ),
        ({"early_stopping__patience": 3}, "early_stopping.patience is 3, but .* only 1 eval"),
        (
            {"optimizer__schedule__name": "plateau", "optimizer__schedule__patience": 2},
            "optimizer.schedule.patience is 2, but .* only 1 evaluations",
        ),
        ({}, None),
    ],
)
def test_what_lies_after_the_end_is_said(tmp_path, one_device, caplog, changes, words):
    train(tiny_config(steps=4, **changes), str(tmp_path), devices=one_device)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    warnings = [text for text in warnings if "training has only" in text]
    assert len(warnings) == (words is not None)
    assert words is None or re.search(words, warnings[0])


@pytest.mark.slow
def test_statistics_of_frozen_layers_are_said_to_change(tmp_path, one_device, caplog):
    def warned(**changes):
        caplog.clear()
        config = tiny_config(steps=3, model__kwargs__batch_norm=True, **changes)
        config.optimizer.groups.body = group("conv|norm", frozen=True)
        train(config, str(tmp_path / str(len(changes))), devices=one_device)
        return "running statistics of BatchNorm change in frozen layers (norm1" in caplog.text

    assert warned() and not warned(model__kwargs__frozen_norm=True)


@pytest.mark.slow
def test_a_run_of_an_earlier_version_with_settings_without_effect_resumes(tmp_path, one_device):
    config = tiny_config(optimizer__schedule__name="constant", steps=4)
    train(config, str(tmp_path), devices=one_device)
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    for section, key in (("optimizer", "kwargs"), ("loss", "class_weights")):
        old[section].pop(key)
    for key in ("early_stopping", "callbacks"):
        old.pop(key)
    old["optimizer"]["schedule"].pop("kwargs")
    old["optimizer"]["schedule"]["boundaries"] = [2]
    path.write_text(json.dumps(old))
    config.optimizer.schedule.boundaries, config.steps = (2,), 6
    train(config, str(tmp_path), devices=one_device)
    assert saved_config(tmp_path).steps == 6
    with pytest.raises(UserError, match="boundaries .*does not use it"):
        train(config, str(tmp_path / "new"), devices=one_device)
    with pytest.raises(UserError, match="boundaries .*does not use it"):
        train(config, str(tmp_path), restart=True, devices=one_device)
