"""Sweeps: the grid, the table's figures, and a real one in processes, killed in the middle and
resumed.
"""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxconv.config import flatten
from jaxconv.errors import UserError
from jaxconv.grid import MOST_RUNS, make_grid, make_trials, name_of, parse_grid, read_grid
from jaxconv.results import markdown, over_seeds, renewed, standing
from jaxconv.sweep import Termination, run_once, sweep
from jaxconv.tasks import find_task
from tests.conftest import (
    ROOT,
    TINY,
    assert_one_line_error,
    command,
    command_line,
    process_settings,
)
from tests.launch.stage import Stage

EXPERIMENT = str(ROOT / "experiments" / "xo.py")
OVERRIDES = [flag.removeprefix("--config.") for flag in TINY[1:]]

keys = st.from_regex(r"[a-z_]+(\.[a-z_]+){0,2}", fullmatch=True)
texts = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=",:"),
    min_size=1,
    max_size=8,
)


@given(st.dictionaries(keys, st.lists(texts, min_size=1, max_size=4), max_size=4))
def test_grid_is_read_as_it_is_written(grid):
    assert parse_grid(" ".join(f"{key}={','.join(values)}" for key, values in grid.items())) == grid


@given(st.integers(-50, 50), st.integers(1, 20))
def test_ranges(first, count):
    assert parse_grid(f"seed={first}:{first + count}") == {
        "seed": [str(number) for number in range(first, first + count)]
    }
    assert parse_grid(f"seed=7,{first}:{first + count}")["seed"][:2] == ["7", str(first)]


VALUES = {
    "seed": st.integers(0, 2**32 - 1),
    "optimizer.learning_rate": st.floats(0, 1e6),
    "optimizer.nesterov": st.booleans(),
    "data.train_split": st.text(
        st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=1
    ),
    "data.mean": st.lists(st.floats(-10, 10), min_size=1, max_size=3),
    "model.kwargs.filters": st.lists(st.integers(1, 512), min_size=1, max_size=4),
}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(VALUES)).flatmap(
        lambda key: st.tuples(
            st.just(key), st.lists(VALUES[key], min_size=1, max_size=3, unique_by=str)
        )
    )
)
def test_grid_file_gives_the_config_these_values(tmp_path_factory, key_and_values):
    key, values = key_and_values
    path = tmp_path_factory.mktemp("grid") / "grid.json"
    path.write_text(json.dumps({key: values}))
    trials = make_trials(EXPERIMENT, [], read_grid(str(path)))
    wanted = [tuple(value) if isinstance(value, list) else value for value in values]
    assert [flatten(trial.config)[key] for trial in trials] == wanted


@given(
    st.dictionaries(
        keys,
        st.one_of(texts, st.text(max_size=400), st.integers(), st.floats(), st.booleans()),
        min_size=1,
        max_size=5,
    )
)
def test_names_are_safe_and_tell_runs_apart(values):
    name = name_of(values)
    assert (
        len(name.encode()) <= 160
        and not set(name) & set("/\\ :*?\"'<>|$%~\0\n")
        and not name.startswith((".", "-"))
    )
    assert name == name_of(dict(reversed(values.items())))
    first = next(iter(values))
    assert name != name_of(values | {first: f"{values[first]}x"})


def test_trials_in_order_by_readable_names():
    trials = make_trials(
        EXPERIMENT, ["batch_size=10"], make_grid("seed=0:2 optimizer.learning_rate=0.10,1e-2", "")
    )
    assert [trial.name for trial in trials] == [
        "optimizer.learning_rate=0.1,seed=0", "optimizer.learning_rate=0.01,seed=0",
        "optimizer.learning_rate=0.1,seed=1", "optimizer.learning_rate=0.01,seed=1",
    ]  # fmt: skip
    assert trials[1].values == {"seed": 0, "optimizer.learning_rate": 0.01}
    assert [trial.config.batch_size for trial in trials] == [10] * 4 and trials[2].config.seed == 1


