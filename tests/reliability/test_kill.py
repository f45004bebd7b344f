"""A run killed by SIGKILL at any moment and restarted ends with the same bits.

It also has the same steps in metrics.jsonl, each once. Tested with one process, and with two, of
which one or both are killed.
"""

import json
import random
import signal
import subprocess
import time

import jax
import pytest

from jaxconv.checks import check_config
from jaxconv.train.build import build
from jaxconv.train.checkpoint import Checkpoints
from jaxconv.train.parallel import fingerprint, make_parallel
from jaxconv.train.workdir import saved_config, saved_data
from tests.conftest import TINY, command, command_line, process_settings, rarely
from tests.train.test_processes import finish, start

STEPS = 60
# About two checkpoints per second, so that kills hit their writing; log and checkpoints at steps
# that do not divide each other.
RUN = (
    *TINY,
    f"--config.steps={STEPS}",
    "--config.checkpoint.every=5",
    "--config.log.every=7",
    "--config.eval.every=11",
)


def weights(workdir):
    """The fingerprint of the whole final state."""
    config = saved_config(workdir)
    check_config(config)
    description = saved_data(workdir)
    built = build(config, description, description["train_examples"], None)
    parallel = make_parallel("jit", jax.devices()[:1])
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    state, host = checkpoints.restore(parallel.targets(built.abstract), STEPS)
    checkpoints.close()
    assert int(fingerprint(state)) == host["fingerprint"]
    return int(fingerprint(state))


def numbers(workdir):
    """The rows of metrics.jsonl, without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if name not in ("images_per_second", "seconds")}
        for row in rows
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The workdir of a run that was not killed, and its duration in seconds."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    command(
        "train", f"--workdir={workdir.with_name('warm-up')}", *RUN
    )  # fills the cache of compiled programs
    start = time.monotonic()
    process = command("train", f"--workdir={workdir}", *RUN)
    assert process.returncode == 0, process.stderr
    return workdir, time.monotonic() - start


def kill_when(workdir, moment):
    """Start the run, kill it at `moment(workdir, seconds)`; return whether it was still running."""
    with subprocess.Popen(
        command_line("train", f"--workdir={workdir}", *RUN),
        **process_settings(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        start = time.monotonic()
        while process.poll() is None and not moment(workdir, time.monotonic() - start):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


def in_checkpoint_writing(workdir, seconds):
    """Orbax's temporary folder of a checkpoint after the first two exists."""
    return (
        len(list(workdir.glob("checkpoints/*tmp*"))) > 0
        and len(list(workdir.glob("checkpoints/[0-9]*"))) > 2
    )


def after_first_log(workdir, seconds):
    path = workdir / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def after_first_checkpoint(workdir, seconds):
    return (workdir / "checkpoints" / "5").exists()


def at_random(seconds_of_a_run, seed):
    """Any moment from the start of the process to its end."""
    until = random.Random(seed).uniform(0, seconds_of_a_run)
    return lambda workdir, seconds: seconds > until


def finish_and_compare(workdir, undisturbed):
    process = command("train", f"--workdir={workdir}", *RUN)
    assert process.returncode == 0, process.stderr
    assert weights(workdir) == weights(undisturbed)
    assert numbers(workdir) == numbers(undisturbed)
    steps = [row["step"] for row in numbers(workdir)]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    rarely(
        [in_checkpoint_writing, after_first_log, after_first_checkpoint],
        {after_first_log, after_first_checkpoint},
    ),
)
def test_killed_run_ends_with_the_same_bits(tmp_path, undisturbed, moment):
    workdir = tmp_path / "run"
    assert kill_when(workdir, moment), "the run was over before it could be killed"
    finish_and_compare(workdir, undisturbed[0])


@pytest.mark.slow
def test_run_killed_again_and_again(tmp_path, undisturbed):
    workdir = tmp_path / "run"
    assert sum(kill_when(workdir, at_random(undisturbed[1], seed)) for seed in range(4))
    finish_and_compare(workdir, undisturbed[0])


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4, 54))
def test_killed_run_ends_with_the_same_bits_at_full_count(tmp_path, undisturbed, seed):
    workdir = tmp_path / "run"
    kill_when(workdir, at_random(undisturbed[1], seed))
    finish_and_compare(workdir, undisturbed[0])


@pytest.fixture(scope="module")
def undisturbed_pair(tmp_path_factory):
    """The workdir of a run in two processes that was not killed, and its duration in seconds."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    codes, said = finish(start(workdir.with_name("warm-up"), *RUN))
    assert codes == [0, 0], said
    begun = time.monotonic()
    codes, said = finish(start(workdir, *RUN))
    assert codes == [0, 0], said
    return workdir, time.monotonic() - begun


@pytest.mark.full
@pytest.mark.parametrize("seed", range(10))
def test_two_processes_killed_end_with_the_same_bits(tmp_path, undisturbed_pair, seed):
    """Either or both are killed at any moment; a remaining one stops by itself within a minute."""
    workdir, draw = tmp_path / "run", random.Random(seed)
    running = start(workdir, *RUN)
    time.sleep(draw.uniform(0, undisturbed_pair[1]))
    for number in draw.choice([(0,), (1,), (0, 1)]):
        running[number].kill()
    finish(running, timeout=60)
    codes, said = finish(start(workdir, *RUN))
    assert codes == [0, 0], said
    assert weights(workdir) == weights(undisturbed_pair[0]) and numbers(workdir) == numbers(
        undisturbed_pair[0]
    )
