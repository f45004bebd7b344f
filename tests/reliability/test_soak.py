"""Twenty thousand steps: memory does not grow after the warm-up."""

import json
import subprocess
import sys

import pytest

from tests.conftest import process_settings

# A run in a separate process, which reads its own resident memory at every evaluation.
PROGRAM = """
import json, sys
from jaxconv import run
from jaxconv.train import loop
from tests.conftest import tiny_config

def resident():
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

seen, evaluate = [], loop.Run._evaluate
def watched(self, state):
    seen.append(resident())
    return evaluate(self, state)

loop.Run._evaluate = watched
steps, every = int(sys.argv[2]), int(sys.argv[2]) // 40
settings = {"steps": steps, "eval__every": every, "checkpoint__every": every, "log__every": 10}
settings |= {"optimizer__learning_rate": 0.01, "augment__flip": True}
run.train(tiny_config(**settings, model__kwargs__batch_norm=True), sys.argv[1])
print(json.dumps(seen))
"""


def growth(workdir, steps):
    """Relative growth of resident memory since the first quarter; medians of three evaluations.

    The memory of steps and evaluations is stable after a few of them; that of Orbax grows by 2 to
    3% over about ten checkpoints, and little after that.
    """
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(workdir), str(steps)],
        **process_settings(),
        capture_output=True,
        timeout=1800,
    )
    assert process.returncode == 0, process.stderr
    seen = json.loads(process.stdout.splitlines()[-1])
    assert len(seen) == 40
    return sorted(seen[-3:])[1] / sorted(seen[9:12])[1] - 1


@pytest.mark.full
def test_memory_of_a_short_run_stays(tmp_path):
    """Short, but long enough to detect a step that leaks as much as its batch of images."""
    assert growth(tmp_path, 1000) < 0.05


@pytest.mark.full
def test_memory_of_a_long_run_stays(tmp_path):
    assert growth(tmp_path, 20_000) < 0.02