def test_another_network_leaves_the_experiment_s_arguments_behind():
    one, other = make_trials(EXPERIMENT, [], {"model.name": ["chain", "resnet20_cifar"]})
    assert "filters" in one.config.model.kwargs and not other.config.model.kwargs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "give --grid"),
        ("seed", "'seed' is not KEY=VALUE"),
        ("seed=", "'seed=' is not KEY=VALUE"),
        ("=1", "'=1' is not KEY=VALUE"),
        ("seed=1,,2", "'seed=1,,2' is not"),
        ("seed=0,1 2", "'2' is not KEY=VALUE"),
        ("seed=3:3", "seed=3:3 is 0 values"),
        ("seed=3:1", "seed=3:1 is 0 values"),
        (f"seed=0:{10**30}", "values"),
        ("seed=0:200 data.xo.seed=1:200", f"39800 runs; the maximum is {MOST_RUNS}"),
        ("seed=1 seed=2", "seed is given twice"),
        ("seed=1,+1", "contains the run seed=1 twice"),
        ("optimizer.learning_rate=0.1,1e-1", "contains the run optimizer.learning_rate=0.1 twice"),
        ("optimiser.name=sgd", "did you mean 'optimizer.name'"),
        ("log.every=3,4", "--config.log.every: the grid sets it too"),
        ("seed=0,zero", "seed is 'zero'; it must be a whole number"),
        ("optimizer.momentum=0.9,1.5", "config.optimizer.momentum is 1.5; it must be less than 1"),
        ("model.name=chain,resnet9000", "no network is called 'resnet9000'"),
        ("seed=0,1 model.kwargs.filter=1", "chain has no argument 'filter'"),
    ],
)
def test_bad_grids(text, words):
    with pytest.raises(UserError) as raised:
        make_trials(EXPERIMENT, [*OVERRIDES, "steps=4"], make_grid(text, ""))
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[1]", "must be {"),
        ('{"seed": 1}', "seed is 1; it must be a list"),
        ('{"seed": []}', "seed is []; it must be a list"),
        ('{"seed": [null]}', "seed has None; a value is"),
        ('{"data.mean": [["a"]]}', "data.mean has ['a']"),
        ('{"data.mean": [[[1]]]}', "data.mean has [[1]]"),
        ('{"seed": [{"a": 1}]}', "a value is a number"),
        ('{"seed": [0]}', "seed is in --grid too"),
    ],
)
def test_bad_grid_files(tmp_path, content, words):
    (tmp_path / "grid.json").write_text(content)
    with pytest.raises(UserError) as raised:
        make_grid("seed=0", str(tmp_path / "grid.json"))
    assert words in str(raised.value)
    with pytest.raises(UserError, match="cannot be read"):
        make_grid("", str(tmp_path / "nothing.json"))


def write_run(workdir, trial, top1, step=10, log="", checkpoint=True):
    """What a run leaves behind, as far as the table looks at it."""
    folder = workdir / trial.name
    (folder / "checkpoints" / str(step)).mkdir(parents=True) if checkpoint else folder.mkdir(
        parents=True
    )
    (folder / "config.json").write_text(json.dumps(trial.config.to_dict()))
    rows = [
        {
            "step": 5,
            "train/loss": 2.0,
            "images_per_second": 100.0,
            "eval/loss": 1.0,
            "eval/top1": 0.9,
        }
    ]
    rows += [
        {
            "step": step,
            "train/loss": 1.0,
            "images_per_second": 300.0,
            "eval/loss": 0.5,
            "eval/top1": top1,
        }
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workdir / f"{trial.name}.log").write_text(log)


@pytest.fixture
def some_trials():
    return make_trials(
        EXPERIMENT,
        [*OVERRIDES, "steps=10"],
        make_grid("optimizer.learning_rate=0.01,0.1 seed=0:3", ""),
    )


