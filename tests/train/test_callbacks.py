"""Callbacks and early stopping: alone, in runs, resumed, and when they fail."""

import contextlib
import json
import logging
import sqlite3
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxconv.checks import check_config
from jaxconv.config import load_config
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_workdir
from jaxconv.grid import Trial
from jaxconv.results import standing
from jaxconv.run import train
from jaxconv.train.callbacks import EarlyStopping, RunView, best_of, open_callbacks
from jaxconv.train.restore import restore_run
from jaxconv.train.workdir import read_metrics, stopped_early
from tests.conftest import ROOT, TINY, assert_one_line_error, command, process_settings, tiny_config

# Evaluations that never improve: the learning rate is far too small.
STILL = {
    "optimizer__learning_rate": 1e-12,
    "optimizer__schedule__name": "constant",
    "eval__every": 2,
    "checkpoint__every": 5,
    "log__tensorboard": False,
}


@given(
    st.lists(st.floats(-10, 10) | st.just(float("nan")), max_size=8), st.booleans(), st.floats(0, 3)
)
def test_the_best_is_better_than_all_before(values, higher, min_delta):
    place = best_of(values, higher, min_delta)
    numbers = [value for value in values if not np.isnan(value)]
    if not numbers:
        assert place == -1
        return
    sign = 1 if higher else -1
    assert all(not sign * v > sign * values[place] + min_delta for v in values[place + 1 :])
    assert place == next(n for n, v in enumerate(values) if not np.isnan(v)) or all(
        sign * values[place] > sign * v for v in values[:place] if not np.isnan(v)
    )


def test_the_decision_is_a_function_of_the_evaluations(tmp_path):
    values = [0.5, 0.6, 0.62, 0.61, 0.62, 0.9]

    def stopped_at(patience, min_delta, known):
        """The step at which it stops, if the first `known` evaluations are from before."""
        run = RunView(None, tmp_path, 100)
        lines = [{"step": 2 * n + 2, "eval/top1": v} for n, v in enumerate(values[:known])]
        lines += [{"step": 2 * known + 1, "eval/top1": 0.0}]  # off the schedule: does not count
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        callback = EarlyStopping("eval/top1", True, patience, min_delta, 2)
        run.step = 2 * known + 1
        callback.on_start(run)
        for number, value in enumerate(values):
            if number >= known and not run._why:
                run.step = 2 * number + 2
                callback.on_evaluation(run, {"eval/top1": value})
        return run.step if run._why else None, run._why

    for known in range(4):
        assert stopped_at(2, 0.0, known)[0] == 10  # 0.61 and 0.62 are not above 0.62
        assert stopped_at(3, 0.0, known)[0] is None
        assert stopped_at(2, 0.05, known)[0] == 8  # 0.62 is not above 0.6 by more than 0.05
    assert "not risen above 0.62, of step 6, in 2 evaluations" in stopped_at(2, 0.0, 3)[1]


@pytest.mark.slow
def test_early_stopping_ends_a_run_and_it_continues_without(tmp_path, one_device, caplog):
    folder, settings = tmp_path / "run", {"early_stopping__patience": 2, **STILL}
    with caplog.at_level(logging.INFO, "jaxconv"):
        result = train(tiny_config(**settings), str(folder), devices=one_device)
    said = "stopped early at step 6 of 10: early_stopping: eval/top1 has not risen above"
    assert said in caplog.text and "early_stopping.patience=0 continues" in caplog.text
    assert sorted(int(p.name) for p in (folder / "checkpoints").iterdir())[-1] == 6
    assert stopped_early(folder)["step"] == 6
    assert evaluate_workdir(str(folder))["loss"] == pytest.approx(result["loss"])
    # The same command ends at once, with the same result.
    before = (folder / "metrics.jsonl").read_text()
    assert train(tiny_config(**settings), str(folder), devices=one_device) == result
    assert (folder / "metrics.jsonl").read_text() == before
    trial = Trial("run", {}, (), tiny_config(**settings))
    assert standing(trial, tmp_path)["state"] == "finished"
    more = tiny_config(**settings | {"early_stopping__patience": 0})
    assert standing(Trial("run", {}, (), more), tmp_path)["state"] == "unfinished"
    # It continues to what a run without early stopping is.
    longer = train(more, str(folder), devices=one_device)
    whole = train(more, str(tmp_path / "whole"), devices=one_device)
    assert longer == whole and not stopped_early(folder)
    strip = lambda rows: [{k: v for k, v in r.items() if "second" not in k} for r in rows]  # noqa: E731
    assert strip(read_metrics(folder)) == strip(read_metrics(tmp_path / "whole"))


