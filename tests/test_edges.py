"""The command line in odd surroundings: one table of environments, each tried as a process."""

import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxconv.streams import Messages, Output, lost_output, usable_streams
from tests.conftest import (
    TINY,
    assert_one_line_error,
    assert_same_result,
    command,
    command_line,
    process_settings,
    rarely,
)

STEPS = "--config.steps=4"
TENSORBOARD = "--config.log.tensorboard=True"

# Runs `jaxconv` after a change to Python itself.
PROGRAM = """
import os, sys
{change}
from jaxconv.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
NOBODY = """
import pwd
def nobody(*_): raise KeyError("getpwuid(): uid not found: 12345")
pwd.getpwuid = nobody
"""
# A stand-in for Windows' module with its one function, so that its branch runs here.
WINDOWS = """
import errno, fcntl, types
import flax, jax, orbax.checkpoint, matplotlib.figure, tensorboardX  # which look for Windows too
def locking(fd, mode, count):
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PermissionError(errno.EACCES, "Permission denied") from error
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules[name] = None
for name in ("getuid", "geteuid", "sysconf", "lockf", "fork"):
    delattr(os, name)
"""
ASCII = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}


def surroundings(changes, without=()):
    settings = process_settings()
    kept = {name: value for name, value in settings["env"].items() if name not in without}
    return settings | {"env": kept | changes}


def run(*arguments, changes=None, without=(), change="", **kwargs):
    program = command_line(*arguments)
    if change:
        program = [sys.executable, "-c", PROGRAM.format(change=change), *map(str, arguments)]
    settings = surroundings(changes or {}, without) | kwargs
    if "stdout" not in kwargs and "stderr" not in kwargs:
        settings["capture_output"] = True
    return subprocess.run(program, timeout=300, **settings)


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row.get("train/loss"), row.get("eval/loss")) for row in rows]


def left(workdir):
    """The files of a run, without those that have other names each time."""
    names = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith("tensorboard") and "/d/" not in name}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The workdir of the run in ordinary surroundings."""
    workdir = tmp_path_factory.mktemp("plain") / "run"
    process = command("train", f"--workdir={workdir}", *TINY, STEPS, TENSORBOARD)
    assert process.returncode == 0, process.stderr
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "without", "change", "said"),
    [
        pytest.param(
            {"JAX_PLATFORMS": "cpu,cuda"},
            (),
            "",
            "",
            id="second platform absent",
            marks=pytest.mark.full,
        ),
        pytest.param({"JAX_ENABLE_X64": "1"}, (), "", "", id="x64", marks=pytest.mark.full),
        pytest.param(
            {},
            ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"),
            NOBODY,
            "compiled programs are not cached",
            id="no home",
        ),
        pytest.param(
            {"HOME": "/dev/null"},
            ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"),
            "",
            "compiled programs are not cached",
            id="home that cannot be written",
            marks=pytest.mark.full,
        ),
        pytest.param({}, (), WINDOWS, "of an unknown amount per device", id="no POSIX"),
        pytest.param(
            {}, (), 'sys.modules["fcntl"] = None', "", id="no fcntl", marks=pytest.mark.full
        ),
        pytest.param({"LC_ALL": "C", **ASCII}, (), "", "", id="locale C"),
        pytest.param(
            {"LC_ALL": "POSIX", **ASCII}, (), "", "", id="locale POSIX", marks=pytest.mark.full
        ),
        pytest.param(
            {"TERM": "dumb", "COLUMNS": "1"},
            (),
            "",
            "",
            id="dumb and narrow terminal",
            marks=pytest.mark.full,
        ),
        pytest.param(
            {"TMPDIR": "/no/such/folder"}, (), "", "", id="no TMPDIR", marks=pytest.mark.full
        ),
        pytest.param({}, (), "os.umask(0o077)", "", id="umask 077", marks=pytest.mark.full),
        pytest.param(
            {"PYTHONUNBUFFERED": "1"}, (), "", "", id="unbuffered", marks=pytest.mark.full
        ),
        pytest.param(
            {
                "SLURM_JOB_ID": "7",
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_NODELIST": "127.0.0.1",
                "SLURM_STEP_ID": "4294967290",
                "SLURM_STEP_NUM_TASKS": "1",
            },
            (),
            "",
            "srun did not start this one: it trains alone",
            id="shell of salloc",
        ),
        pytest.param(
            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
            (),
            "",
            "srun did not start this one: it trains alone",
            id="batch script without srun",
            marks=pytest.mark.full,
        ),
        pytest.param(
            {"OMPI_COMM_WORLD_SIZE": "2"},
            (),
            "",
            "mpirun did not start this one: it trains alone",
            id="left over from Open MPI",
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_run_is_the_same(plain, tmp_path, changes, without, change, said):
    """With its page, which uses most of our libraries, and its evaluation."""
    there = {"changes": changes, "without": without, "change": change}
    flags = (f"--workdir={tmp_path / 'run'}", *TINY, TENSORBOARD)
    process = run("train", *flags, STEPS, "--config.log.report=True", **there)
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    assert said in process.stderr
    assert losses(tmp_path / "run") == losses(plain)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000, process.stderr
    again = run("evaluate", f"--workdir={tmp_path / 'run'}", **there)
    assert again.returncode == 0 and "Traceback" not in again.stderr, again.stderr
    assert_same_result(again, process)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["0", pytest.param("1", marks=pytest.mark.full)])
def test_x64_and_not_resume_each_other(tmp_path, first):
    constant = "--config.optimizer.schedule.name=constant"
    flags = (f"--workdir={tmp_path / 'a'}", *TINY, constant)
    other = {"0": "1", "1": "0"}[first]
    for steps, x64 in ((4, first), (8, other)):
        process = run("train", *flags, f"--config.steps={steps}", changes={"JAX_ENABLE_X64": x64})
        assert process.returncode == 0, process.stderr
    straight = command("train", f"--workdir={tmp_path / 'b'}", *TINY, constant, "--config.steps=8")
    assert straight.stdout.splitlines()[-1] == process.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "gpu", "tpu", "nonsense"])
