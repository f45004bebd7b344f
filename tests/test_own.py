"""Custom pieces by name: a network, a loss, a metric, an augmentation."""

import json
import sys

import numpy as np
import pytest

import jaxconv
from jaxconv.config import load_config
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_workdir
from jaxconv.own import is_own, own
from jaxconv.run import train
from jaxconv.user_files import checksum, neighbours
from tests.conftest import ROOT, command, tiny_config

PIECES = """
import jax, jax.numpy as jnp
def margin(logits, target):
    return jnp.square(logits - jax.nn.one_hot(target, logits.shape[-1])).sum(-1)
def always(logits, label):
    return jnp.full(label.shape, 0.25)
def black(key, batch):
    return batch | {"image": jnp.zeros_like(batch["image"])}
def mean_of_all(logits, target):
    return jnp.mean(logits)
def wants_shares(logits, target):
    return (logits * target).sum(-1)
def cut(key, batch):
    return batch | {"image": batch["image"][:, 1:]}
def no_network(num_classes, dtype):
    return 3
number = 3
"""


@pytest.fixture
def pieces(tmp_path):
    path = tmp_path / "pieces.py"
    path.write_text(PIECES)
    return path


def test_the_experiment_with_own_pieces(tmp_path, one_device):
    config = load_config(str(ROOT / "experiments" / "own_pieces.py:small"), ["log.report=False"])
    result = train(config, str(tmp_path), devices=one_device)
    assert (
        0.5 <= result["confidence"] <= 1
        and evaluate_workdir(str(tmp_path), devices=one_device)["confidence"]
        == result["confidence"]
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["eval/confidence"] == result["confidence"]


def test_an_own_loss_metric_and_augmentation_are_used(pieces, tmp_path, one_device):
    changes = {
        "eval__metrics": f"{pieces}:always",
        "optimizer__learning_rate": 0.0,
        "log__every": 1,
        "steps": 2,
        "optimizer__schedule__name": "constant",
    }
    result = train(
        tiny_config(loss__name=f"{pieces}:margin", **changes),
        str(tmp_path / "a"),
        devices=one_device,
    )
    assert result["always"] == 0.25
    train(
        tiny_config(loss__name=f"{pieces}:margin", augment__own=f"{pieces}:black", **changes),
        str(tmp_path / "b"),
        devices=one_device,
    )
    first, black = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in "ab")
    # Of black images alone the loss is the same in every batch, but for the classes.
    assert json.loads(first[0])["train/loss"] != json.loads(black[0])["train/loss"]


