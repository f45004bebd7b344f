"""A run's custom code in its workdir: copied at the start, executed only if that is allowed."""

import json
import logging
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from jaxconv.__main__ import main
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_workdir
from jaxconv.run import train
from jaxconv.train import code
from jaxconv.train.workdir import begin_or_compare, opened_config, saved_config
from tests.conftest import tiny_config
from tests.train.test_workdir import DATA

NETS = """
import flax.linen as nn
import widths
class Net(nn.Module):
    num_classes: int
    dtype: str = "float32"
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(widths.FILTERS, (3, 3), strides=4, name="conv1")(x))
        return nn.Dense(self.num_classes, name="votes")(x.reshape(x.shape[0], -1))
"""
WIDTHS = "from numbers_of import three\nFILTERS = three()\n"
LOSSES = """
import jax
import jax.numpy as jnp
def square(logits, target):
    return jnp.square(logits - jax.nn.one_hot(target, logits.shape[-1])).sum(-1)
def always(logits, label):
    return jnp.full(label.shape, {})
"""
MESSAGE = "running the code of this workdir: "


@pytest.fixture
def said(caplog, monkeypatch):
    """The package's log messages, as if this process had logged nothing yet."""
    logger = logging.getLogger("jaxconv")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr("jaxconv.train.watch.announce_to", lambda *_, **__: None)
    monkeypatch.setattr(code._Trust, "settled", set())
    caplog.set_level(logging.INFO, logger="jaxconv")
    return caplog


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a network, a loss and a metric whose files were deleted.

    Its folder has a space and a colon in its name.
    """
    root = tmp_path_factory.mktemp("own code")
    mine = write(root / "mine", nets=NETS, widths=WIDTHS, unused="1 / 0")
    package = write(
        mine / "numbers_of", __init__="from .small import three", small="three = lambda: 3"
    )
    assert package.is_dir()
    other = write(root / "other", nets=LOSSES.format(0.25))
    before = os.getcwd()
    try:
        os.chdir(root)
        config = tiny_config(
            model__name="mine/nets.py:Net",
            loss__name=f"{other}/nets.py:square",
            eval__metrics="other/nets.py:always",
            steps=4,
        )
        train(config, str(root / "run 12:30"))
    finally:
        os.chdir(before)
    shutil.rmtree(mine)
    shutil.rmtree(other)
    return root / "run 12:30"


def test_what_is_kept(trained):
    kept = {
        path.relative_to(trained / "code").as_posix()
        for path in (trained / "code").rglob("*")
        if path.is_file()
    }
    assert kept == {
        "code.json",
        "nets.py",
        "widths.py",
        "numbers_of/__init__.py",
        "numbers_of/small.py",
        "2/nets.py",
    }
    listed = json.loads((trained / "code" / "code.json").read_text())
    place = str(trained.parent).replace(" ", "%20")
    assert {name: entry["file"] for name, entry in listed.items()} == {
        f"{place}/mine/nets.py:Net": "nets.py",
        f"{trained.parent}/other/nets.py:square": "2/nets.py",
        f"{place}/other/nets.py:always": "2/nets.py",
    }
    (entry,) = json.loads((trained / "versions.json").read_text())
    assert all(entry[name] == known["crc32"] for name, known in listed.items())
    config, opened = saved_config(trained), opened_config(trained)
    assert config.model.name == f"{place}/mine/nets.py:Net" and opened.is_locked
    assert "run%2012%3A30/code/nets.py:Net" in opened.model.name
    assert opened.data.to_dict() == config.data.to_dict()


@pytest.mark.parametrize("name", ["evaluate", "predict", "export", "filters", "story", "report"])
def test_every_command_runs_the_copies(trained, tmp_path, monkeypatch, capsys, said, name):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save("x.png")
    arguments = {
        "evaluate": ["evaluate", "--bootstrap=0"],
        "predict": ["predict", "x.png"],
        "export": ["export", "--out=out", "--platforms=cpu"],
        "filters": ["look", "filters"],
        "story": ["look", "story"],
        "report": ["report", "--out=report.html"],
    }
    assert main([*arguments[name], f"--workdir={trained}"]) == 0, capsys.readouterr().err
    lines = [message for message in said.messages if message.startswith(MESSAGE)]
    files = [trained / "code" / place for place in ("nets.py", "2/nets.py")]
    assert lines == [f"{MESSAGE}{file}" for file in files]
    if name == "evaluate":
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["always"] == 0.25
    if name == "export":
        assert (
            json.loads((tmp_path / "out" / "model.json").read_text())["model"]
            == saved_config(trained).model.name
        )
    if name == "report":
        assert "could not be made" not in (tmp_path / "report.html").read_text()
    assert "widths" not in sys.modules and not list((trained / "code").rglob("__pycache__"))


@pytest.mark.parametrize(
    "command", ["evaluate", "predict x", "export --out=o", "look walk", "report"]
)
def test_code_that_is_not_trusted(trained, tmp_path, monkeypatch, capsys, said, command):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), f"--workdir={trained}", "--trust=no"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    file = trained / "code" / "nets.py"
    assert line.startswith(
        f"jaxconv: --trust=no: the workdir {trained} holds custom code ({file}, "
    )
    assert code._Trust.answer == "yes" and not said.messages and not [*tmp_path.iterdir()]


def test_trust_is_of_a_workdir(capsys):
    assert main(["look", "filters", "--model=lenet5", "--trust=no"]) == 2
    assert main(["predict", "x.png", "--exported=out", "--trust=yes"]) == 2
    assert capsys.readouterr().err.count("applies to the code of a run; give a --workdir too") == 2


@pytest.fixture
def terminal(monkeypatch):
    """A terminal, with another user's workdir; sets the answer and returns the questions asked."""
    asked = []
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: -1)

    def settle(answer):
        def reply(question):
            asked.append(question)
            if isinstance(answer, type):
                raise answer
            return answer

        monkeypatch.setattr("builtins.input", reply)
        return asked

    return settle