@pytest.mark.parametrize("arguments", [("train", *TINY, STEPS), ("summary", "lenet5")])
def test_an_absent_platform_is_one_line(tmp_path, platform, arguments):
    workdir = (f"--workdir={tmp_path / 'run'}",) if arguments[0] == "train" else ()
    process = run(*arguments, *workdir, changes={"JAX_PLATFORMS": platform})
    assert_one_line_error(
        process, 1, f"JAX_PLATFORMS={platform}: JAX finds no such device", "unset"
    )
    assert not (tmp_path / "run").exists()


CLOSED = [
    closed for count in (1, 2, 3) for closed in itertools.combinations(("0", "1", "2"), count)
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "closed", rarely(CLOSED, {*CLOSED} - {("0",), ("1", "2"), ("0", "1", "2")}), ids="".join
)
def test_closed_streams(plain, tmp_path, closed):
    """No file of the run takes their place, into which messages of C++ code would be written."""
    redirections = " ".join(f"{number}>&-" for number in closed)
    arguments = ("train", f"--workdir={tmp_path / 'run'}", *TINY, STEPS, TENSORBOARD)
    shell = ["bash", "-c", f'exec "$@" {redirections}', "-", *command_line(*arguments)]
    process = subprocess.run(shell, capture_output=True, timeout=300, **process_settings())
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    assert losses(tmp_path / "run") == losses(plain)
    assert left(tmp_path / "run") == left(plain)


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("train", *TINY, STEPS), 0, "the results are in"),
        (("summary", "resnet50"), 1, "standard output cannot be written (No space left on device)"),
        (("--help",), 0, ""),
    ],
)
def test_a_full_disk_behind_standard_output(tmp_path, arguments, code, words, unbuffered):
    """What is in the workdir too is not lost: a launcher must not start the run again."""
    workdir = (f"--workdir={tmp_path / 'run'}",) if arguments[0] == "train" else ()
    with open("/dev/full", "w") as full:
        process = run(
            *arguments,
            *workdir,
            changes={"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert process.returncode == code, process.stderr
    assert words in process.stderr and "Exception" not in process.stderr, process.stderr
    assert process.stderr.count("jaxconv: ") == bool(words)


@pytest.mark.slow
def test_a_full_disk_behind_standard_error_and_no_reader(plain, tmp_path):
    with open("/dev/full", "w") as full:
        process = run(
            *("train", f"--workdir={tmp_path / 'run'}", *TINY, STEPS),
            stdout=subprocess.PIPE,
            stderr=full,
        )
    assert process.returncode == 0 and losses(tmp_path / "run") == losses(plain)
    for arguments, code in ((("summary", "resnet50"), 1), (("train", *TINY, STEPS), 0)):
        reader, writer = os.pipe()
        os.close(reader)
        workdir = (f"--workdir={tmp_path / 'other'}",) if arguments[0] == "train" else ()
        process = run(*arguments, *workdir, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert process.returncode == code, process.stderr
        assert "Traceback" not in process.stderr and "Exception" not in process.stderr
        assert process.stderr.count("jaxconv: ") == (arguments[0] == "train")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("w\udcff", {}, "is not UTF-8 text; give another"),
        ("größe", {"LC_ALL": "C", **ASCII}, "or set PYTHONUTF8=1 (it is ascii here)"),
    ],
)
def test_a_workdir_that_orbax_cannot_name_stops_before_the_run(tmp_path, name, changes, words):
    arguments = ("train", os.fsencode(f"--workdir={tmp_path}/{name}"), *TINY, STEPS)
    program = [sys.executable, "-m", "jaxconv", *arguments]
    settings = surroundings(changes) | {"text": False}
    process = subprocess.run(program, capture_output=True, timeout=300, **settings)
    said = process.stderr.decode(errors="replace")
    assert process.returncode == 2 and said.count("jaxconv: ") == 1 and words in said, said
    assert "Traceback" not in said and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tables_and_curves_in_ascii(plain):
    changes = {"LC_ALL": "C", **ASCII}
    for arguments in (("evaluate", f"--workdir={plain}"), ("curves", f"--workdir={plain}")):
        process = run(*arguments, changes=changes | {"COLUMNS": "1", "TERM": "dumb"})
        assert process.returncode == 0 and process.stdout.isascii(), process.stderr
        assert "\\u" not in process.stdout and "\x1b" not in process.stdout
    assert run("--help", changes={"COLUMNS": "1"}).returncode == 0


@pytest.mark.slow
def test_the_current_folder_deleted(tmp_path):
    (tmp_path / "here").mkdir()
    change = f"os.chdir({str(tmp_path / 'here')!r}); os.rmdir({str(tmp_path / 'here')!r})"
    process = run("train", f"--workdir={tmp_path / 'run'}", *TINY, STEPS, change=change)
    assert_one_line_error(process, 1, "the current folder cannot be used", "change to another")


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    rarely([WINDOWS, 'sys.modules["fcntl"] = None'], {WINDOWS}),
    ids=["msvcrt", "lockf"],
)
def test_two_runs_in_one_folder_without_fcntl(tmp_path, change):
    """One ends with a line, whoever looks; and a kill leaves no lock behind."""
    endless = ("train", f"--workdir={tmp_path / 'run'}", *TINY, "--config.steps=1000000")
    program = [sys.executable, "-c", PROGRAM.format(change=change), *endless]
    running = subprocess.Popen(program, stderr=subprocess.PIPE, **process_settings())
    try:
        while "step 3/" not in (line := running.stderr.readline()):
            assert line, running.wait()
        looking = f"""
from pathlib import Path
from jaxconv.train.workdir import in_use
print(in_use(Path({str(tmp_path / "run")!r})))
sys.exit()
"""
        assert run("--help", change=change + looking).stdout == "True\n"
        second = run(*endless, change=change)
        assert_one_line_error(second, 1, "another process is training there")
    finally:
        running.kill()
        running.communicate()
    assert run("--help", change=change + looking).stdout == "False\n"


