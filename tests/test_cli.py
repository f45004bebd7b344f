"""The command line as typed: what works, and every bad input as one line and an exit code."""

import json
import os
import subprocess
import sys

import pytest

from jaxconv.commands.common import print_json, split_overrides
from tests.conftest import (
    CACHE,
    ROOT,
    TINY,
    assert_one_line_error,
    assert_same_result,
    command,
    process_settings,
    write_images,
)

pytestmark = pytest.mark.slow
STEPS = "--config.steps=10"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    process = command(
        "train", f"--workdir={workdir}", *TINY, STEPS, "--config.log.tensorboard=True"
    )
    assert process.returncode == 0, process.stderr
    return workdir, process


def test_train_ends_with_its_result(trained):
    workdir, process = trained
    *_, place, last = process.stdout.splitlines()
    assert place == f"workdir: {workdir}"
    result = json.loads(last)
    assert list(result) == ["split", "examples", "loss", "top1"]
    assert result["split"] == "test" and result["examples"] == 30
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 4, 6, 8, 9, 10]
    assert rows[-1]["eval/loss"] == result["loss"] and rows[-1]["eval/top1"] == result["top1"]
    assert {"train/loss", "train/top1", "images_per_second", "learning_rate"} <= set(rows[2])
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((workdir / "tensorboard").iterdir())
    assert json.loads((workdir / "config.json").read_text())["steps"] == 10
    assert json.loads((workdir / "versions.json").read_text())[0]["jax"]
    # Where there is no terminal: plain lines.
    assert "step 3/10  loss " in process.stderr and "images/s" in process.stderr


