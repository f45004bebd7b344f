"""Runs on sources that were handed to `train`: nothing measures other examples instead."""

import json

import numpy as np
import pytest

from jaxconv.data import from_arrays
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_workdir
from jaxconv.look.opened import open_run
from jaxconv.report.write import report
from jaxconv.run import train
from tests.conftest import assert_one_line_error, command, tiny_config

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), np.uint8)
SOURCES = tuple(from_arrays(IMAGES[:n], np.arange(n) % 2) for n in (24, 10))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train(tiny_config(steps=3), folder, sources=SOURCES)


def test_the_workdir_says_so(run):
    folder, _ = run
    assert json.loads((folder / "config.json").read_text())["data"]["source"] == "given"


def test_evaluate_and_look_want_them(run):
    folder, result = run
    words = "handed to train.*hand one over as source=, or train with --config.data.source=FILE.py"
    with pytest.raises(UserError, match=words):
        evaluate_workdir(folder)
    found = evaluate_workdir(folder, source=SOURCES[1])
    assert {name: found[name] for name in result} == result
    with pytest.raises(UserError, match=words):
        open_run(folder).example(0)
    looked = open_run(folder, source=SOURCES[1])
    np.testing.assert_array_equal(looked.example(3)[0], IMAGES[3])
    assert looked.predictions_figure([SOURCES[1][0]]).axes


@pytest.mark.slow
def test_the_commands_refuse(run, tmp_path):
    folder, _ = run
    for arguments in (("evaluate",), ("look", "predictions", f"--out={tmp_path / 'a.png'}")):
        process = command(*arguments, f"--workdir={folder}")
        assert_one_line_error(process, 1, "handed to train(config, workdir, sources=...)")


def test_the_page_is_of_them(run, tmp_path):
    folder, _ = run
    page = report(folder, tmp_path / "without.html").read_text()
    assert "were handed to train" in page and "given" in page
    page = report(folder, tmp_path / "with.html", source=SOURCES[1]).read_text()
    assert "were handed to train" not in page


def test_it_resumes_with_them_alone(run):
    folder, result = run
    assert train(tiny_config(steps=3), folder, sources=SOURCES) == result
    with pytest.raises(UserError, match="another config: data.source .'given' there, 'xo' here"):
        train(tiny_config(steps=3), folder)
    other = from_arrays(255 - IMAGES, np.arange(24) % 2), SOURCES[1]
    with pytest.raises(UserError, match="the data has changed since the run began: train_checksum"):
        train(tiny_config(steps=3), folder, sources=other)


def test_a_run_of_an_earlier_version_resumes(run):
    """Its config has the source that the experiment names."""
    folder, result = run
    saved = json.loads((folder / "config.json").read_text())
    saved["data"]["source"] = "xo"
    (folder / "config.json").write_text(json.dumps(saved))
    assert train(tiny_config(steps=3), folder, sources=SOURCES) == result
    saved["data"]["source"] = "given"
    (folder / "config.json").write_text(json.dumps(saved))


def test_sources_that_do_not_fit_one_another(tmp_path):
    train_source = SOURCES[0]
    for other, words in (
        (from_arrays(IMAGES, np.arange(24) % 2, "ba"), "class names of the source to evaluate on"),
        (from_arrays(IMAGES, np.arange(24) % 3), "class names"),
        (from_arrays(IMAGES[:, :8], np.arange(24) % 2), r"image shape .* \[8, 16, 1\], but"),
        (from_arrays(IMAGES / 255, np.arange(24) % 2, layout="NTFC"), "kind .* are signal, but"),
    ):
        with pytest.raises(UserError, match=words):
            train(tiny_config(steps=3), tmp_path / "run", sources=(train_source, other))


def test_arrays_of_a_run_of_an_earlier_version(tmp_path):
    """Numbers from 0 to 1 were signals; the run resumes and is evaluated as it began."""
    arrays = {"x": IMAGES / 255, "y": np.arange(24) % 2}
    np.savez(
        tmp_path / "d.npz", **{f"{k}_{s}": v for k, v in arrays.items() for s in ("train", "test")}
    )
    config = tiny_config(steps=3, data__source=f"arrays:{tmp_path / 'd.npz'}")
    for key in ("pad_crop", "flip"):
        config.augment[key] = type(config.augment[key])(0)
    folder = tmp_path / "run"
    sources = (from_arrays(arrays["x"], arrays["y"], layout="NTFC"),) * 2
    result = train(config, folder, sources=sources)
    saved = json.loads((folder / "config.json").read_text())
    saved["data"]["source"] = config.data.source
    del saved["data"]["arrays"], saved["data"]["text"]["header"]
    (folder / "config.json").write_text(json.dumps(saved))
    assert json.loads((folder / "data.json").read_text())["kind"] == "signal"
    assert train(config, folder) == result
    found = evaluate_workdir(folder)
    assert {name: found[name] for name in result} == result