def test_characters_that_a_stream_lacks(tmp_path, monkeypatch):
    for encoding, text, wanted in (
        ("ascii", "0.5 ± 0.1 → w\udcff é", b"0.5 +- 0.1 -> w\xff \\xe9"),
        ("utf-8", "± w\udcff é", "± w".encode() + b"\xff" + " é".encode()),
        ("latin-1", "┌──┐│⡇⠀é", b"+--+|* \xe9"),
    ):
        path = tmp_path / encoding
        with open(path, "w", encoding=encoding) as file:
            monkeypatch.setattr("sys.stdout", file)
            with usable_streams():
                print(text, end="")
        assert path.read_bytes() == wanted


class Broken:
    """A stream that fails from the second write on."""

    def __init__(self):
        self.texts = []

    def write(self, text):
        if self.texts:
            raise OSError(28, "No space left on device")
        self.texts.append(text)

    def flush(self):
        pass

    def fileno(self):
        raise OSError("not a file")


def test_lost_output_is_told_once_and_lost_messages_never(monkeypatch):
    stream = Output(Broken())
    monkeypatch.setattr("sys.stdout", stream)
    assert lost_output() is None
    stream.write("a")
    with pytest.raises(OSError, match="No space"):
        stream.write("b")
    stream.write("c")
    assert stream.texts == ["a"]
    assert lost_output().errno == 28 and lost_output() is None
    messages = Messages(Broken())
    assert [messages.write(text) for text in "abc"] == [1, 1, 1] and messages.texts == ["a"]


def test_pieces_keep_their_types_under_x64():
    """Parameters, outputs and the state of a step are float32 in a program with 64-bit mode."""
    import jax

    from jaxconv import create_model

    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    with jax.enable_x64(True):
        for name in ("resnet18", "convnext_tiny", "mobilenet_v2"):
            model, key = create_model(name, 3), jax.random.key(0)
            init, apply = (functools.partial(f, train=False) for f in (model.init, model.apply))
            variables = jax.eval_shape(init, key, images)
            outputs = jax.eval_shape(apply, variables, images)
            assert {leaf.dtype for leaf in jax.tree.leaves((variables, outputs))} == {
                np.dtype(np.float32)
            }


def test_a_run_in_a_program_with_x64(tmp_path, one_device):
    import jax

    from jaxconv.evaluation.evaluation import evaluate_workdir
    from jaxconv.run import train
    from tests.conftest import tiny_config

    plain = train(tiny_config(steps=4), str(tmp_path / "a"), devices=one_device)
    with jax.enable_x64(True):
        wide = train(tiny_config(steps=4), str(tmp_path / "b"), devices=one_device)
        assert evaluate_workdir(str(tmp_path / "b"), devices=one_device)["loss"] == plain["loss"]
    assert wide == plain
    assert Path(tmp_path / "b" / "checkpoints" / "4").is_dir()