def test_evaluate_gives_the_same_line(trained):
    workdir, process = trained
    evaluated = command("evaluate", f"--workdir={workdir}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert_same_result(evaluated, process)
    assert "top-1" in evaluated.stdout and evaluated.stderr == ""
    best = command("evaluate", f"--workdir={workdir}", "--checkpoint=best", "--split=train")
    assert json.loads(best.stdout.splitlines()[-1])["examples"] == 64


def test_same_command_again_has_nothing_to_do(trained):
    workdir, process = trained
    before = (workdir / "metrics.jsonl").read_text()
    again = command("train", f"--workdir={workdir}", *TINY, STEPS, "--config.log.tensorboard=True")
    assert again.stdout == process.stdout
    assert (workdir / "metrics.jsonl").read_text() == before


def test_run_goes_on_for_longer_and_on_more_devices(tmp_path):
    constant = "--config.optimizer.schedule.name=constant"
    assert (
        command("train", f"--workdir={tmp_path}", *TINY, constant, "--config.steps=4").returncode
        == 0
    )
    longer = command(
        "train",
        f"--workdir={tmp_path}",
        *TINY,
        constant,
        "--config.steps=8",
        "--config.parallel=pmap",
        devices=2,
    )
    assert longer.returncode == 0, longer.stderr
    assert (
        "steps 4 to 8" in longer.stderr
        and "other versions" in longer.stderr
        and "devices 1 -> 2" in longer.stderr
    )
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [3, 4, 6, 8]
    shorter = command("train", f"--workdir={tmp_path}", *TINY, constant, "--config.steps=6")
    assert_one_line_error(shorter, 1, "has already done 8 steps, more than the requested 6")


def test_plateau_divides_the_learning_rate(tmp_path):
    """With a patience of one evaluation and nothing to learn, the rate falls after every evaluation
    but the first.
    """
    flags = (
        "--config.optimizer.schedule.name=plateau",
        "--config.optimizer.schedule.patience=1",
        "--config.optimizer.learning_rate=1e-9",
    )
    process = command(
        "train",
        f"--workdir={tmp_path}",
        *TINY,
        *flags,
        STEPS,
        "--config.optimizer.schedule.warmup_steps=0",
        "--config.eval.every=2",
        "--config.log.every=2",
    )
    assert process.returncode == 0, process.stderr
    rates = [
        json.loads(line)["learning_rate"]
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert rates == pytest.approx([1e-9, 1e-9, 1e-10, 1e-11, 1e-12])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--config.optimizer.learning_rat=1"], 2, ["did you mean 'optimizer.learning_rate'"]),
        (["--config.batch_size=many"], 2, ["config.batch_size is 'many'", "a whole number"]),
        (
            ["--config.model.kwargs.filter=3"],
            2,
            ["chain has no argument 'filter'", "did you mean 'filters'"],
        ),
        (
            ["--config.model.kwargs.filters=0"],
            2,
            ["conv1_1: filters is 0; it must be a whole number of at least 1"],
        ),
        (["--config.model.kwargs.neurons=0"], 2, ["fc1: neurons is 0"]),
        (
            ["--config.model.kwargs.dropout=1.5"],
            2,
            ["dropout is 1.5; it must be at least 0 and less than 1"],
        ),
        (
            ["--config.model.kwargs.pool=global"],
            2,
            ["pool is 'global'; it must be max, average or none"],
        ),
        (
            ["--config.augment.pad_crop=20"],
            2,
            ["config.augment.pad_crop is 20, but the images have only 16x16 pixels"],
        ),
        (["--config.data.image_size=8"], 2, ["config.data.image_size is 8", "config.data.xo.size"]),
        (
            ["--config.model.kwargs.filters=big"],
            2,
            ["config.model.kwargs.filters is ('big',)", "numbers separated by commas"],
        ),
        (
            ["--config.model.name=resnet9000"],
            2,
            ["no network is called 'resnet9000'", "did you mean 'resnet"],
        ),
        (["--config.model.kwargs.pool_window=9"], 2, ["16x16x1", "pool2: (4 - 9)/2 + 1 = -1.50"]),
        (
            ["--config.model.kwargs.pool_window=3", "--config.model.kwargs.rounding=exact"],
            2,
            ["pool1: (16 - 3)/2 + 1 = 7.50"],
        ),
        (["--config.data.source=folder:/nowhere"], 1, ["/nowhere", "folder not found"]),
        (
            ["--config.data.source=mnist"],
            2,
            [
                "unknown source 'mnist'",
                "the sources are xo, xo_scenes, xo_boxes, tones, sentences, solids, xo_clips, ",
            ],
        ),
        (["--config.batch_size=10"], 2, ["10 images / 4 devices", "give 8 or 12"]),
        (["--config.data.xo.noise=-1"], 2, ["xo.noise is -1"]),
        (
            ["--config.optimizer.undecayed=("],
            2,
            ["optimizer.undecayed '('", "is not a regular expression"],
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, code, words):
    assert_one_line_error(
        command("train", f"--workdir={tmp_path / 'run'}", *TINY, STEPS, *arguments, devices=4),
        code,
        *words,
    )


def test_networks_as_text(tmp_path):
    flags = (
        "--config=experiments/xo.py",
        "--config.data.xo.train_examples=100",
        "--config.data.xo.test_examples=20",
    )
    wrong = command(
        "train", f"--workdir={tmp_path}", *flags, "--config.model.name=text:conv3-8 relu maxpol2 fc"
    )
    assert_one_line_error(wrong, 2, "character 14 of", "did you mean 'maxpool'?")
    flags += (
        "--config.optimizer.schedule.warmup_steps=2",
        "--config.model.name=text:[conv3-8 relu maxpool2]*2 fc",
    )
    right = command("train", f"--workdir={tmp_path}", *flags)
    assert right.returncode == 0, right.stderr
    assert "1,690 parameters" in right.stderr


def test_missing_flags():
    assert_one_line_error(command("train", "--workdir=/tmp/none"), 2, "--config")
    assert_one_line_error(command("train", "--config=experiments/xo.py"), 2, "--workdir")
    assert_one_line_error(
        command("train", "--config=nothing.py", "--workdir=/tmp/none"),
        2,
        "file 'nothing.py' not found",
    )
    assert_one_line_error(command("evaluate"), 2, "--workdir")
    assert_one_line_error(command("evaluate", "--workdir=/nowhere"), 2, "/nowhere: holds no run")
    assert_one_line_error(command(), 2, "COMMAND")
    assert_one_line_error(command("trian"), 2, "trian")


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line_error(
        command("train", f"--workdir={tmp_path}/file/run", *TINY, STEPS),
        1,
        "cannot be written",
        "give a folder that can",
    )
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        assert_one_line_error(
            command("train", f"--workdir={tmp_path}/locked", *TINY, STEPS), 1, "cannot be written"
        )


def test_another_config_is_refused_and_restart_moves_aside(trained):
    workdir, _ = trained
    refused = command("train", f"--workdir={workdir}", *TINY, STEPS, "--config.seed=5")
    assert_one_line_error(refused, 1, "seed (0 there, 5 here)", "--restart")
    restarted = command(
        "train", f"--workdir={workdir}", *TINY, "--config.steps=4", "--config.seed=5", "--restart"
    )
    assert restarted.returncode == 0, restarted.stderr
    assert (workdir.parent / "run.old-1" / "curves.png").exists()
    (workdir.parent / "run.old-1").rename(workdir.parent / "back")
    for place, new in ((workdir, "second"), (workdir.parent / "back", "run")):
        place.rename(workdir.parent / new)


def test_loss_that_runs_away_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    flags = (
        "--config.steps=40",
        "--config.optimizer.schedule.name=step",
        "--config.optimizer.schedule.boundaries=9",
    )
    process = command(
        "train",
        f"--workdir={tmp_path}",
        *TINY,
        *flags,
        "--config.optimizer.schedule.factor=1e30",
        "--config.optimizer.momentum=0",
    )
    assert_one_line_error(
        process,
        1,
        "the loss became",
        "at step 1",
        "the checkpoint of step 8 is kept",
        "learning_rate",
    )
    evaluated = command("evaluate", f"--workdir={tmp_path}")
    assert evaluated.returncode == 0 and "step      8" in evaluated.stdout
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_evaluation_that_runs_away_stops_too(tmp_path):
    flags = (
        "--config.optimizer.learning_rate=1e38",
        "--config.eval.every=1",
        "--config.checkpoint.keep_best=0",
        "--config.steps=1",
    )
    process = command(
        "train", f"--workdir={tmp_path}", *TINY, *flags, "--config.optimizer.schedule.name=constant"
    )
    assert_one_line_error(
        process, 1, "the evaluation's loss became", "at step 1", "there is no checkpoint yet"
    )
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


# A read that fails, and returns so late that all of the other reads have come back to a closed
# event loop.
SLOW_TO_FAIL = """
import sys, time
from jaxconv.__main__ import main
from jaxconv.train.checkpoint import Checkpoints
read = Checkpoints._read
def slow(self, *args):
    try:
        return read(self, *args)
    except Exception:
        time.sleep(1)
        raise
Checkpoints._read = slow
sys.exit(main(sys.argv[1:]))
"""


def test_damaged_checkpoint_is_one_warning(tmp_path):
    assert command("train", f"--workdir={tmp_path}", *TINY, STEPS).returncode == 0
    before = command("evaluate", f"--workdir={tmp_path}").stdout
    for file in (tmp_path / "checkpoints" / "10" / "state").glob("**/d/*"):
        file.write_bytes(file.read_bytes()[:10])
    arguments = ["train", f"--workdir={tmp_path}", *TINY, STEPS]
    again = subprocess.run(
        [sys.executable, "-c", SLOW_TO_FAIL, *arguments],
        **process_settings(),
        capture_output=True,
        timeout=300,
    )
    assert again.returncode == 0 and "Traceback" not in again.stderr, again.stderr
    assert again.stderr.count("is damaged") == 1 and "resuming from step 8" in again.stderr
    assert command("evaluate", f"--workdir={tmp_path}").stdout == before


def test_home_folder_and_strange_names(tmp_path):
    place = tmp_path / "a$^$b"
    home = {"env": os.environ | {"HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": str(CACHE)}}
    trained = command("train", "--workdir=~/a$^$b", *TINY, STEPS, **home)
    assert trained.returncode == 0 and (place / "curves.png").exists(), trained.stderr
    assert_same_result(command("evaluate", "--workdir=~/a$^$b", **home), trained)


def test_evaluation_on_any_number_of_devices(trained):
    workdir, process = trained
    on_three = json.loads(
        command("evaluate", f"--workdir={workdir}", devices=3).stdout.splitlines()[-1]
    )
    on_one = json.loads(process.stdout.splitlines()[-1])
    assert on_three["examples"] == on_one["examples"] and on_three["loss"] == pytest.approx(
        on_one["loss"], rel=1e-5
    )


def test_bad_folders_stop_before_any_training(tmp_path):
    root = write_images(tmp_path / "images")
    flags = (f"--config.data.source=folder:{root}", "--config.model.kwargs.filters=4", STEPS)
    good = command("train", f"--workdir={tmp_path / 'good'}", *TINY, *flags)
    assert good.returncode == 0, good.stderr
    (root / "train/cat/000.png").write_bytes(b"")
    bad = command("train", f"--workdir={tmp_path / 'bad'}", *TINY, *flags)
    assert_one_line_error(
        bad, 1, "train/cat/000.png: the file is empty", "--config.data.skip_unreadable=True"
    )
    skipped = command(
        "train",
        f"--workdir={tmp_path / 'bad'}",
        *TINY,
        *flags,
        "--config.data.skip_unreadable=True",
    )
    assert skipped.returncode == 0 and "left out 1 unreadable of 12 examples" in skipped.stderr
    changed = command(
        "train",
        f"--workdir={tmp_path / 'good'}",
        *TINY,
        *flags,
        "--config.data.skip_unreadable=True",
    )
    assert_one_line_error(changed, 1, "holds a run with another config: data.skip_unreadable")
    (root / "train/cat/000.png").unlink()
    assert_one_line_error(
        command("train", f"--workdir={tmp_path / 'good'}", *TINY, *flags),
        1,
        "the data has changed",
        "train_examples was 12, now it is 11",
    )
    assert_one_line_error(
        command("evaluate", f"--workdir={tmp_path / 'good'}", "--split=val"), 1, "no split 'val'"
    )


def test_second_start_compiles_nothing(tmp_path):
    """Whatever order Python's sets have in a process, the programs are the same."""
    cache = tmp_path / "cache"
    programs = []
    for seed in ("1", "2"):
        environment = os.environ | {
            "XDG_CACHE_HOME": str(cache),
            "PYTHONHASHSEED": seed,
            "XLA_FLAGS": "",
        }
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        process = command(
            "train",
            f"--workdir={tmp_path / seed}",
            *TINY,
            STEPS,
            "--config.optimizer.l2=1e-4",
            env=environment,
        )
        assert process.returncode == 0, process.stderr
        programs.append(
            sorted(
                file.name
                for file in (cache / "jaxconv" / "compiled").iterdir()
                if file.name.endswith("-cache")
            )
        )
    assert any("train_on_indices" in name for name in programs[0])
    assert programs[0] == programs[1]


def test_unwritable_cache_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    flags = ("train", f"--workdir={tmp_path / 'run'}", *TINY, STEPS)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "file"), "XLA_FLAGS": ""}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    process = command(*flags, env=environment)
    assert process.returncode == 0 and "compiled programs are not cached" in process.stderr
    asked = command(
        *flags, f"--config.compilation_cache={tmp_path / 'file' / 'cache'}", env=environment
    )
    assert_one_line_error(asked, 1, "config.compilation_cache is", "cannot be written")