def test_standing_and_table(tmp_path, some_trials):
    a, b, c, d, e, f = some_trials
    write_run(tmp_path, a, 0.5)
    write_run(
        tmp_path,
        b,
        0.6,
        log="$ jaxconv\njaxconv: too bad\nstopped with exit code 1\n$ jaxconv\nall well\n",
    )
    write_run(tmp_path, c, 0.7)
    write_run(tmp_path, d, 0.4, checkpoint=False)  # killed before the last checkpoint was whole
    write_run(
        tmp_path,
        e,
        0.3,
        step=8,
        log="$ jaxconv\njaxconv: old\nstopped with exit code 1\n$ jaxconv\njaxconv: the loss "
        "became nan\nstopped with exit code 1\n",
    )
    rows = [standing(trial, tmp_path) for trial in some_trials]
    assert [row["state"] for row in rows] == [
        "finished",
        "finished",
        "finished",
        "unfinished",
        "failed",
        "waiting",
    ]
    assert rows[0] == {
        "run": a.name,
        "values": {"optimizer.learning_rate": 0.01, "seed": 0},
        "state": "finished",
        "step": 10,
        "steps": 10,
        "loss": 0.5,
        "top1": 0.5,
        "best_top1": 0.9,
        "images_per_second": 200.0,
        "why": "",
        "figure": dataclasses.asdict(find_task("classification").figures[0]),
    }
    assert (
        rows[4]["why"] == "the loss became nan" and rows[5]["loss"] is None and rows[5]["step"] == 0
    )
    first, second = over_seeds(rows)
    assert first["top1"] == pytest.approx((0.6, 0.1)) and first["finished"] == first["runs"] == 3
    assert first["values"] == {"optimizer.learning_rate": 0.01}
    assert second["top1"] == (None, None) and second["finished"] == 0
    table = markdown(rows)
    lines = table.splitlines()
    assert len({len(line) for line in lines[:8]}) == 1  # aligned
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "0.01",
        "0",
        "10",
        "0.5000",
        "50.00 %",
        "90.00 %",
        "200",
        "finished",
    ]
    assert [cell.strip() for cell in lines[6].split("|")[1:-1]] == [
        "0.1",
        "1",
        "8 of 10",
        "0.5000",
        "30.00 %",
        "90.00 %",
        "200",
        "failed",
    ]
    assert (
        "| 0.01 " in table
        and "60.00 % ± 10.00 %" in table
        and f"- {e.name}: the loss became nan" in table
    )


def test_without_seeds_there_are_no_means(some_trials):
    assert (
        over_seeds(
            [
                {
                    "values": {"batch_size": 8},
                    "state": "finished",
                    "loss": 1.0,
                    "top1": 0.5,
                    "best_top1": 0.5,
                }
            ]
        )
        == []
    )


