"""The launch scripts: dry runs, help, bad options, and what they call.

Small programs play Slurm, gcloud and Python.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.launch.stage import Stage

SCRIPTS = ("local.sh", "sweep.sh", "slurm.sh", "tpu_vm.sh")
TRAINING = (
    "--config=experiments/xo.py",
    "--config.model.name=text:conv3-8 it's fc",
    "--workdir=/tmp/run",
)
CLUSTER = ("--name=tpu", "--zone=us-west4-a", "--type=v5litepod-16")


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def commands(process):
    """The commands that a dry run printed, as lists of words."""
    assert process.returncode == 0, process.stderr
    return [
        shlex.split(line, comments=True)
        for line in process.stdout.splitlines()
        if not line.startswith("#")
    ]


def test_shellcheck():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    files = [*map(str, sorted((ROOT / "launch").glob("*.sh"))), "test.sh", ".ci/run"]
    process = subprocess.run(["shellcheck", "-x", *files], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_option(stage, script):
    process = stage.run(script, "--help")
    assert process.returncode == 0 and process.stderr == ""
    known = set(
        re.findall(
            r"^ *(?:\| )?(--[a-z_]+)(?:=\*)?\)",
            (ROOT / "launch" / script).read_text(),
            re.MULTILINE,
        )
    ) - {
        "--config",
        "--workdir",
    }
    if script in ("local.sh", "sweep.sh"):
        known |= {"--extras", "--install_only"}
    for option in known | {"--dry_run", "--restarts", "--retries"}:
        assert re.search(rf"^{option}\b", process.stdout, re.MULTILINE), option
    assert f"./launch/{script}" in process.stdout
    assert not stage.calls("jaxconv") and not stage.calls("sbatch") and not stage.calls("gcloud")


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_calls_nothing(stage, script):
    arguments = ("run", *CLUSTER) if script == "tpu_vm.sh" else ()
    training = [*TRAINING[:-1], "--workdir=gs://bucket/run"] if arguments else TRAINING
    assert commands(stage.run(script, *arguments, "--dry_run", *training))
    for program in ("sbatch", "srun", "gcloud", "jaxconv"):
        assert not stage.calls(program)
    assert not (stage.folder / "venv").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("local.sh", "--restarts=many"), "--restarts=many: must be a whole number"),
        (("slurm.sh", "--gpus=two", *TRAINING), "--gpus=two: must be a whole number of at least 0"),
        (("slurm.sh", "--nodes=0", *TRAINING), "--nodes=0: must be a whole number of at least 1"),
        (("slurm.sh", "--config=experiments/xo.py"), "--workdir=DIR is missing"),
        (("slurm.sh", "--workdir=/tmp/x"), "--config=FILE.py is missing"),
        (
            ("tpu_vm.sh", "train", *CLUSTER, *TRAINING),
            "--workdir=/tmp/run: must be in a bucket, such as gs://BUCKET/PATH",
        ),
        (
            ("slurm.sh", "--array=/nowhere/commands.txt"),
            "/nowhere/commands.txt: file not found",
        ),
        (
            ("slurm.sh", f"--array={ROOT / 'README.md'}", "--workdir=/tmp/x"),
            "--workdir=/tmp/x: cannot be combined with --array",
        ),
        (("tpu_vm.sh",), ""),
        (("tpu_vm.sh", "start", *CLUSTER), "start: must be run, create"),
        (("tpu_vm.sh", "create", "--name=tpu"), "--zone=ZONE is missing"),
        (("tpu_vm.sh", "create", "--name=tpu", "--zone=z"), "--type=TYPE is missing"),
        (("tpu_vm.sh", "create", *CLUSTER, "--restart"), "--restart: not an option of create"),
        (("tpu_vm.sh", "run", *CLUSTER), "--workdir=: must be in a bucket"),
        (("tpu_vm.sh", "train", *CLUSTER, "--workdir=gs://b/x"), "--config=FILE.py is missing"),
        (
            ("tpu_vm.sh", "train", *CLUSTER, "--workdir=gs://b/x", "--config=no.py:small"),
            "--config=no.py:small: file no.py not found",
        ),
        (
            ("tpu_vm.sh", "train", *CLUSTER, "--workdir=gs://b/x", "--config=/etc/passwd"),
            "must be inside",
        ),
    ],
)
def test_bad_options_are_one_line(stage, arguments, words):
    process = stage.run(*arguments)
    assert process.returncode == 2, process.stderr
    if words:
        (line,) = process.stderr.splitlines()
        assert line.startswith(f"{arguments[0]}: ") and words in line
    assert not stage.calls("gcloud") and not stage.calls("sbatch")


def test_local_dry_run(stage):
    venv, install, train = commands(
        stage.run("local.sh", "--dry_run", "--extras=cuda,fast", *TRAINING)
    )
    assert venv[1:] == ["-m", "venv", str(stage.folder / "venv")]
    assert install[-2:] == ["--editable", f"{ROOT}[cuda,fast]"]
    assert train == [str(stage.folder / "venv/bin/jaxconv"), "train", *TRAINING]
    *_, train = commands(stage.run("local.sh", "--dry_run"))
    assert train[1:] == [
        "train",
        f"--config={ROOT / 'experiments/xo.py'}",
        f"--workdir={stage.folder}/jaxconv_xo",
    ]
    *_, sweep = commands(
        stage.run("sweep.sh", "--dry_run", "--grid=seed=0:3 batch_size=8,16", "--table")
    )
    assert sweep[1:] == ["sweep", "--grid=seed=0:3 batch_size=8,16", "--table"]


@pytest.mark.parametrize(
    ("codes", "options", "starts", "code"),
    [
        ([0], (), 1, 0),
        ([75, 75, 0], (), 3, 0),  # preempted twice
        ([75] * 9, ("--restarts=2",), 3, 75),
        ([1, 0], (), 1, 1),
        ([1] * 9, ("--retries=2",), 3, 1),
        ([139, 75, 1, 0], ("--retries=2",), 4, 0),
        ([2] * 9, ("--retries=2",), 1, 2),  # a usage error is not retried
        ([130] * 9, ("--retries=2",), 1, 130),
    ],
)
def test_local_starts_again_what_was_preempted(stage, codes, options, starts, code):
    stage.prepare(jaxconv__codes=codes)
    process = stage.run("local.sh", *options, *TRAINING)
    assert process.returncode == code, process.stderr
    assert stage.calls("jaxconv") == [["train", *TRAINING]] * starts
    assert ("stopped with exit code" in process.stderr) == (code in (1, 75))


def test_installs_once(stage):
    for _ in range(2):
        assert stage.run("local.sh", "--install_only").returncode == 0
    assert len([call for call in stage.calls("python") if call[:2] == ["-m", "pip"]]) == 1
    assert not stage.calls("jaxconv")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_local_hands_signals_on_and_stops(stage, number, code):
    """The run gets the signal once, and the script exits with its code."""
    waiter = f"""#!{sys.executable} -S
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path({str(stage.folder)!r}, "told").open("a").write("once ")
    time.sleep(0.2)
    sys.exit({{signal.SIGTERM: 75, signal.SIGINT: 130}}[number])
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
pathlib.Path({str(stage.folder)!r}, "started").touch()
time.sleep(60)
"""
    stage.put("jaxconv", waiter)
    arguments = [
        "env",
        "--default-signal=INT",
        "bash",
        ROOT / "launch" / "local.sh",
        *TRAINING,
    ]  # this process may ignore SIGINT
    with subprocess.Popen(arguments, **stage.settings(), stderr=subprocess.PIPE) as process:
        while not (stage.folder / "started").exists():
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(timeout=30) == code
    assert (stage.folder / "told").read_text() == "once "


def test_slurm_dry_run(stage):
    workdir = stage.folder / "runs" / "50%"
    process = stage.run(
        "slurm.sh",
        "--dry_run",
        "--nodes=4",
        "--gpus=8",
        "--time=4:00:00",
        "--sbatch=--partition=gpu --account=vision",
        "--config=experiments/xo.py",
        f"--workdir={workdir}",
    )
    _, _, install, sbatch, srun = commands(process)
    assert install[-1] == f"{ROOT}[cuda]"
    wanted = {
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--time=4:00:00",
        "--signal=TERM@120",
        "--requeue",
    }
    assert wanted | {
        "--partition=gpu",
        "--account=vision",
        f"--output={str(workdir).replace('%', '%%')}.log",
    } <= set(sbatch)
    assert "32" in sbatch  # processes
    assert srun[0] == "srun" and srun[-3:] == [
        "--config=experiments/xo.py",
        f"--workdir={workdir}",
        "--distributed=auto",
    ]
    # A single process without GPUs looks for no others and requests no GPU.
    *_, sbatch, srun = commands(stage.run("slurm.sh", "--dry_run", "--gpus=0", *TRAINING))
    assert "--ntasks-per-node=1" in sbatch and not any(word.startswith("--gpus") for word in sbatch)
    assert "--distributed=auto" not in srun


def test_slurm_with_a_workdir_in_a_bucket(stage):
    process = stage.run("slurm.sh", "--dry_run", *TRAINING[:-1], "--workdir=s3://bucket/runs/a")
    *_, install, sbatch, srun = commands(process)
    assert install[-1].endswith("[cuda,cloud]")
    assert any(word.startswith("--output=/") and word.endswith("/a.log") for word in sbatch)
    assert "--workdir=s3://bucket/runs/a" in srun


def slurm_job(stage, *options):
    """Submit a training and let it run; returns the job's exit code and its log."""
    process = stage.run(
        "slurm.sh", *options, "--config=experiments/xo.py", f"--workdir={stage.folder / 'run'}"
    )
    assert process.returncode == 0, process.stderr
    return int((stage.folder / "job.codes").read_text()), (stage.folder / "run.log").read_text()


