"""The functions at the top: jaxconv.train, evaluate, predict, open_run; and notebooks."""

import inspect
import itertools
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxconv
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_workdir
from jaxconv.notebook import html_table
from jaxconv.run import train as train_of_run
from tests.conftest import process_settings, tiny_config

# Ways to reach the same names; any of them may come first.
IMPORTS = (
    "import jaxconv",
    "import jaxconv.train.step",
    "from jaxconv.train.loop import Run",
    "import jaxconv.predict",
    "from jaxconv import train, predict, evaluate, open_run",
    "from jaxconv.run import train as train_of_run",
    "from jaxconv.evaluation import tables",
    "import jaxconv.look.curves",
)
CHECKS = """
import jaxconv, jaxconv.train.loop, types
assert callable(jaxconv.train) and callable(jaxconv.predict) and callable(jaxconv.evaluate)
assert isinstance(jaxconv.train, types.ModuleType) and jaxconv.train.step.make_train_step
assert jaxconv.predict.find_items and jaxconv.open_run.__name__ == "open_run"
assert jaxconv.look.curves.loss_and_accuracy and jaxconv.look.walk.walk
assert sys.modules["jaxconv.train"] is jaxconv.train
"""
ORDERS = f"""
import sys
import jax, matplotlib, orbax.checkpoint, grain
for order in {[*itertools.permutations(IMPORTS, 2)]!r}:
    for name in [name for name in sys.modules if name.partition(".")[0] == "jaxconv"]:
        del sys.modules[name]
    for line in order:
        exec(line, {{}})
    exec({CHECKS!r}, {{"sys": sys}})
print("all")
"""
QUIET = """
import sys, jaxconv
config = jaxconv.load_config("jaxconv:xo:small")
config.log.progress = False
jaxconv.train(config, sys.argv[1])
jaxconv.evaluate(sys.argv[1], bootstrap=0)
jaxconv.open_run(sys.argv[1])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that `jaxconv.train` has trained, from a spec."""
    folder = tmp_path_factory.mktemp("top") / "run"
    result = jaxconv.train("jaxconv:xo:small", folder)
    assert result["examples"] == 12
    return folder, result


def test_any_order_of_imports():
    settings = process_settings()
    process = subprocess.run([sys.executable, "-c", ORDERS], capture_output=True, **settings)
    assert process.stdout == "all\n", process.stderr


def test_import_is_light():
    script = "import sys, jaxconv; print([m for m in HEAVY if m in sys.modules], *jaxconv.__all__)"
    heavy = ("matplotlib", "orbax", "PIL", "grain", "ml_collections", "tensorboardX")
    script = script.replace("HEAVY", repr(heavy)) + "\nfrom jaxconv import *\nprint(dir(jaxconv))"
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, **process_settings()
    )
    assert process.stdout.startswith("[] ") and "'open_run'" in process.stdout, process.stderr


def test_the_module_that_is_called_has_the_function_s_signature():
    assert inspect.signature(jaxconv.train) == inspect.signature(train_of_run)
    assert "overrides" in inspect.signature(jaxconv.predict).parameters
    assert "jaxconv.run.train" in type(jaxconv.train).__call__.__doc__
    with pytest.raises(AttributeError, match="module 'jaxconv' has no attribute 'trian'"):
        jaxconv.trian  # noqa: B018
    with pytest.raises(AttributeError, match="module 'jaxconv.look' has no attribute 'curve'"):
        jaxconv.look.curve  # noqa: B018