class Recorder:
    """Notes every call; stops or fails at a step if asked to."""

    def __init__(self, stop_at=-1, fail_in=""):
        self.calls, self.stop_at, self.fail_in = [], stop_at, fail_in

    def _note(self, method, run, *_):
        self.calls.append((method, run.step))
        if method == self.fail_in:
            raise ZeroDivisionError("by nothing")
        if run.step == self.stop_at:
            run.stop("enough")

    def on_start(self, run):
        self._note("on_start", run)
        assert run.workdir.is_dir() and run.total_steps == 10 and run.config.batch_size == 8

    def on_log(self, run, metrics):
        self._note("on_log", run)
        assert np.isfinite(metrics["train/loss"]) and "eval/loss" not in metrics

    def on_evaluation(self, run, metrics):
        self._note("on_evaluation", run)
        assert np.isfinite(metrics["eval/loss"]) and run.variables["params"]

    def on_checkpoint(self, run, folder):
        self._note("on_checkpoint", run)
        assert (folder / "state").is_dir()  # complete

    def on_end(self, run, result):
        self._note("on_end", run)
        assert np.isfinite(result["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_callbacks_are_called_in_order(tmp_path, parallel):
    recorder = Recorder()
    train(tiny_config(parallel=parallel), str(tmp_path / "run"), callbacks=[recorder])
    assert recorder.calls == [
        ("on_start", 0),
        ("on_log", 3),
        ("on_evaluation", 4),
        ("on_checkpoint", 4),
        ("on_log", 6),
        ("on_evaluation", 8),
        ("on_checkpoint", 8),
        ("on_log", 9),
        ("on_log", 10),
        ("on_evaluation", 10),
        ("on_checkpoint", 10),
        ("on_end", 10),
    ]
    plain = train(tiny_config(parallel=parallel), str(tmp_path / "plain"))
    assert train(tiny_config(parallel=parallel), str(tmp_path / "run")) == plain


@pytest.mark.slow
def test_a_callback_can_stop_the_run(tmp_path, one_device):
    recorder = Recorder(stop_at=3)
    train(tiny_config(), str(tmp_path), devices=one_device, callbacks=[recorder])
    assert restore_run(tmp_path)[1] == 3 and recorder.calls[-1] == ("on_end", 3)
    assert stopped_early(tmp_path)["why"] == "Recorder: enough"
    # It is not asked to stop again, so the run continues.
    train(tiny_config(), str(tmp_path), devices=one_device)
    assert restore_run(tmp_path)[1] == 10 and not stopped_early(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "step"), [("on_start", 0), ("on_log", 3), ("on_checkpoint", 4), ("on_evaluation", 4)]
)
def test_an_error_in_a_callback_keeps_the_run(tmp_path, one_device, method, step):
    recorder = Recorder(fail_in=method)
    with pytest.raises(
        UserError, match=f"callback Recorder failed in {method} at step {step}: ZeroDivisionError"
    ) as error:
        train(tiny_config(), str(tmp_path / "run"), devices=one_device, callbacks=[recorder])
    assert error.value.exit_code == 1
    if step:
        assert restore_run(tmp_path / "run")[1] == step
    result = train(tiny_config(), str(tmp_path / "run"), devices=one_device)
    assert result == train(tiny_config(), str(tmp_path / "whole"), devices=one_device)


@pytest.mark.slow
def test_an_error_at_the_end_is_a_warning(tmp_path, one_device, caplog):
    recorder = Recorder(fail_in="on_end")
    train(tiny_config(), str(tmp_path), devices=one_device, callbacks=[recorder])
    assert "Recorder failed in on_end at step 10" in caplog.text


def test_wrong_callbacks_are_refused(tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Empty: pass\n"
        "class Typo:\n    def on_evalution(self, run, metrics): pass\n"
        "class Needy:\n    def __init__(self, needed): pass\n"
        "class Good:\n    def on_log(self, run, metrics): pass\n"
    )
    for name, words in {
        "Empty": "has none of the methods",
        "Typo": "has the method on_evalution, did you mean 'on_evaluation'",
        "Needy": "cannot be made: TypeError",
        "Goood": "did you mean 'Good'",
    }.items():
        with pytest.raises(UserError, match=words):
            open_callbacks(f"{tmp_path}/mine.py:{name}")
    ((name, callback),) = open_callbacks(f"{tmp_path}/mine.py:Good")
    assert name.endswith("mine.py:Good") and type(callback).__name__ == "Good"
    with pytest.raises(UserError, match="config.callbacks is 'Good'; it must be FILE.py:NAME"):
        check_config(tiny_config(callbacks="Good"))
    with pytest.raises(UserError, match="early_stopping.metric .*did you mean 'eval/loss'"):
        check_config(tiny_config(early_stopping__metric="eval/los"))
    with pytest.raises(UserError, match="early_stopping.min_delta is -1.0; it must be at least 0"):
        check_config(tiny_config(early_stopping__min_delta=-1.0))


@pytest.mark.slow
def test_by_name_and_in_several_processes(tmp_path):
    """The command, with a callback that fails, then one that does not."""
    (tmp_path / "mine.py").write_text(
        "class Mine:\n"
        "    def on_evaluation(self, run, metrics):\n"
        "        text = f'{run.step} {metrics[\"eval/top1\"]}'\n"
        "        (run.workdir / 'seen.txt').write_text(text)\n"
        "class Broken:\n"
        "    def on_log(self, run, metrics):\n        metrics['none']\n"
    )
    arguments = ["train", *TINY, "--config.steps=8", f"--workdir={tmp_path / 'run'}"]
    process = command(*arguments, f"--config.callbacks={tmp_path}/mine.py:Broken")
    assert_one_line_error(process, 1, "Broken failed in on_log at step 3: KeyError: 'none'")
    both = f"--config.callbacks={tmp_path}/mine.py:Mine experiments.wandb_stub:Wandb"
    assert_one_line_error(command(*arguments, both), 2, "experiments.wandb_stub:Wandb")
    process = command(*arguments, f"--config.callbacks={tmp_path}/mine.py:Mine")
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "run/seen.txt").read_text().startswith("8 ")
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert saved["callbacks"].endswith("mine.py:Mine")


