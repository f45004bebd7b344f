"""Two processes with two devices each, on one machine; and preemption by SIGTERM."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxconv.errors import UserError
from jaxconv.train import processes
from jaxconv.train.parallel import fingerprint
from jaxconv.train.restore import restore_run
from tests.conftest import TINY, assert_one_line_error, command, command_line, process_settings

pytestmark = pytest.mark.slow
STEPS = "--config.steps=24"
NORM = ("--config.model.kwargs.batch_norm=True", "--config.augment.flip=True")


def start(workdir, *flags, count=2, workdirs=(), only_in_last="", of=(*TINY, STEPS)):
    """Start the processes of one run, each with two devices, on one workdir or on `workdirs`; the
    last runs some code first. `of` are the flags of the run that `flags` change.
    """
    workdirs = workdirs or [workdir] * count
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [
                *(after(only_in_last) if only_in_last and n == count - 1 else command_line()),
                "train",
                f"--workdir={workdirs[n]}",
                *of,
                *flags,
                f"--distributed=127.0.0.1:{port},{count},{n}",
            ],
            **process_settings(2),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for n in range(count)
    ]


def after(code):
    """The command `python -m jaxconv` after some code."""
    run = "import sys; from jaxconv.__main__ import main; sys.exit(main())"
    return [sys.executable, "-c", f"{code}\n{run}"]


def finish(running, timeout=240):
    """(exit codes, outputs) in the order of the processes; leaves none running."""
    try:
        said = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], [out + error for out, error in said]


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def wait_for(path, running, seconds=200):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end and all(process.poll() is None for process in running), [
            p.communicate() for p in running
        ]
        time.sleep(0.1)


@pytest.fixture(scope="module")
def on_four(tmp_path_factory):
    """The workdir of the same run, in one process with four devices."""
    workdir = tmp_path_factory.mktemp("four")
    process = command("train", f"--workdir={workdir}", *TINY, STEPS, *NORM, devices=4)
    assert process.returncode == 0, process.stderr
    return workdir


@pytest.mark.parametrize(
    "mode", ["jit", *(pytest.param(mode, marks=pytest.mark.full) for mode in ("pmap", "fsdp"))]
)
def test_two_processes_train_as_one(on_four, tmp_path, mode):
    codes, said = finish(start(tmp_path, *NORM, f"--config.parallel={mode}"))
    assert codes == [0, 0], said
    assert "in 2 processes" in said[0]
    # Ignore gloo's lines, which its threads write into each other.
    gloo = (
        r"\[Gloo\] Rank|is connected to|peer ranks?\.|Expected number of connected peer ranks is :"
        r"|[\s\d]"
    )
    assert not re.sub(gloo, "", said[1]), said[1]
    np.testing.assert_allclose(losses(tmp_path), losses(on_four), rtol=1e-4)
    # The checkpoint of 2 x 2 devices restores on one, and on eight.
    one = command("evaluate", f"--workdir={tmp_path}")
    eight = command("evaluate", f"--workdir={tmp_path}", devices=8)
    assert one.returncode == eight.returncode == 0, one.stderr + eight.stderr
    assert json.loads(eight.stdout.splitlines()[-1])["loss"] == pytest.approx(
        json.loads(one.stdout.splitlines()[-1])["loss"], rel=1e-5
    )


def test_streamed_from_two_processes(tmp_path):
    """Each process reads its own part of every batch, and the run is the same."""
    from tests.conftest import write_images

    write_images(tmp_path / "images", count=12)
    flags = [
        f"--config.data.source=folder:{tmp_path / 'images'}",
        "--config.data.resident_limit=0",
        "--config.augment.mixup=0.2",
    ]
    codes, said = finish(start(tmp_path / "two", *flags, "--config.log.report=True"))
    assert codes == [0, 0], said
    assert "the run has several processes" in (tmp_path / "two" / "report.html").read_text()
    process = command("train", f"--workdir={tmp_path / 'one'}", *TINY, STEPS, *flags, devices=4)
    assert process.returncode == 0, process.stderr
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)


def test_a_killed_process_stops_the_other_and_the_job_goes_on_exactly(tmp_path):
    codes, said = finish(start(tmp_path / "straight"))
    assert codes == [0, 0], said
    running = start(tmp_path / "killed")
    wait_for(tmp_path / "killed" / "checkpoints" / "8", running)
    running[1].kill()
    begun = time.monotonic()
    codes, said = finish(running, timeout=60)
    assert time.monotonic() - begun < 60
    # Our own message, or that of JAX's service if it noticed first.
    assert codes[0] not in (0, 1) and (
        "another process of the run was lost" in said[0] or "another task died" in said[0]
    ), said
    codes, said = finish(start(tmp_path / "killed"))
    assert codes == [0, 0], said
    states = [restore_run(tmp_path / name)[0] for name in ("straight", "killed")]
    assert int(fingerprint(states[0])) == int(fingerprint(states[1]))
    assert losses(tmp_path / "straight") == losses(tmp_path / "killed")


def test_what_is_wrong_is_said_by_the_first_and_stops_both(tmp_path):
    codes, _ = finish(start(tmp_path))
    assert codes == [0, 0]
    codes, said = finish(start(tmp_path, "--config.optimizer.momentum=0.5"))
    assert codes == [1, 1]
    assert (
        "holds a run with another config" in said[0]
        and "the first process of the run failed" in said[1]
    )
    assert not any("Traceback" in text for text in said), said


UNREADABLE = """
import orbax.checkpoint as ocp
plain = ocp.StandardCheckpointHandler.restore
def restore(self, directory, *arguments, **settings):
    if directory.parent.name == "8":
        raise OSError(5, "Input/output error")
    return plain(self, directory, *arguments, **settings)