def test_slurm_job_trains(stage):
    code, log = slurm_job(stage, "--gpus=2")
    assert code == 0
    (call,) = stage.calls("srun")
    training = [
        "train",
        "--config=experiments/xo.py",
        f"--workdir={stage.folder / 'run'}",
        "--distributed=auto",
    ]
    assert call == [
        "--kill-on-bad-exit=0",
        "--wait=120",
        str(stage.folder / "venv/bin/jaxconv"),
        *training,
    ]
    assert log.startswith("$ srun --kill-on-bad-exit=0 ") and not stage.calls("scontrol")


def test_slurm_job_that_is_preempted_is_queued_again(stage):
    stage.prepare(srun__codes=[75], squeue__says=["RUNNING"])
    code, _ = slurm_job(stage)
    assert (
        code == 0
        and stage.calls("scontrol") == [["requeue", "42"]]
        and len(stage.calls("srun")) == 1
    )


def test_slurm_job_that_is_cancelled_stays_so(stage):
    stage.prepare(srun__codes=[75], squeue__says=["COMPLETING"])
    code, log = slurm_job(stage)
    assert code == 130 and not stage.calls("scontrol") and "stopped with" not in log


def test_slurm_job_is_not_queued_for_ever(stage, monkeypatch):
    stage.prepare(srun__codes=[75], squeue__says=["RUNNING"])
    monkeypatch.setenv("SLURM_RESTART_COUNT", "5")
    code, log = slurm_job(stage, "--restarts=5")
    assert (
        code == 75 and not stage.calls("scontrol") and log.endswith("stopped with exit code 75\n")
    )