def test_a_network_by_its_module(monkeypatch, pieces):
    name = "flax.linen.Dense"
    assert is_own(name) and own(name, "config.model.name") is __import__("flax.linen").linen.Dense
    assert not any(map(is_own, ("resnet50", "text:conv3-8 relu fc", "softmax", "text:conv3-8/2.5")))
    model = jaxconv.create_model(f"{ROOT / 'experiments' / 'own_pieces.py'}:Net", 5, filters=3)
    assert jaxconv.summarize(model, (32, 32, 1)).rows[-1].volume == (5,)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"loss__name": "nowhere.py:margin"}, "file 'nowhere.py' not found"),
        ({"loss__name": "nowhere.margin"}, "nowhere cannot be imported"),
        ({"loss__name": "{}:margim"}, "has no 'margim', did you mean 'margin'?"),
        ({"loss__name": "{}:number"}, "which is 3; it must be a function .logits"),
        ({"loss__name": "{}:margin", "loss__label_smoothing": 0.1}, "leave them at 0"),
        ({"augment__own": "black"}, "must be FILE.py:NAME or package.module.NAME"),
        ({"eval__metrics": "{}:always top5"}, "config.eval.metrics is 'top5'"),
        ({"model__name": "{}:Net"}, "has no 'Net'"),
        (
            {"loss__name": "{}:mean_of_all"},
            r"must return an array of shape \(3,\), but it returns \(\)",
        ),
        ({"loss__name": "{}:wants_shares"}, "config.loss.name is .* which fails"),
        ({"eval__metrics": "optax.sgd"}, "config.eval.metrics is 'optax.sgd', which fails"),
        (
            {"augment__own": "{}:cut"},
            r"must return an array of shape \(2, 16, 16, 1\), but it returns \(2, 15, 16, 1\)",
        ),
        (
            {"model__name": "{}:no_network"},
            "which returned int; it must be a Linen module",
        ),
        (
            {"model__name": "optax.sgd"},
            "config.model.name is 'optax.sgd', which takes .* a Linen module",
        ),
    ],
)
def test_what_cannot_be_found_is_said(pieces, tmp_path, one_device, changes, words):
    changes = {
        key: value.format(pieces) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        train(tiny_config(**changes), str(tmp_path / "run"), devices=one_device)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_changed_file_is_told_on_resume(pieces, tmp_path, one_device, caplog):
    settings = {"loss__name": f"{pieces}:margin", "optimizer__schedule__name": "constant"}
    train(tiny_config(steps=2, **settings), str(tmp_path / "run"), devices=one_device)
    pieces.write_text(PIECES + "\n# changed\n")
    with caplog.at_level("WARNING", logger="jaxconv"):
        train(tiny_config(steps=4, **settings), str(tmp_path / "run"), devices=one_device)
    assert "pieces.py:margin" in caplog.text and "may not be bit-identical" in caplog.text


def test_an_edited_file_is_run_again(tmp_path):
    """And so is one whose neighbour was edited; else it is run once, whichever key names it."""
    (tmp_path / "helper.py").write_text("number = 1")
    file = tmp_path / "piece.py"
    file.write_text("import helper\ndef number(): return helper.number")
    first = own(f"{file}:number", "config.loss.name")
    assert first() == 1 and own(f"{file}:number", "config.augment.own") is first
    (tmp_path / "helper.py").write_text("number = 2")
    second = own(f"{file}:number", "config.loss.name")
    file.write_text("import helper\ndef number(): return 10 * helper.number")
    assert (first(), second(), own(f"{file}:number", "config.loss.name")()) == (1, 2, 20)


def test_neighbours_are_those_of_a_file(tmp_path, monkeypatch):
    """Two of one name do not meet, nor does one meet a module that this process has by that name;
    what jaxconv runs on, and Python's own, are no neighbours.
    """
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "helper.py").write_text(f"name = {name!r}")
        (tmp_path / name / "piece.py").write_text(
            "import helper, json, numpy\nfrom flax import linen\ndef name(): return helper.name"
        )
        for other in ("json", "numpy", "flax", "unused"):
            (tmp_path / name / f"{other}.py").write_text("1 / 0")
    mine, path = object(), [*sys.path]
    monkeypatch.setitem(sys.modules, "helper", mine)
    assert [own(f"{tmp_path / name / 'piece.py'}:name", "key")() for name in "ab"] == ["a", "b"]
    assert sys.modules["helper"] is mine and sys.path == path
    assert neighbours(tmp_path / "a" / "piece.py") == [tmp_path / "a" / "helper.py"]
    before = checksum(tmp_path / "a" / "piece.py")
    (tmp_path / "a" / "helper.py").write_text("name = 0")
    assert checksum(tmp_path / "a" / "piece.py") != before


def test_a_path_with_a_space(tmp_path):
    """It can be written without one, which would end a name in config.eval.metrics."""
    (tmp_path / "my pieces.py").write_text(PIECES)
    (tmp_path / "100%20.py").write_text(PIECES)
    for name in ("my pieces", "my%20pieces", "100%20", "100%2520"):
        assert own(f"{tmp_path}/{name}.py:always", "config.eval.metrics").__name__ == "always"


@pytest.mark.slow
def test_a_file_that_fails_is_one_line(tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0")
    process = command(
        "train",
        f"--workdir={tmp_path / 'run'}",
        "--config=experiments/xo.py",
        f"--config.loss.name={tmp_path / 'bad.py'}:x",
    )
    assert (
        process.returncode == 2
        and "ZeroDivisionError" in process.stderr
        and "Traceback" not in process.stderr
    )


def test_versions_of_own_pieces_are_numbers_of_their_files(pieces):
    from jaxconv.own import checksums

    config = tiny_config(loss__name=f"{pieces}:margin", eval__metrics="numpy.mean")
    sums = checksums(config)
    assert set(sums) == {f"{pieces}:margin", "numpy.mean"} and len(sums[f"{pieces}:margin"]) == 8
    assert np.unique(list(sums.values())).size == 2