ocp.StandardCheckpointHandler.restore = restore
"""


@pytest.mark.parametrize("mode", ["jit", pytest.param("fsdp", marks=pytest.mark.full)])
def test_a_shard_that_one_process_cannot_read(tmp_path, mode):
    """All pass over that checkpoint, and none waits for the other."""
    flags = (f"--config.parallel={mode}", "--config.optimizer.schedule.name=constant")
    codes, said = finish(start(tmp_path, *flags, "--config.steps=8"))
    assert codes == [0, 0], said
    begun = time.monotonic()
    running = start(tmp_path, *flags, "--config.steps=12", only_in_last=UNREADABLE)
    codes, said = finish(running)
    assert codes == [0, 0] and time.monotonic() - begun < 120, said
    assert "checkpoint of step 8 is damaged (another process cannot read it)" in said[0], said
    assert "steps 4 to 12" in said[0] and "Input/output error" in said[1]
    assert (tmp_path / "damaged" / "8").is_dir()


def test_data_that_one_process_cannot_read_stops_both(tmp_path):
    images = np.zeros((24, 16, 16), np.uint8)
    np.savez(tmp_path / "d.npz", **{f"x_{s}": images for s in ("train", "test")},
             **{f"y_{s}": np.arange(24) % 2 for s in ("train", "test")})  # fmt: skip
    source = f"--config.data.source=arrays:{tmp_path / 'd.npz'}"
    gone = """
import numpy
def load(*_, **__):
    raise OSError(5, "Input/output error")
numpy.load = load
"""
    begun = time.monotonic()
    codes, said = finish(start(tmp_path / "run", source, only_in_last=gone))
    assert codes == [1, 1] and time.monotonic() - begun < 100, said
    assert "another process of the run failed; see its error message" in said[0]
    assert "d.npz: cannot be read" in said[1] and not any("Traceback" in text for text in said)
    other = """