def test_jaxconv_is_python_m_jaxconv():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="jaxconv")
    assert script.value == "jaxconv.__main__:main"
    assert command("--version").stdout.startswith("jaxconv ")
    assert "--config.KEY=VALUE" in command("train", "--help").stdout
    assert (ROOT / "experiments" / "xo.py").is_file()


def test_json_has_no_word_for_what_is_no_number(capsys):
    print_json(
        {
            "loss": float("nan"),
            "intervals": {"top1": (0.5, float("inf"))},
            "members": [{"top1": 1.0}],
            "view": "flip",
        }
    )
    assert (
        capsys.readouterr().out
        == '{"loss": null, "intervals": {"top1": [0.5, null]}, "members": [{"top1": 1.0}], '
        '"view": "flip"}\n'
    )


@pytest.mark.parametrize(
    ("argv", "others", "overrides"),
    [
        (["train", "--config.steps", "2"], ["train"], ["steps=2"]),
        (["train", "--config.steps=2", "x"], ["train", "x"], ["steps=2"]),
        (["--config.seed", "-1", "--workdir", "w"], ["--workdir", "w"], ["seed=-1"]),
        (["--config.seed", "--workdir=w"], ["--workdir=w"], ["seed"]),
        (["--config.data.source", "a=b"], [], ["data.source=a=b"]),
        (["--config=a.py", "--config.steps"], ["--config=a.py"], ["steps"]),
    ],
)
def test_values_after_a_space(argv, others, overrides):
    assert split_overrides(argv) == (others, overrides)