def test_train_takes_configs_and_specs(run, tmp_path):
    folder, result = run
    config = jaxconv.load_config("jaxconv:xo:small")
    assert jaxconv.train(config, str(folder)) == result  # it is the same, finished run
    with pytest.raises(UserError, match="no experiment is called 'oh'"):
        jaxconv.train("jaxconv:oh", tmp_path / "no")
    with pytest.raises(UserError, match="file 'nothing.py' not found"):
        jaxconv.train(Path("nothing.py"), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_evaluate(run, tmp_path):
    folder, result = run
    found = jaxconv.evaluate(folder, bootstrap=100)
    assert found.items() >= result.items() and found["source"] == "xo" and found["step"] == 4
    assert set(found["intervals"]) >= {"top1", "loss"}
    assert "intervals" not in jaxconv.evaluate(str(folder), bootstrap=0)
    other = jaxconv.evaluate(folder, bootstrap=0, overrides={"data.xo.noise": np.float32(0.0)})
    listed = evaluate_workdir(str(folder), overrides=["data.xo.noise=0"])
    assert other["loss"] == listed["loss"] != result["loss"]
    two = jaxconv.evaluate(
        [folder, trained_again(tmp_path)], bootstrap=0, overrides={"data.eval_split": "train"}
    )
    assert [member["step"] for member in two["members"]] == [4, 4] and two["split"] == "train"


def trained_again(tmp_path):
    config = jaxconv.load_config("jaxconv:xo:small", ["seed=1", "log.report=False"])
    jaxconv.train(config, tmp_path / "again")
    return tmp_path / "again"


def test_predict_takes_files_and_arrays_alike(run, tmp_path):
    folder, _ = run
    source = jaxconv.open_run(folder).source()
    images = np.stack([source[n]["image"] for n in range(3)])  # [3, 32, 32, 1]
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    wanted = [one.said for one in jaxconv.predict(folder, paths)]
    assert [one.item.file for one in jaxconv.predict(folder, tmp_path)] == [*map(str, paths)]
    as_colours = [np.repeat(images[0], 3, axis=-1), Image.fromarray(images[1, ..., 0]), images[2]]
    for given in (images, images[..., 0], [*images], as_colours):
        assert [one.said for one in jaxconv.predict(str(folder), given)] == wanted
    (one,) = jaxconv.predict(folder, images[1])
    # A batch of one is another program, whose last bit may differ.
    assert one.probabilities == pytest.approx([row["probability"] for row in wanted[1]["top"]])
    assert one.classes[0] in ("o", "x") and len(repr(one)) < 400
    assert len(jaxconv.predict(folder, np.zeros((50, 40), np.uint8))) == 1  # resized like a file
    assert jaxconv.predict(folder, []) == []
    for wrong, words in (
        (images / 255, "float64; give uint8, from 0 to 255"),
        (np.zeros(3, np.uint8), r"the array is \[3\]; the network takes images \[N, 32, 32, 1\]"),
    ):
        with pytest.raises(UserError, match=words):
            jaxconv.predict(folder, wrong)


def test_predict_signals_and_texts(tmp_path, one_device):
    settings = ["epochs=0", "steps=2", "optimizer.schedule.warmup_steps=0", "log.report=False"]
    for name, given in (
        ("waveform", lambda shape: np.zeros((2, *shape), np.float32)),
        ("sentences", lambda shape: ["a dog barks", "rain"]),
    ):
        config = jaxconv.load_config(f"jaxconv:{name}:small", settings)
        jaxconv.train(config, tmp_path / name, devices=one_device)
        shape = jaxconv.open_run(tmp_path / name).input_shape
        found = jaxconv.predict(tmp_path / name, given(shape))
        assert len(found) == 2 and found[0].probabilities[0] > 0
        one = jaxconv.predict(tmp_path / name, given(shape)[0])
        assert one[0].probabilities == pytest.approx(found[0].probabilities, rel=1e-5)
    with pytest.raises(UserError, match="takes texts: give strings"):
        jaxconv.predict(tmp_path / "sentences", np.zeros((2, 8), np.uint8))
    with pytest.raises(UserError, match=r"the array is \[3, 3\]; the network takes signals \[N, "):
        jaxconv.predict(tmp_path / "waveform", np.zeros((3, 3), np.float32))


def test_short_reprs_and_tables(run):
    opened = jaxconv.open_run(run[0])
    assert repr(opened) == "<OpenedNetwork run: chain, step 4>"
    table = opened._repr_html_()
    assert all(
        words in table for words in (str(run[0]), "image, 32 x 32 x 1", "2: o, x", "xo, test")
    )
    summary = jaxconv.summarize(opened.model, (32, 32, 1))
    assert repr(summary).startswith("<Summary of Chain on 32x32x1, float32: ")
    assert len(repr(summary)) < 120 and str(summary).count("\n") > 10
    assert summary._repr_html_().count("<tr>") == len(summary.table())
    assert html_table("<b>", [("a", "b"), ("&", "1")]).count("&lt;b&gt;") == 1
    assert jaxconv.look.lecture.lecture_walk()._repr_png_().startswith(b"\x89PNG")


@pytest.mark.slow
def test_nothing_of_orbax_leaks(tmp_path):
    process = subprocess.run(
        [sys.executable, "-W", "default", "-c", QUIET, tmp_path / "run"],
        capture_output=True,
        **process_settings(),
    )
    assert process.returncode == 0 and not process.stdout and not process.stderr, process.stderr


def test_only_orbax_is_kept_quiet(caplog):
    """Other users of absl's logger are heard."""
    import jaxconv.train.checkpoint  # noqa: F401

    with caplog.at_level(logging.WARNING, logger="absl"):
        logging.getLogger("absl").warning("heard")
    assert "heard" in caplog.text


@pytest.mark.slow
def test_a_notebook_shows_figures_and_tables(run, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    cells = (
        f"import jaxconv\nopened = jaxconv.open_run({str(run[0])!r})\nopened",
        "jaxconv.summarize(opened.model, opened.input_shape)",
        "jaxconv.look.lecture.lecture_walk()",
        "jaxconv.predict(opened.folder, opened.source()[0]['image'])",
    )
    settings = process_settings()["env"] | {
        "PYTHONPATH": str(Path(jaxconv.__file__).parent.parent),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    for cell, kind in zip(
        notebook.cells, ("text/html", "text/html", "image/png", "text/plain"), strict=True
    ):
        (output,) = cell.outputs  # and nothing on its stderr
        assert kind in output["data"], json.dumps(output)[:500]
        assert len(output["data"]["text/plain"]) < 500


def test_an_own_config_object_is_not_changed(tmp_path, one_device):
    config = tiny_config(steps=2, optimizer__schedule__name="constant", log__report=False)
    before = config.to_dict()
    jaxconv.train(config, tmp_path / "run", devices=one_device)
    assert config.to_dict() == before