def wandb_stub():
    """What the example uses of wandb."""
    stub = types.ModuleType("wandb")
    stub.runs = []

    class Run:
        def __init__(self, settings):
            self.settings, self.id = settings, settings["id"] or "abc123"
            self.rows, self.summary, self.metrics, self.finished = [], {}, [], False
            stub.runs.append(self)

        def define_metric(self, name, step_metric):
            self.metrics.append((name, step_metric))

        def log(self, row):
            self.rows.append(row)

        def finish(self):
            self.finished = True

    stub.init = lambda **settings: Run(settings)
    return stub


@pytest.mark.slow
def test_the_wandb_example_sends_every_row(tmp_path, monkeypatch, one_device):
    stub = wandb_stub()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    config = load_config(str(ROOT / "experiments/wandb_logger.py:small"), ["log.report=False"])
    result = train(config, str(tmp_path), devices=one_device)
    (run,) = stub.runs
    assert run.settings["config"]["steps"] == 4 and run.metrics == [("*", "step")]
    assert [row["step"] for row in run.rows] == [1, 2, 2, 3, 4, 4]
    assert all(("train/loss" in row) != ("eval/loss" in row) for row in run.rows)
    assert run.summary == result and run.finished
    # A longer training continues the same W&B run.
    config.optimizer.schedule.name = "constant"
    train(config, str(tmp_path / "2"), devices=one_device)
    config.steps = 6
    train(config, str(tmp_path / "2"), devices=one_device)
    assert [run.settings["id"] for run in stub.runs] == [None, None, "abc123"]


@pytest.mark.slow
def test_without_wandb_one_line_says_so(tmp_path, monkeypatch, one_device):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = load_config(str(ROOT / "experiments/wandb_logger.py:small"), ["log.report=False"])
    with pytest.raises(UserError, match="Wandb failed in on_start at step 0: .*wandb"):
        train(config, str(tmp_path), devices=one_device)


def logged_by(name, folder, **environment):
    """Train an example of a logger for 4 steps, then for 6; with the real package."""
    arguments = [f"--config={ROOT}/experiments/{name}.py:small", f"--workdir={folder}"]
    arguments += ["--config.optimizer.schedule.name=constant", "--config.log.report=False"]
    settings = process_settings()
    settings["env"] |= environment
    for more in ((), ("--config.steps=6",)):
        process = command("train", *arguments, *more, **settings)
        assert process.returncode == 0, process.stderr
    return [row for row in read_metrics(folder) if "eval/loss" in row]


@pytest.mark.slow
def test_mlflow_itself_keeps_every_row_of_one_run(tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic", reason="mlflow-skinny alone keeps nothing")
    rows = logged_by("mlflow_logger", tmp_path / "run")
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / "mlflow.db")) as database:
        assert database.execute("select status, name from runs").fetchall() == [("FINISHED", "run")]
        found = database.execute("select key, step, value from metrics").fetchall()
        params = dict(database.execute("select key, value from params").fetchall())
    assert params["optimizer.schedule.name"] == "constant"
    kept = {(key, step): value for key, step, value in found}
    for row in rows:
        assert kept["eval/loss", row["step"]] == row["eval/loss"]
    assert {step for key, step in kept if key == "train/loss"} == {1, 2, 3, 4, 5, 6}
    assert kept["end/loss", 6] == rows[-1]["eval/loss"]


@pytest.mark.slow
def test_wandb_itself_keeps_the_rows_offline(tmp_path):
    pytest.importorskip("wandb")
    logged_by("wandb_logger", tmp_path / "run", WANDB_MODE="offline", WANDB_SILENT="true")
    name = (tmp_path / "run" / "wandb_id.txt").read_text()
    files = [*(tmp_path / "run" / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")]
    assert len(files) == 2  # one of each start, which `wandb sync` joins
    assert all(b"eval/loss" in file.read_bytes() for file in files)