def test_the_last_line_is_short_on_a_terminal_unless_asked(monkeypatch, capsys):
    record = {"split": "train", "classes": [*"abcdefgh"] * 50, "loss": float("nan"), "top1": 0.5}
    record |= {"words": "w" * 500, "end": 1}
    short = {"split": "train", "loss": 0.25}

    def printed(*arguments):
        print_json(*arguments)
        return capsys.readouterr().out.rstrip("\n")

    assert json.loads(printed(record, False))["words"] == "w" * 500  # piped
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert printed(record, False) == (
        '{"split": "train", "loss": null, "top1": 0.5, "end": 1, ...}  (--json prints all 2.6 kB)'
    )
    assert json.loads(printed(record, True))["words"] == "w" * 500
    assert json.loads(printed(short, False)) == short


def test_data_of_many_classes_on_a_terminal(tmp_path):
    """With --json the whole line, which elsewhere needs no option."""
    pty = pytest.importorskip("pty")
    write_images(tmp_path / "in", ("train",), [f"class{n:03}" for n in range(60)], count=1)

    def last_line(*more):
        ours, theirs = pty.openpty()
        arguments = ["data", f"folder:{tmp_path / 'in'}", f"--png={tmp_path / 'a.png'}", *more]
        settings = process_settings() | {"stdout": theirs, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxconv", *arguments, "--config.data.image_size=8"], **settings
        )
        os.close(theirs)
        text = b""
        while True:
            try:
                block = os.read(ours, 65536)
            except OSError:  # EIO: the other side was closed
                break
            text += block
            if not block:
                break
        os.close(ours)
        assert process.wait() == 0
        return text.decode().replace("\r", "").splitlines()[-1]

    line = last_line()
    assert len(line) < 300 and line.endswith("B)") and "--json prints all" in line
    whole = last_line("--json")
    assert len(whole) > 1000 and "class059" in str(json.loads(whole))