@pytest.mark.parametrize("answer", ["n", "", EOFError])
def test_an_answer_that_is_no_yes(trained, terminal, said, answer):
    asked = terminal(answer)
    with (
        code.trusted("ask"),
        pytest.raises(UserError, match="its code was not run; pass --trust=yes"),
    ):
        opened_config(trained)
    (question,) = asked
    assert question.startswith(f"The workdir {trained} holds custom code ({trained}/code/nets.py,")
    assert question.endswith("which would be run. Run it? [y/N] ") and not said.messages


def test_yes_is_asked_for_once(trained, terminal, said, monkeypatch):
    asked = terminal("y")
    with code.trusted("ask"):
        opened_config(trained)
        opened_config(trained)
    assert len(asked) == 1 and len(said.messages) == 2
    monkeypatch.setattr(code._Trust, "settled", set())
    with code.trusted("yes"):
        opened_config(trained)
    monkeypatch.setattr(code._Trust, "settled", set())
    monkeypatch.setattr(os, "getuid", lambda: os.stat(trained).st_uid)
    with code.trusted("ask"):
        opened_config(trained)
    assert len(asked) == 1


@pytest.fixture
def begun(tmp_path):
    """The workdir of a run with one metric that has begun, and the metric's file."""
    file = write(tmp_path / "mine", metrics=LOSSES.format(0.25)) / "metrics.py"
    config = tiny_config(eval__metrics=f"{file}:always {file}:square")
    (tmp_path / "run").mkdir()
    begin_or_compare(tmp_path / "run", config, DATA)
    return tmp_path / "run", file


def test_several_names_in_one_key(begun, said):
    workdir, file = begun
    copy = workdir / "code" / "metrics.py"
    assert opened_config(workdir).eval.metrics == f"{copy}:always {copy}:square"
    assert saved_config(workdir).eval.metrics == f"{file}:always {file}:square"
    assert said.messages == [f"{MESSAGE}{copy}"]


def test_a_copy_that_was_edited_is_told(begun, said):
    workdir, _ = begun
    (workdir / "code" / "metrics.py").write_text(LOSSES.format(0.5))
    opened_config(workdir)
    assert said.messages[0].endswith("metrics.py (changed since the run began)")


@pytest.mark.parametrize("content", ["{", "[]", '{"a.py:b": 3}', '{"a.py:b": {"file": "a.py"}}'])
def test_damage_is_one_line(begun, content):
    workdir, _ = begun
    (workdir / "code" / "metrics.py").unlink()
    with pytest.raises(UserError, match="metrics.py, the copy of .*:always, is missing"):
        opened_config(workdir)
    (workdir / "code" / "code.json").write_text(content)
    with pytest.raises(UserError, match="code.json: cannot be read"):
        opened_config(workdir)


def test_a_run_older_than_its_code(begun, said):
    workdir, file = begun
    shutil.rmtree(workdir / "code")
    assert opened_config(workdir).eval.metrics == f"{file}:always {file}:square"
    assert not said.messages
    with code.trusted("no"), pytest.raises(UserError, match=f"names custom code .{file}.,"):
        opened_config(workdir)


def test_a_folder_of_that_name(tmp_path):
    """Code left by a run that never began is replaced; other files are not."""
    file = write(tmp_path / "mine", metrics=LOSSES.format(0.25)) / "metrics.py"
    config, workdir = tiny_config(eval__metrics=f"{file}:always"), tmp_path / "run"
    write(workdir / "code", precious="")
    with pytest.raises(UserError, match="contains 'code', which no run created"):
        begin_or_compare(workdir, config, DATA)
    assert [path.name for path in workdir.iterdir()] == ["code"]
    (workdir / "code" / "precious.py").rename(workdir / "code" / "code.json")
    begin_or_compare(workdir, config, DATA)
    assert sorted(path.name for path in (workdir / "code").iterdir()) == ["code.json", "metrics.py"]
    write(tmp_path / "plain" / "code", precious="")
    begin_or_compare(tmp_path / "plain", tiny_config(), DATA)


def test_a_changed_file_does_not_change_a_run(tmp_path, one_device, said):
    """Evaluation uses the copy; training resumes with the current file, or else with the copy."""
    file = write(tmp_path / "mine", metrics=LOSSES.format(0.25)) / "metrics.py"
    settings = {
        "eval__metrics": f"{file}:always",
        "optimizer__schedule__name": "constant",
        "log__report": False,
    }
    run = str(tmp_path / "run")
    train(tiny_config(steps=2, **settings), run, devices=one_device)
    file.write_text(LOSSES.format(0.5))
    assert evaluate_workdir(run, devices=one_device)["always"] == 0.25
    assert train(tiny_config(steps=3, **settings), run, devices=one_device)["always"] == 0.5
    assert "may not be bit-identical" in said.text
    said.clear()
    file.unlink()
    assert train(tiny_config(steps=4, **settings), run, devices=one_device)["always"] == 0.25
    copy = tmp_path / "run" / "code" / "metrics.py"
    assert f"{file} no longer exists; running the copy in the workdir: {copy}" in said.messages
    with pytest.raises(UserError, match="file .* not found"):
        train(tiny_config(steps=4, **settings), run, restart=True, devices=one_device)
    assert evaluate_workdir(f"{run}.old-1", devices=one_device)["always"] == 0.25