from jaxconv.data import xo
plain = xo.draw_split
xo.draw_split = lambda split, **settings: plain(split, **{**settings, "seed": 7})
"""
    codes, said = finish(start(tmp_path / "run", only_in_last=other))
    assert codes == [1, 1], said
    assert all("do not see the same examples" in text for text in said), said


def test_a_workdir_that_is_not_shared_is_said(tmp_path):
    codes, said = finish(
        start(tmp_path, workdirs=[tmp_path / "one", tmp_path / "two"]), timeout=120
    )
    assert codes == [2, 2] and all(
        "is not the same folder for all processes of the run" in text for text in said
    ), said
    assert (
        not any("Traceback" in text for text in said)
        and not (tmp_path / "one" / "config.json").exists()
    ), said


@pytest.mark.parametrize(
    "count, several", [(1, 1), pytest.param(2, 1, marks=pytest.mark.full), (2, 3)]
)
def test_sigterm_saves_and_exits_with_a_code_of_its_own(tmp_path, count, several):
    flags = (
        "--config.steps=4000",
        "--config.checkpoint.every=4000",
        "--config.eval.every=4000",
        f"--config.steps_per_call={several}",
    )
    running = start(tmp_path / "stopped", *flags, count=count)
    wait_for(tmp_path / "stopped" / "metrics.jsonl", running)
    time.sleep(1)
    running[-1].send_signal(signal.SIGTERM)
    codes, said = finish(running, timeout=120)
    assert codes == [75] * count, said
    assert "stopped by SIGTERM after step" in said[0] and not any(
        "Traceback" in text for text in said
    ), said
    assert [
        path.name
        for path in (tmp_path / "stopped" / "checkpoints").iterdir()
        if path.name.isdecimal()
    ] != []


def test_sigterm_before_the_first_step_is_a_preemption_too(tmp_path):
    running = subprocess.Popen(
        command_line("train", f"--workdir={tmp_path}", *TINY, STEPS),
        **process_settings(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for(tmp_path / ".lock", [running])
    running.send_signal(signal.SIGTERM)
    codes, said = finish([running])
    assert (
        codes == [75]
        and "stopped by SIGTERM, with nothing to save" in said[0]
        and "Traceback" not in said[0]
    ), said


def test_a_stopped_run_ends_with_the_same_bits(tmp_path, monkeypatch, one_device):
    """SIGTERM at step 6 of 10, to this process."""
    from jaxconv.run import train
    from tests.conftest import tiny_config

    straight = train(tiny_config(), str(tmp_path / "a"), devices=one_device)
    reached, asked = processes.Preemption.reached, itertools.count(1)

    def signalled(self):
        if next(asked) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return reached(self)

    monkeypatch.setattr(processes.Preemption, "reached", signalled)
    with pytest.raises(
        UserError, match="stopped by SIGTERM after step 6, which is saved"
    ) as stopped:
        train(tiny_config(), str(tmp_path / "b"), devices=one_device)
    assert stopped.value.exit_code == 75
    assert train(tiny_config(), str(tmp_path / "b"), devices=one_device) == straight
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    "how", ["10.0.0.1,2,0", "10.0.0.1:8476", "10.0.0.1:8476,2", "10.0.0.1:8476,two,0", "maybe"]
)
def test_how_to_find_the_others_is_checked(tmp_path, how):
    assert_one_line_error(
        command("train", f"--workdir={tmp_path}", *TINY, STEPS, f"--distributed={how}"),
        2,
        "must be auto, on, off",
    )


def test_a_process_beyond_the_last_is_said(tmp_path):
    process = command(
        "train", f"--workdir={tmp_path}", *TINY, STEPS, "--distributed=127.0.0.1:1,2,2"
    )
    assert_one_line_error(process, 2, "the last of 2 is 1")


def test_launchers_are_told_by_their_variables(monkeypatch):
    for name in (
        "SLURM_NTASKS",
        "OMPI_COMM_WORLD_SIZE",
        "TPU_WORKER_HOSTNAMES",
        *processes._OF_SLURM,
    ):
        monkeypatch.delenv(name, raising=False)
    assert not processes._several()
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert not processes._several()  # in the job, but not started by srun
    for name in processes._OF_SLURM:
        monkeypatch.setenv(name, "1")
    assert processes._several()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not processes._several()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert processes._several()


@pytest.mark.parametrize(
    ("environment", "launched", "several"),
    [
        ({}, None, False),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}, "Slurm", False),
        ({"SLURM_NTASKS": "many"}, None, False),
        (dict.fromkeys(processes._OF_SLURM, "1") | {"SLURM_NTASKS": "2"}, "Slurm", True),
        (
            dict.fromkeys(processes._OF_SLURM, "1")
            | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1"},
            "Slurm",
            False,
        ),
        (
            dict.fromkeys(processes._OF_SLURM, "1")
            | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"},
            "Slurm",
            True,
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI", False),
        (
            dict.fromkeys(processes._OF_OPEN_MPI, "1") | {"OMPI_COMM_WORLD_SIZE": "2"},
            "Open MPI",
            True,
        ),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, "a TPU pod", True),
    ],
)
def test_what_launched_this_process(monkeypatch, environment, launched, several):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (processes._launched() and processes._launched().launcher) == launched
    assert processes._several() is several


def test_an_open_mpi_that_jax_cannot_use_is_said(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    with pytest.raises(UserError, match=r"--distributed=HOST:PORT,4,\$OMPI_COMM_WORLD_RANK"):
        processes.join("auto")
    processes.join("off")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 75, marks=pytest.mark.full)],
)
def test_waiting_for_the_others_is_said_and_can_be_stopped(tmp_path, number, code):
    (running, other) = start(tmp_path / "run")
    other.kill()
    other.communicate()
    try:
        line = running.stderr.readline()
        assert "waiting for the other 1 of 2 processes of the run (this is process 0; " in line
        running.send_signal(number)
        _, said = running.communicate(timeout=10)
    finally:
        running.kill()
    assert running.returncode == code and said.count("\n") == 1, said
    assert said.startswith("jaxconv: ") and not (tmp_path / "run").exists()


def test_others_that_never_come_are_one_line(tmp_path):
    impatient = """
