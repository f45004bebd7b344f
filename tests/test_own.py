"""Custom pieces by name: a network, a loss, a metric, an augmentation."""

import json
import sys

import numpy as np
import pytest

import jaxconv
from jaxconv.config import load_config
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_workdir
from jaxconv.models.configured import build_model
from jaxconv.own import absolute, is_own, own, same_piece, shown_name
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


NETS = """
import flax.linen as nn
import jax.numpy as jnp
class Wide(nn.Module):
    num_classes: int
    width: int
    dtype: jnp.dtype = jnp.float32
    widths: tuple | None = None
    blocks: tuple = ((4, 1), (8, 2))
    kind: str = "plain"
    @nn.compact
    def __call__(self, x, train):
        for width in (self.width, *(self.widths or ())):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))
def any_width(num_classes, dtype, **kwargs):
    return Wide(num_classes, dtype=dtype, **kwargs)
def listed(num_classes, dtype, widths=[4, 8], make=nn.relu, other=None):
    return Wide(num_classes, widths[0], dtype, tuple(widths[1:]))
"""


def model_config(name, **kwargs):
    config = tiny_config(model__name=name, steps=4, optimizer__schedule__name="constant").model
    config.kwargs.update(kwargs)
    return config


def test_arguments_of_own_networks(tmp_path):
    """Required ones, those whose default is None or a list, nested tuples and **kwargs."""
    (tmp_path / "nets.py").write_text(NETS)
    wide, any_width, listed = (f"{tmp_path}/nets.py:{n}" for n in ("Wide", "any_width", "listed"))
    arguments = jaxconv.model_arguments(wide)
    assert repr(arguments["width"]) == "required" and arguments["kind"] == "plain"
    assert build_model(model_config(wide, width=4), 3).width == 4
    assert build_model(model_config(wide, width=4, widths=[4, 8]), 3).widths == (4, 8)
    blocks = [[2, 1], [2, 1], [2, 2]]
    assert build_model(model_config(wide, width=4, blocks=blocks), 3).blocks[2] == (2, 2)
    assert build_model(model_config(any_width, width=5), 3).width == 5
    assert build_model(model_config(listed, widths=[5, 6]), 3).widths == (6,)
    assert build_model(model_config(listed, widths=5), 3).width == 5
    for kwargs, words in (
        ({}, "needs the argument 'width', which has no default; .*config.model.kwargs.width"),
        ({"width": 4, "kind": 3}, "kwargs.kind is 3; it must be a string"),
        ({"width": 4, "blocks": (1, 2)}, "kwargs.blocks is .* it must be"),
        ({"width": 4, "wide": 3}, "has no argument 'wide', did you mean 'width'"),
    ):
        with pytest.raises(UserError, match=words):
            build_model(model_config(wide, **kwargs), 3)


@pytest.mark.parametrize("value", [[4, 8], (4, 8), np.array([4, 8])])
def test_a_list_is_the_same_when_the_run_is_resumed(tmp_path, one_device, value):
    (tmp_path / "nets.py").write_text(NETS)
    for steps in (4, 6):
        config = tiny_config(
            model__name=f"{tmp_path}/nets.py:Wide",
            steps=steps,
            optimizer__schedule__name="constant",
            log__report=False,
        )
        config.model.kwargs = {"width": np.int64(4), "widths": value}
        train(config, str(tmp_path / "run"), devices=one_device)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["model"]["kwargs"] == {"width": 4, "widths": [4, 8]}


def test_names_with_colons(tmp_path):
    folder = tmp_path / "day_12:30" / "a.py:b"
    folder.mkdir(parents=True)
    (folder / "pieces.py").write_text(PIECES)
    name = f"{folder}/pieces.py:always"
    assert is_own(name) and own(name, "config.eval.metrics").__name__ == "always"
    assert own(absolute(name), "config.eval.metrics").__name__ == "always"
    assert shown_name(name) == "pieces.py:always" and shown_name("resnet50") == "resnet50"
    assert not any(map(is_own, ("folder:a.py:b", "arrays:x.py:y", "text:relu.py:x", "tfds:a.py:b")))


def test_absolute_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my pieces.py").write_text(PIECES)
    wanted = f"{tmp_path}/my%20pieces.py:always"
    assert absolute("my pieces.py:always") == absolute("./my%20pieces.py:always") == wanted
    for name in (wanted, "numpy.mean", "softmax", "gone.py:x", "text:conv3-8"):
        assert absolute(name) == name


def test_a_moved_file_is_the_same_piece(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).mkdir()
    one, two, other = (tmp_path / name / "pieces.py" for name in "abc")
    one.write_text(PIECES)
    two.write_text(PIECES)
    other.write_text("# another")
    assert same_piece(f"{one}:always", f"{two}:always")
    assert not same_piece(f"{one}:always", f"{two}:margin")
    assert not same_piece(f"{one}:always", f"{other}:always")
    assert not same_piece("numpy.mean", f"{one}:mean") and not same_piece("xo", f"{one}:always")
    monkeypatch.chdir(one.parent)
    assert same_piece("pieces.py:always", f"{one}:always")  # as runs before absolute names have it
    one.unlink()
    assert same_piece(f"{one}:always", f"{other}:always")


def test_a_run_is_resumed_after_its_file_has_moved(tmp_path, monkeypatch, one_device, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pieces.py").write_text(PIECES)
    settings = {"optimizer__schedule__name": "constant", "log__report": False}
    first = tiny_config(steps=2, eval__metrics="here/pieces.py:always", **settings)
    train(first, "run", devices=one_device)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["eval"]["metrics"] == f"{tmp_path}/here/pieces.py:always"
    assert first.eval.metrics == "here/pieces.py:always"  # the caller's own config stays
    (tmp_path / "here").rename(tmp_path / "there")
    with caplog.at_level("WARNING", logger="jaxconv"):
        again = tiny_config(steps=4, eval__metrics="there/pieces.py:always", **settings)
        assert train(again, "run", devices=one_device)["always"] == 0.25
    assert "bit-identical" not in caplog.text


SOURCES = """
def too_many(settings, split, more):
    return 3
def fails(settings, split):
    return settings.nothing_like_it
def three(settings, split):
    return 3
class Thing: pass
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("too_many", r"which takes \(settings, split, more\)"),
        ("fails", "which fails: AttributeError"),
        ("three", "which returned int"),
        ("Thing", r"which takes \(\)"),
        ("jax.nn.relu", "which takes"),
        ("numpy.mean", "which fails|which returned"),
    ],
)
def test_a_wrong_source_is_told_what_it_must_be(tmp_path, name, words):
    (tmp_path / "sources.py").write_text(SOURCES)
    data = tiny_config(data__source=name if "." in name else f"{tmp_path}/sources.py:{name}").data
    form = r".*; it must be a function \(config.data, split\) that returns a jaxconv.data.Source"
    with pytest.raises(UserError, match=words + form):
        open_source(data, "train")


def test_a_file_with_postponed_annotations(tmp_path):
    text = "from __future__ import annotations\n" + NETS
    (tmp_path / "nets.py").write_text(text)
    model = jaxconv.create_model(f"{tmp_path}/nets.py:Wide", 3, width=4)
    assert jaxconv.summarize(model, (16, 16, 1)).rows[-1].volume == (3,)
