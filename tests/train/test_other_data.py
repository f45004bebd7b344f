"""A run measured on other data than those of its config."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxconv.__main__ import main
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_run
from jaxconv.look.opened import open_run
from jaxconv.run import train
from jaxconv.train.other_data import TAKES, check_takes, with_other_data
from jaxconv.train.workdir import saved_config
from jaxconv.values import flatten
from tests.conftest import tiny_config, write_images

OWN = """
import numpy as np
from jaxconv.data import from_arrays
def one_class(settings, split):
    return from_arrays(np.zeros((6, 8, 8, 3), np.uint8), np.zeros(6, int), ("cat", "dog"))
def others(settings, split):
    return from_arrays(np.zeros((6, 8, 8, 3), np.uint8), np.arange(6) % 2, ("cat", "cow"))
def always(logits, label):
    return label * 0.0 + 0.25
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a folder of images that has moved since: the run, and the new folder."""
    root = tmp_path_factory.mktemp("moved")
    images = write_images(root / "images")
    config = tiny_config(
        data__source=f"folder:{images}", steps=4, model__name="text:conv3-4 maxpool2 fc"
    )
    train(config, root / "run")
    images.rename(root / "elsewhere")
    (root / "mine.py").write_text(OWN)
    return root / "run", root / "elsewhere"


def evaluated(capsys, run, *overrides):
    code = main(["evaluate", f"--workdir={run}", "--bootstrap=0", *overrides])
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]) if code == 0 else (code, err), out


def test_data_that_have_moved(trained, capsys):
    run, images = trained
    (code, why), _ = evaluated(capsys, run)
    assert code == 1
    assert "if the data have moved, give --config.data.source=folder:PLACE" in why
    found, out = evaluated(capsys, run, f"--config.data.source=folder:{images}")
    assert (found["source"], found["split"], found["examples"]) == (f"folder:{images}", "test", 12)
    assert f"source    folder:{images}\n" in out
    other = f"--config.data.source=folder:{images}", "--config.data.eval_split", "train"
    assert evaluated(capsys, run, *other)[0]["split"] == "train"
    # It measures what training measured.
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["top1"] == pytest.approx(last["eval/top1"], abs=1e-6)
    assert found["loss"] == pytest.approx(last["eval/loss"], rel=1e-5)


def test_a_custom_source_and_metric_of_the_command_are_trusted(trained, capsys):
    run, images = trained
    mine = images.parent / "mine.py"
    names = f"--config.data.source={mine}:one_class", f"--config.eval.metrics={mine}:always"
    found, _ = evaluated(capsys, run, *names, "--trust=no")
    assert (found["source"], found["examples"], found["always"]) == (f"{mine}:one_class", 6, 0.25)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.source=MINE:others"], "only one has cat, cow, dog|'cow'"),
        (["data.source=xo"], "class names"),
        (["data.mean=0.1,0.2,0.3"], "data.mean: .* .the network was trained on inputs made by it"),
        (["data.image_size=4"], "data.image_size: .* .the network was trained on inputs"),
        (["data.train_split=a"], "it trains nothing"),
        (["eval.every=2"], "it trains nothing"),
        (["optimizer.learning_rate=2"], "only these can be set: data.source, data.eval_split"),
        (["data.sauce=xo"], "data.sauce: evaluate uses the config of the run"),
        (["data.xo.noise=1.0"], "data.xo.noise: does nothing, because the data are folder:"),
        (["data.source"], "give a value, --config.data.source=VALUE"),
        (["data.crop_ratio=2"], "must be at most 1"),
        (["eval.batch_size=a"], "it must be a whole number"),
        (["data.eval_split=nothing", "data.source=folder:IMAGES"], "nothing"),
    ],
)
def test_what_cannot_be_set_is_named(trained, one_device, overrides, words):
    run, images = trained
    mine = str(images.parent / "mine.py")
    given = [o.replace("MINE", mine).replace("IMAGES", str(images)) for o in overrides]
    with pytest.raises(UserError, match=words):
        check_takes("evaluate", given)
        evaluate_run(str(run), devices=one_device, overrides=given)


def test_two_splits_are_one_too_many(trained):
    with pytest.raises(UserError, match="--split=test: .*give only one of them"):
        evaluate_run(str(trained[0]), "test", overrides=["data.eval_split=train"])


def test_look_report_and_predict(trained, capsys, monkeypatch, tmp_path):
    run, images = trained
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("x.png")
    source = f"--config.data.source=folder:{images}"
    assert main(["look", "predictions", f"--workdir={run}", source]) == 0
    assert main(["report", f"--workdir={run}", "--out=page.html", source]) == 0
    page = (tmp_path / "page.html").read_text()
    assert f"on all 12 examples of folder:{images}, split test" in page
    assert "could not be made" not in page
    assert main(["predict", "x.png", f"--workdir={run}", "--config.data.decoder=pillow"]) == 0
    capsys.readouterr()
    for command, override, words in (
        (["look", "filters"], source, "filters shows no data of a run"),
        (["predict", "x.png"], source, "it reads the files that it is given"),
        (["look", "walk"], "--config.seed=1", "look uses the config of the run"),
        (["report"], "--config.steps=1", "report uses the config of the run"),
    ):
        assert main([*command, f"--workdir={run}", override]) == 2
        assert words in capsys.readouterr().err


def test_every_key_that_may_be_set_exists_and_the_run_s_own_config_stays(trained):
    run, images = trained
    keys = flatten(saved_config(run))
    for known in {key for takes in TAKES.values() for key in takes}:
        assert any(key == known or key.startswith(f"{known}.") for key in keys), known
    before = saved_config(run).to_dict()
    changed = with_other_data(saved_config(run), [f"data.source=folder:{images}"])
    assert changed.data.source == f"folder:{images}" and saved_config(run).to_dict() == before
    opened = open_run(run, overrides=[f"data.source=folder:{images}"])
    assert len(opened.source()) == 12
    shutil.copytree(images / "train", images / "copy", dirs_exist_ok=True)
    assert len(opened.source("copy")) == 12
