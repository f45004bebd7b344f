"""The types that users see: pyright takes a right script and finds the mistakes in a wrong one."""

import importlib.resources
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A mistake in each line that ends in the rule that finds it.
WRONG = """
import jax
import numpy as np

import jaxconv
from jaxconv.config import load_config
from jaxconv.data import Arrays, Source, Target, batches
from jaxconv.tasks import Figure, Task

net = jaxconv.create_model("resnet18", num_clases=10)  # reportCallIssue
net = jaxconv.create_model("resnet18", "10")  # reportArgumentType
jaxconv.model_info("resnet18").error  # reportAttributeAccessIssue
jaxconv.model_info("resnet18").errors[0]  # reportOptionalSubscript
jaxconv.features(net, {}, np.zeros((1, 8, 8, 1)), names=3)  # reportArgumentType
config = load_config("xo.py", overides=[])  # reportCallIssue
config.data.source = "xo"
config.unlok()
arrays = Arrays(np.zeros((2, 8, 8, 1)), labels=[0, 1])  # reportCallIssue
arrays.name("0")  # reportArgumentType
Target(shape=8)  # reportArgumentType
batches(arrays, 2, epoch=1)  # reportCallIssue
batches(np.zeros((2, 8, 8, 1)), 2)  # reportArgumentType
Figure("error", "error", pannel="Error")  # reportCallIssue


class Lacking(Source):
    pass


Lacking()  # reportAbstractUsage


class Counting(Task):
    outputs = "3"  # reportAssignmentType
    needs = (3,)  # reportAssignmentType


def lost(state: jaxconv.TrainState) -> jax.Array:
    return state.parameters  # reportAttributeAccessIssue
"""


def run_pyright(folder: Path, *scripts: Path) -> list[dict]:
    """What pyright reports in basic mode, as a user's editor would."""
    settings = {
        "include": [str(script) for script in scripts],
        "typeCheckingMode": "basic",
        "extraPaths": [str(ROOT)],
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(
        [*command, "--project", str(folder)], capture_output=True, text=True, check=False
    )
    if not done.stdout.startswith("{") and not os.environ.get("CI"):
        pytest.skip(f"pyright does not start: {done.stderr.strip()[-200:]}")
    return json.loads(done.stdout)["generalDiagnostics"]


@pytest.mark.slow
def test_pyright_takes_a_right_script_and_finds_the_mistakes_in_a_wrong_one(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    found = run_pyright(tmp_path, ROOT / "tests/typing/user.py", wrong)
    in_right = [one["message"] for one in found if one["file"] != str(wrong)]
    assert not in_right
    expected = {
        (number, rule[1])
        for number, line in enumerate(WRONG.split("\n"), 1)
        if (rule := re.search(r"# (report\w+)$", line))
    }
    assert len(expected) == 16
    errors = {
        (one["range"]["start"]["line"] + 1, one["rule"])
        for one in found
        if one["severity"] == "error"
    }
    assert errors == expected


@pytest.mark.slow
def test_the_right_script_runs():
    subprocess.run([sys.executable, "tests/typing/user.py"], cwd=ROOT, check=True)


def test_the_package_says_that_it_has_types():
    assert (importlib.resources.files("jaxconv") / "py.typed").is_file()