def test_table_and_print_start_nothing(tmp_path, capsys):
    grid = make_grid("model.name=chain,text:fc seed=0:2", "")
    assert (
        sweep(EXPERIMENT, str(tmp_path / "s"), grid, ["epochs=0", "steps=4"], launcher="print") == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and not (tmp_path / "s").exists()
    name = name_of({"model.name": "text:fc", "seed": 1})
    settings = [
        "--config.epochs=0",
        "--config.steps=4",
        "--config.model.name=text:fc",
        "--config.seed=1",
    ]
    assert shlex.split(lines[3]) == [
        "jaxconv",
        "train",
        f"--config={EXPERIMENT}",
        f"--workdir={tmp_path / 's' / name}",
        *settings,
    ]
    with pytest.raises(UserError, match="folder not found, and --table starts nothing"):
        sweep(EXPERIMENT, str(tmp_path / "s"), grid, ["epochs=0", "steps=4"], table_only=True)
    with pytest.raises(UserError, match="applies to --launcher=slurm, but the launcher is local"):
        sweep(EXPERIMENT, str(tmp_path / "s"), grid, ["epochs=0", "steps=4"], slurm="--gpus=1")
    (tmp_path / "s").mkdir()
    assert (
        sweep(EXPERIMENT, str(tmp_path / "s"), grid, ["epochs=0", "steps=4"], table_only=True) == 0
    )
    assert capsys.readouterr().out.count("waiting") == 4
    assert {path.name for path in (tmp_path / "s").iterdir()} == {
        "sweep.json",
        "sweep.md",
        "sweep.png",
    }


def test_run_of_another_config_is_refused(tmp_path, some_trials):
    write_run(tmp_path, some_trials[0], 0.5)
    with pytest.raises(
        UserError,
        match="learning_rate=0.01,seed=0 in it is a run with another loss.label_smoothing;",
    ):
        sweep(
            EXPERIMENT,
            str(tmp_path),
            make_grid("optimizer.learning_rate=0.01 seed=0", ""),
            [*OVERRIDES, "steps=10", "loss.label_smoothing=0.1"],
            table_only=True,
        )


def test_unknown_launcher(tmp_path):
    with pytest.raises(UserError, match="--launcher=slrum: unknown launcher, did you mean 'slurm'"):
        sweep(
            EXPERIMENT,
            str(tmp_path),
            make_grid("seed=0", ""),
            [*OVERRIDES, "steps=4"],
            launcher="slrum",
        )


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*give a writable folder"):
        sweep(
            EXPERIMENT,
            str(tmp_path / "file" / "s"),
            make_grid("seed=0", ""),
            OVERRIDES + ["steps=4"],
        )


def test_run_that_alone_is_preempted_is_started_again(tmp_path):
    script = (
        "import pathlib, sys; seen = pathlib.Path('seen'); code = 0 if seen.exists() else 75; "
        "seen.touch(); print('step'); sys.exit(code)"
    )
    with Termination() as termination:
        code = run_once(
            [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {script}"],
            tmp_path / "log",
            termination,
        )
    assert code == 0 and (tmp_path / "log").read_text().count("\nstep\n") == 2
    with Termination() as termination:
        assert (
            run_once(
                [sys.executable, "-c", "import sys; sys.exit(3)"], tmp_path / "log", termination
            )
            == 3
        )
    assert (tmp_path / "log").read_text().endswith("stopped with exit code 3\n")


RUN = (*TINY, "--config.steps=60", "--config.checkpoint.every=5", "--config.eval.every=20")
GRID = "--grid=optimizer.learning_rate=0.02,0.05 seed=0:2"


def rows_of(workdir):
    rows = json.loads((workdir / "sweep.json").read_text())["runs"]
    for row in rows:
        assert row.pop("images_per_second") > 0
    return rows


def disturb(workdir, run, number, everyone):
    """Start the sweep, and send a signal once a run has its first checkpoint; returns the exit
    code.
    """
    arguments = command_line("sweep", *RUN, GRID, f"--workdir={workdir}")
    place = workdir / run / "checkpoints" / "5"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        arguments, **process_settings(), **pipes, start_new_session=True
    ) as process:
        while process.poll() is None and not place.exists():
            time.sleep(0.005)
        os.killpg(process.pid, number) if everyone else process.send_signal(number)
        process.communicate(timeout=120)
    return process.returncode


@pytest.mark.slow
def test_sweep_that_is_stopped_goes_on_and_ends_as_if_it_had_not_been(tmp_path, capsys):
    """All processes are killed in the first run, then the sweep alone is stopped in the
    second; both end with the same numbers.
    """
    workdir = tmp_path / "sweep"
    names = [
        f"optimizer.learning_rate={rate},seed={seed}" for rate in (0.02, 0.05) for seed in (0, 1)
    ]
    assert disturb(workdir, names[0], signal.SIGKILL, everyone=True) == -signal.SIGKILL
    assert disturb(workdir, names[1], signal.SIGTERM, everyone=False) == 75
    here = (
        EXPERIMENT,
        str(workdir),
        make_grid(GRID.removeprefix("--grid="), ""),
        [flag.removeprefix("--config.") for flag in RUN[1:]],
    )
    assert sweep(*here, table_only=True) == 0
    states = [row["state"] for row in json.loads((workdir / "sweep.json").read_text())["runs"]]
    assert (
        states == ["finished", "unfinished", "waiting", "waiting"]
        and " of 60 " in capsys.readouterr().out
    )

    process = command("sweep", *RUN, GRID, f"--workdir={workdir}")
    assert process.returncode == 0, process.stderr
    rows = rows_of(workdir)
    assert [row["run"] for row in rows] == names and {row["state"] for row in rows} == {"finished"}
    assert {row["step"] for row in rows} == {60} and len({row["loss"] for row in rows}) == 4
    assert process.stdout == (workdir / "sweep.md").read_text() + f"workdir: {workdir}\n"
    assert (workdir / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert f"3/3 {names[3]}: finished at step 60, top-1 " in process.stderr

    before = [path.stat().st_mtime_ns for path in workdir.glob("*/metrics.jsonl")]
    assert sweep(*here) == 0 and capsys.readouterr().out == process.stdout
    assert [path.stat().st_mtime_ns for path in workdir.glob("*/metrics.jsonl")] == before

    undisturbed = command(
        "sweep",
        *RUN,
        "--grid=seed=0:2 optimizer.learning_rate=0.02",
        f"--workdir={tmp_path / 'other'}",
    )
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert [
        row | {"values": rows[n]["values"]} for n, row in enumerate(rows_of(tmp_path / "other"))
    ] == rows[:2]


@pytest.mark.slow
def test_run_that_fails_is_told_and_the_others_go_on(tmp_path):
    grid = "--grid=optimizer.learning_rate=1e38,0.02"
    process = command(
        "sweep",
        *TINY,
        "--config.steps=4",
        "--config.optimizer.schedule.name=constant",
        grid,
        f"--workdir={tmp_path}",
    )
    assert process.returncode == 1, process.stderr
    first, second = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert first["state"] == "failed" and "became" in first["why"] and second["state"] == "finished"
    assert f"- optimizer.learning_rate=1e+38: {first['why']}" in process.stdout


@pytest.mark.slow
def test_bad_value_in_the_last_combination_comes_first(tmp_path):
    process = command(
        "sweep",
        *TINY,
        "--config.steps=4",
        "--grid=seed=0:2 optimizer.momentum=0.9,many",
        f"--workdir={tmp_path / 's'}",
    )
    assert_one_line_error(process, 2, "config.optimizer.momentum is 'many'")
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_slurm_launcher_submits_what_is_left(tmp_path):
    stage = Stage(tmp_path)
    stage.prepare(
        sbatch__tasks=["[1, 2]"], srun__codes=[1, 0], sbatch__says=["Submitted batch job 42"]
    )
    options = (
        "sweep",
        *TINY,
        "--config.steps=4",
        "--grid=seed=0:2",
        f"--workdir={tmp_path / 's'}",
        "--launcher=slurm",
    )
    environment = {"env": process_settings()["env"] | stage.settings()["env"]}
    process = command(*options, "--slurm=--gpus=0 --at_once=1 --retries=0", **environment)
    assert process.returncode == 0, process.stderr
    assert {"--array=1-2%1"} <= set(stage.calls("sbatch")[0])
    assert [call[-1] for call in stage.calls("srun")] == ["--config.seed=0", "--config.seed=1"]
    assert (tmp_path / "s" / "seed=0.log").read_text().startswith("$ srun ")
    assert (tmp_path / "s" / "slurm_job.txt").read_text() == "42\n"
    # `jaxconv report` finds a sweep there from its start.
    assert [
        row["state"] for row in json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]
    ] == ["waiting", "waiting"]
    (failed, waiting) = make_trials(EXPERIMENT, [*OVERRIDES, "steps=4"], make_grid("seed=0:2", ""))
    row = standing(failed, tmp_path / "s")
    assert renewed({"run": "seed=0", "values": {"seed": 0}, "steps": 4}, tmp_path / "s") == row
    assert row["state"] == "failed" and row["why"] == "the loss became nan at step 7"
    assert standing(waiting, tmp_path / "s")["state"] == "waiting"
    refused = command(*options, "--slurm=--gpus=none", **environment)
    assert (
        refused.returncode == 1
        and "jaxconv: --launcher=slurm: launch/slurm.sh ended with exit code 2" in refused.stderr
    )