def test_slurm_job_that_fails_is_tried_again(stage):
    stage.prepare(srun__codes=[1, 1, 1, 1])
    code, log = slurm_job(stage, "--retries=2")
    assert (
        code == 1 and len(stage.calls("srun")) == 3 and log.endswith("stopped with exit code 1\n")
    )


def test_slurm_array(stage):
    places = [stage.folder / name for name in ("a b", "it's", "c")]
    lines = [
        shlex.join(["jaxconv", "train", "--config=experiments/xo.py", f"--workdir={place}"])
        for place in places
    ]
    (stage.folder / "commands.txt").write_text(
        "\n".join(lines)
    )  # no newline at the end, as some editors leave it
    stage.prepare(sbatch__tasks=["[1, 3, 2]"])
    process = stage.run("slurm.sh", f"--array={stage.folder / 'commands.txt'}", "--at_once=2")
    assert process.returncode == 0, process.stderr
    assert "--array=1-3%2" in stage.calls("sbatch")[0]
    assert [call[-1] for call in stage.calls("srun")] == [
        f"--workdir={places[task]}" for task in (0, 2, 1)
    ]
    assert all(
        place.with_name(f"{place.name}.log").read_text().startswith("$ srun") for place in places
    )


@pytest.mark.parametrize("lines", ["rm -r /tmp/x", "jaxconv train --workdir=/tmp/x\n\n", ""])
def test_a_line_that_is_no_training_is_said_before_anything_is_submitted(stage, lines):
    (stage.folder / "commands.txt").write_text(lines)
    process = stage.run("slurm.sh", f"--array={stage.folder / 'commands.txt'}")
    assert process.returncode == 2 and (
        "must be jaxconv train ..." in process.stderr or "is empty" in process.stderr
    )
    assert not stage.calls("sbatch")