import sys
from jaxconv.train import processes
processes._QUIET, processes._PATIENCE = 1, 4
from jaxconv.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        how = f"--distributed=127.0.0.1:{free.getsockname()[1]},2,0"
    process = subprocess.run(
        [sys.executable, "-c", impatient, "train", f"--workdir={tmp_path}", *TINY, STEPS, how],
        capture_output=True,
        timeout=100,
        **process_settings(),
    )
    assert_one_line_error(process, 1, "did not come within 4 s", "--distributed=off")
    assert "@  " not in process.stderr


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.full)])
def test_ctrl_c_in_one_process_ends_both_and_the_run_resumes(tmp_path, which):
    """The other notices late, or is aborted by JAX if the first one is lost: within a minute."""
    flags, saved = (
        ("--config.steps=100000", "--config.checkpoint.every=8"),
        tmp_path / "run" / "checkpoints",
    )
    running = start(tmp_path / "run", *flags)
    wait_for(saved / "8", running)
    running[which].send_signal(signal.SIGINT)
    codes, said = finish(running, timeout=60)
    assert codes[which] == 130 and "jaxconv: interrupted; the same commands" in said[which], said
    assert codes[1 - which] not in (0, 1, 2) and "Traceback" not in said[which], said
    last = max(int(path.name) for path in saved.iterdir() if path.name.isdigit())
    running = start(tmp_path / "run", *flags)
    wait_for(saved / str(last + 8), running)
    for process in running:
        process.send_signal(signal.SIGTERM)
    codes, said = finish(running)
    assert codes == [75, 75], said


