"""A disk that is full, read-only or removed while a run saves.

The run stops with a one-line error, and the last good checkpoint is intact.
"""

import os
import shutil
import subprocess
import sys

import pytest

from jaxconv.train.workdir import read_metrics
from tests.conftest import TINY, assert_one_line_error, command, process_settings, rarely

pytestmark = pytest.mark.slow
RUN = (*TINY, "--config.steps=40", "--config.checkpoint.every=4")

# The first argument names the fault, which occurs at the third checkpoint.
PROGRAM = """
import errno, os, resource, shutil, sys
from pathlib import Path
from jaxconv.__main__ import main
from jaxconv.train.checkpoint import Checkpoints
from jaxconv.train.watch import MetricsLog

workdir = next(arg for arg in sys.argv if arg.startswith("--workdir="))
fault, folder = sys.argv[1], Path(workdir.partition("=")[2])
save, write = Checkpoints.save, MetricsLog.write

def fill():  # no file may grow beyond a few bytes, as on a disk without room
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))

def faulty(self, step, *args):
    if step == 12:
        self.wait()
        if fault == "full":
            fill()
        if fault == "gone":
            shutil.move(folder / "checkpoints", folder / "elsewhere")
            (folder / "checkpoints").write_text("")  # so that it cannot come back
        if fault == "readonly":
            make = os.mkdir
            def refuse(path, *args, **kwargs):
                if "checkpoints" in str(path):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
                return make(path, *args, **kwargs)
            os.mkdir = refuse
    save(self, step, *args)
    if fault == "log":
        self.wait()

def faulty_log(self, row):
    if fault == "log" and row["step"] > 12:
        fill()
    return write(self, row)

Checkpoints.save, MetricsLog.write = faulty, faulty_log
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The last line that a run without a fault prints."""
    process = command("train", f"--workdir={tmp_path_factory.mktemp('straight')}", *RUN)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()[-1]


@pytest.mark.parametrize("fault", rarely(["full", "gone", "readonly"], {"gone", "readonly"}))
def test_the_last_good_checkpoint_is_whole(tmp_path, result, fault):
    workdir = tmp_path / "run"
    arguments = [sys.executable, "-c", PROGRAM, fault, "train", f"--workdir={workdir}", *RUN]
    # The timeout matters too: a thread that waits for a failed write must not block the exit.
    process = subprocess.run(arguments, **process_settings(), capture_output=True, timeout=120)
    assert_one_line_error(
        process, 1, "a checkpoint could not be written", "earlier checkpoints are intact"
    )
    if fault == "gone":
        os.remove(workdir / "checkpoints")
        shutil.move(workdir / "elsewhere", workdir / "checkpoints")
    assert "8" in os.listdir(workdir / "checkpoints") and "12" not in os.listdir(
        workdir / "checkpoints"
    )
    again = command("train", f"--workdir={workdir}", *RUN)
    assert again.returncode == 0 and "is damaged" not in again.stderr, again.stderr
    assert again.stdout.splitlines()[-1] == result


def test_a_full_disk_ends_the_log_with_a_line(tmp_path, result):
    workdir = tmp_path / "run"
    run = ["train", f"--workdir={workdir}", *RUN, "--config.log.tensorboard=True"]
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, "log", *run],
        **process_settings(),
        capture_output=True,
        timeout=120,
    )
    assert_one_line_error(
        process,
        1,
        f"{workdir}: cannot be written (File too large)",
        "resumes from the last checkpoint",
    )
    again = command(*run)
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == result, again.stderr
    assert [row["step"] for row in read_metrics(workdir) if "train/loss" in row] == [
        *range(3, 40, 3),
        40,
    ]


def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line_error(
        command("train", f"--workdir={tmp_path / 'file' / 'run'}", *RUN), 1, "cannot be written"
    )