def verbs(stage):
    """The calls of gcloud in words such as `tpu-vm ssh`, without `describe`."""
    return [" ".join(call[2:4]) for call in stage.calls("gcloud") if "describe" not in call]


RUN = (
    *("tpu_vm.sh", "run", *CLUSTER),
    *("--config=experiments/xo.py:small", "--workdir=gs://bucket/runs/a b"),
)


def test_tpu_run(stage):
    process = stage.run(
        *RUN,
        "--spot",
        "--project=vision",
        "--setup=jaxconv prepare mnist",
    )
    assert process.returncode == 0, process.stderr
    assert verbs(stage) == [
        "tpu-vm create",
        "tpu-vm scp",
        "tpu-vm ssh",
        "tpu-vm ssh",
        "tpu-vm delete",
    ]
    create, send, install, train, _ = (
        call for call in stage.calls("gcloud") if "describe" not in call
    )
    assert {
        "--accelerator-type=v5litepod-16",
        "--version=v2-alpha-tpuv5-lite",
        "--spot",
        "--project=vision",
    } <= set(create)
    for call in (send, install, train):
        assert {"--worker=all", "--zone=us-west4-a", "--project=vision"} <= set(call)
    archive = subprocess.run(
        ["tar", "-tzf", send[4]], capture_output=True, text=True
    ).stdout.splitlines()
    assert {"setup.cfg", "launch/local.sh", "jaxconv/__main__.py", "experiments/xo.py"} <= set(
        archive
    )
    assert not any(name.startswith((".git/", ".venv")) for name in archive)
    (there,) = [
        word.removeprefix("--command=") for word in install if word.startswith("--command=")
    ]
    assert "local.sh --install_only --extras=tpu,cloud" in there and "curl" not in there
    assert there.endswith("&& jaxconv prepare mnist")
    (there,) = [word.removeprefix("--command=") for word in train if word.startswith("--command=")]
    assert "launch/local.sh --extras=tpu,cloud --restarts=100 --retries=2 --distributed=on" in there
    assert there.endswith("--workdir='gs://bucket/runs/a b' --config=experiments/xo.py:small")


def test_tpu_that_is_taken_away_is_created_again(stage):
    stage.prepare(gcloud__trainings=[255, 255, 0])
    process = stage.run(*RUN, "--queued")
    assert process.returncode == 0, process.stderr
    up = [
        "queued-resources create",
        "tpu-vm scp",
        "tpu-vm ssh",
        "tpu-vm ssh",
    ]
    delete = ["queued-resources delete"]
    assert verbs(stage) == [*up, *delete, *up, *delete, *up, *delete]
    assert process.stderr.count("was preempted") == 2


def test_tpu_is_not_created_for_ever(stage):
    stage.prepare(gcloud__trainings=[255] * 9)
    process = stage.run(*RUN, "--restarts=1")
    assert process.returncode == 255 and verbs(stage).count("tpu-vm create") == 2


def test_tpu_of_a_training_that_fails_is_deleted(stage):
    stage.prepare(gcloud__trainings=[1])
    process = stage.run(*RUN)
    assert process.returncode == 1 and verbs(stage)[-2:] == ["tpu-vm ssh", "tpu-vm delete"]
    stage.prepare(gcloud__trainings=[1], calls=[])
    stage.run(*RUN, "--keep")
    assert verbs(stage)[-1] == "tpu-vm ssh"


def test_tpu_run_that_is_interrupted_says_what_it_leaves(stage):
    """Ctrl-C in a terminal reaches all processes of the script; none survives."""
    stage.prepare(gcloud__naps=[30])
    arguments = [
        "env",
        "--default-signal=INT",
        "bash",
        ROOT / "launch" / RUN[0],
        *RUN[1:],
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        arguments, **stage.settings(), **pipes, start_new_session=True
    ) as process:
        while len(verbs(stage)) < 4:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "delete --name=tpu --zone=us-west4-a" in errors
    assert "tpu-vm delete" not in verbs(stage)


@pytest.mark.parametrize(
    ("accelerator", "version"),
    [
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v5p-16", "v2-alpha-tpuv5"),
        ("v5litepod-4", "v2-alpha-tpuv5-lite"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_software_of_a_tpu(stage, accelerator, version):
    (create,) = commands(
        stage.run(
            "tpu_vm.sh", "create", "--dry_run", "--name=tpu", "--zone=z", f"--type={accelerator}"
        )
    )
    assert f"--version={version}" in create