# A source of which one of the processes cannot read an example.
SHARDS = """
import os
import numpy as np
from jaxconv.data.interface import Element, Source
from jaxconv.errors import UserError

class Shards(Source):
    class_names, element = ("a", "b"), Element((16, 16, 1))

    def __init__(self, split):
        self.ill = split == "train" and "ILL" in os.environ

    def __len__(self):
        return 64

    def read(self, i, key=(0, 0)):
        if self.ill and i == 40:
            raise UserError("shard 3 cannot be read", exit_code=1)
        return {"image": np.full((16, 16, 1), i, np.uint8), "label": np.int32(i % 2)}

    def name(self, i):
        return f"example {i}"

    def checksum(self):
        return 1

def shards(settings, split):
    return Shards(split)
"""


@pytest.mark.full
def test_a_shard_that_one_process_cannot_read_ends_both(tmp_path):
    """The other is in the middle of a step, of which JAX tells it late."""
    (tmp_path / "mine.py").write_text(SHARDS)
    source = f"--config.data.source={tmp_path}/mine.py:shards"
    flags = ("--config.steps=1000", source, "--config.data.resident_limit=0")
    ill = "import os; os.environ['ILL'] = '1'"
    running = start(tmp_path / "run", *flags, only_in_last=ill)
    codes, said = finish(running, timeout=120)
    assert codes[1] == 1 and said[1].count("jaxconv: shard 3 cannot be read") == 1, said
    assert codes[0] not in (0, 1, 2) and "Traceback" not in said[0] + said[1], said


@pytest.mark.full
@pytest.mark.parametrize("mode", ["jit", pytest.param("pmap", marks=pytest.mark.full)])
def test_what_is_kept_of_each_example_comes_once_and_in_order(tmp_path, mode):
    """The kept values reach both processes; a run in one process has the same figures."""
    here = "tests.tasks.test_own_task"
    flags = (f"--config.task.name={here}.Rounded", f"--config.data.source={here}.greys")
    flags += (f"--config.parallel={mode}", "--config.steps=4", "--config.model.kwargs.filters=4")
    codes, said = finish(start(tmp_path / "two", *flags))
    assert codes == [0, 0], said
    alone = command("train", f"--workdir={tmp_path / 'one'}", *TINY, STEPS, *flags)
    results = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("two", "one")
    ]
    assert alone.returncode == 0, alone.stderr
    assert results[0]["eval/spread"] == results[1]["eval/spread"] > 1
    assert results[0]["eval/loss"] == pytest.approx(results[1]["eval/loss"], rel=1e-4)


@pytest.mark.full
def test_callbacks_of_two_processes(tmp_path):
    """They run on the first, and all stop together; an error ends all, with the run saved."""
    (tmp_path / "mine.py").write_text(
        "import jax\n"
        "class Base:\n"
        "    def on_start(self, run):\n"
        "        assert jax.process_index() == 0\n"
        "class Stop(Base):\n"
        "    def on_log(self, run, metrics):\n"
        "        run.stop('enough') if run.step == 9 else None\n"
        "    def on_checkpoint(self, run, folder):\n"
        "        assert (folder / 'state').is_dir()\n"
        "class Fail(Base):\n"
        "    def on_evaluation(self, run, metrics):\n"
        "        1 / 0\n"
    )
    codes, said = finish(start(tmp_path / "run", f"--config.callbacks={tmp_path}/mine.py:Fail"))
    assert codes == [1, 1], said
    assert "Fail failed in on_evaluation at step 4: ZeroDivisionError" in said[0]
    assert "a callback failed in the first process" in said[1]
    stop = f"--config.callbacks={tmp_path}/mine.py:Stop"
    codes, said = finish(start(tmp_path / "run", stop))
    assert codes == [0, 0], said
    assert "steps 4 to 24" in said[0] and "stopped early at step 9 of 24" in said[0]
    assert restore_run(tmp_path / "run")[1] == 9
    patience = ("--config.early_stopping.patience=1", "--config.early_stopping.min_delta=9")
    codes, said = finish(start(tmp_path / "run", *patience))
    assert codes == [0, 0] and "stopped early at step 9 of 24: early_stopping" in said[0], said
