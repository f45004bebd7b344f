"""The benchmark of accelerators, small, on a CPU."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "tests" / "benchmarks" / "accelerator.sh"


def run(*arguments, **environment):
    settings = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=settings)


def test_its_options():
    said = run("--help").stdout
    assert said.startswith("What a GPU does with jaxconv") and "--cifar10=DIR" in said
    wrong = run("--tiny")
    assert wrong.returncode == 2
    assert wrong.stderr == "accelerator.sh: --tiny is not an option; see --help\n"


def test_a_part_that_fails_is_said_and_the_others_go_on():
    process = run("--small", PYTHON="false")
    assert process.returncode == 1
    assert process.stdout.count("not measured: exit code 1") == 5


@pytest.mark.full
def test_every_part_prints_a_table():
    process = run("--small")
    assert process.returncode == 0 and "not measured" not in process.stdout, process.stdout
    parts = process.stdout.split("## ")[1:]
    assert len(parts) == 5
    assert "share of the roofline" in parts[0] and "| multiply_add_fusion |" in parts[1]
    assert "jaxconv's loop over the bare loop: " in parts[2] and "on the second start" in parts[2]
    assert "| vmap | " in parts[3] and "| pmap | 1 | 1 |" in parts[4]
