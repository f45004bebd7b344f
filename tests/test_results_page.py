"""docs/results.md: made from whole runs alone, and from rows that name an experiment."""

import importlib.util
import json
import re
import shutil
import sys

import pytest

from jaxconv.config import load_config
from jaxconv.errors import UserError
from jaxconv.models.network import LAYOUT
from jaxconv.train.build import total_steps
from jaxconv.train.workdir import write_json
from tests.conftest import ROOT

EXAMPLES = 6_000


@pytest.fixture
def script(tmp_path, monkeypatch):
    """docs/results.py as a module that writes into a folder of the test's."""
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "docs" / "results.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "results_page", module)  # for its dataclasses
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "results.tsv", tmp_path / "docs")
    return module


def whole_run(folder, top1, spec="jaxconv:xo", share=1.0, seconds=12.0, **changes):
    """The files of a run of an experiment, trained to a share of its steps."""
    config = load_config(spec)
    config.seed = int(folder.name.partition("=")[2])
    for key, value in changes.items():
        config[key] = value
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config.to_dict())
    data = {"layout": LAYOUT, "train_examples": EXAMPLES, "image_shape": [32, 32, 1]}
    data |= {"kind": "image", "cropped": False, "class_names": ["O", "X"]}
    write_json(folder / "data.json", data)
    step = int(share * total_steps(config, EXAMPLES))
    row = {"step": step, "eval/loss": 0.5, "eval/top1": top1}
    row |= {"seconds": seconds} if seconds else {}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "checkpoints" / str(step)).mkdir(parents=True)
    names = ("python", "jaxconv", "jax", "flax", "optax", "numpy", "device")
    write_json(folder / "versions.json", [dict.fromkeys(names, "1.2.3")])
    return folder


def test_the_page(script, tmp_path):
    runs = tmp_path / "runs"
    for seed, top1 in enumerate((0.5, 0.75, 1.0)):
        whole_run(runs / "xo" / f"seed={seed}", top1, seconds=10.0 + seed, batch_size=64)
    text = script.page(runs, "a machine")
    line = "| 0, 1, 2 | 10 s to 12 s | top-1 75.00 % ± 25.00 % | – |"
    assert line in text and "Machine: a machine." in text
    command = "jaxconv train --config=experiments/xo.py --config.batch_size=64 --config.seed=SEED"
    assert command in text and "top-1 by seed: 50.00 %, 75.00 %, 100.00 %." in text
    assert (tmp_path / "docs" / "results" / "xo.png").stat().st_size > 5_000
    assert "0.95% wrong (LeCun et al. 1998)" in text and "jax 1.2.3" in text
    # What is measured again is no longer taken from the table.
    whole_run(runs / "mnist_lenet5" / "seed=0", 0.99, "jaxconv:mnist_lenet5")
    text = script.page(runs, "a machine")
    assert text.count("[`mnist_lenet5`]") == 1 and "0.83% wrong" not in text
    assert "| top-1 99.00 % | 0.95% wrong (LeCun et al. 1998) |" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"share": 0.5}, "is unfinished, at step"),
        ({"epochs": 1.0}, "has other epochs than xo"),
        ({"seed": 7}, "its seed is 7"),
        ({"seconds": 0}, "did not note the time"),
    ],
)
def test_runs_that_are_not_claimed(script, tmp_path, change, words):
    whole_run(tmp_path / "runs" / "xo" / "seed=0", 1.0, **change)
    with pytest.raises(UserError, match=words):
        script.page(tmp_path / "runs", "a machine")


def test_tables_that_are_wrong(script, tmp_path):
    path = tmp_path / "docs" / "results.tsv"
    head, first, *_ = path.read_text().splitlines()
    for line, words in {
        first.replace("cifar10_quick", "cifar11"): "cifar11 is no experiment",
        first.replace("–", ""): "lacks a cell",
        first + "\tmore": "lacks a cell",
    }.items():
        path.write_text(f"{head}\n{line}\n")
        with pytest.raises(UserError, match=words):
            script.documented(path)


def test_what_is_documented_is_in_the_docstrings(script):
    """The figures of the table are those of the experiments, word for word."""
    for row in script.documented(ROOT / "docs" / "results.tsv"):
        name = row["experiment"].partition(":")[0]
        text = " ".join((ROOT / "experiments" / f"{name}.py").read_text().split())
        figures = re.findall(r"\d[\d.]*%", row["result"])
        assert figures and all(figure in text for figure in figures), name
        assert row["time"].partition(" ")[0] in text
