"""The workdir stays one run; its metrics are truncated to the checkpoint."""

import json

import pytest

from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_workdir
from jaxconv.files import expand
from jaxconv.run import train
from jaxconv.train.watch import MetricsLog, Stopwatch
from jaxconv.train.workdir import (
    begin_or_compare,
    in_use,
    locked,
    open_workdir,
    read_metrics,
    saved_config,
    saved_data,
    write_json,
)
from tests.conftest import tiny_config
from tests.train.test_board import tensorboard_shows

DATA = {
    "image_shape": [8, 8, 1],
    "kind": "image",
    "cropped": False,
    "class_names": ["o", "x"],
    "train_examples": 10,
}


def begin(folder, config, restart=False):
    """Open the workdir, and begin the run in it."""
    workdir, lock = open_workdir(folder, config, restart)
    with lock:
        begin_or_compare(workdir, config, DATA)


def test_config_comes_back_as_it_was(tmp_path):
    config = tiny_config(data__mean=(0.1, 0.2, 0.3))
    begin(tmp_path / "run", config)
    assert saved_config(tmp_path / "run").to_dict() == config.to_dict()
    begin(tmp_path / "run", tiny_config(data__mean=(0.1, 0.2, 0.3), parallel="pmap"))


def test_run_older_than_a_key(tmp_path):
    """A key that does not affect the results may be newer than the run; any other may not."""
    begin(tmp_path / "run", tiny_config())
    path = tmp_path / "run" / "config.json"
    given = json.loads(path.read_text())
    del given["log"]["report"], given["parallel"]
    write_json(path, given)
    assert (
        saved_config(tmp_path / "run").log.report is True
        and saved_config(tmp_path / "run").parallel == "jit"
    )
    begin(tmp_path / "run", tiny_config())
    del given["ema"]
    write_json(path, given)
    with pytest.raises(UserError, match="config.ema.decay is missing"):
        saved_config(tmp_path / "run")


def test_in_use(tmp_path):
    assert not in_use(tmp_path) and not (tmp_path / ".lock").exists()
    with locked(tmp_path):
        assert in_use(tmp_path)
    assert not in_use(tmp_path)
    locked(tmp_path).close()  # the check has left no lock


def test_another_run_is_refused_or_moved_aside(tmp_path):
    folder = tmp_path / "run"
    begin(folder, tiny_config())
    (folder / "kept").write_text("kept")
    with pytest.raises(
        UserError, match="holds a run with another config: seed .0 there, 1 here.; .*--restart"
    ):
        open_workdir(folder, tiny_config(seed=1), restart=False)
    for number in (1, 2):
        begin(folder, tiny_config(seed=number), restart=True)
        assert (tmp_path / f"run.old-{number}" / "config.json").exists()
    assert (tmp_path / "run.old-1" / "kept").read_text() == "kept"
    assert saved_config(folder).seed == 2


def test_two_processes_cannot_train_in_one_workdir(tmp_path):
    _, lock = open_workdir(tmp_path / "run", tiny_config(), restart=False)
    for restart in (False, True):
        with pytest.raises(UserError, match="another process is training there"):
            open_workdir(tmp_path / "run", tiny_config(), restart)
    lock.close()
    open_workdir(tmp_path / "run", tiny_config(), restart=False)[1].close()


def test_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match="cannot be written .Not a directory.; give a folder that can"
    ):
        open_workdir(tmp_path / "file" / "run", tiny_config(), restart=False)
    with pytest.raises(UserError, match="holds no run"):
        saved_config(tmp_path)
    write_json(tmp_path / "config.json", {})
    with pytest.raises(
        UserError,
        match="holds a run that this version of jaxconv cannot resume .*is missing.*with --restart",
    ):
        saved_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: cannot be read"):
        saved_config(tmp_path)


def test_run_that_never_began_blocks_nothing(tmp_path):
    open_workdir(tmp_path, tiny_config(), restart=False)[1].close()
    begin(tmp_path, tiny_config(seed=1))
    (tmp_path / "config.json").unlink()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds checkpoints but no config.json"):
        open_workdir(tmp_path, tiny_config(), restart=False)


def test_data_that_changed_is_noticed(tmp_path):
    begin(tmp_path, tiny_config())
    with pytest.raises(
        UserError,
        match="the data has changed since the run began: train_examples was 10, now it is 11",
    ):
        begin_or_compare(tmp_path, tiny_config(), DATA | {"train_examples": 11})


@pytest.mark.parametrize("content", ["{}", "[]", "null", "{", "5"])
def test_damaged_files_are_named(tmp_path, content):
    begin(tmp_path, tiny_config())
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(UserError, match="data.json: "):
        saved_data(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json: |config.* is missing"):
        saved_config(tmp_path)


def test_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/run") == tmp_path / "run"
    with pytest.raises(UserError, match="--workdir= is empty"):
        expand("")
    with pytest.raises(
        UserError, match="--out=https://bucket/run: must be a path on this machine, or an"
    ):
        expand("https://bucket/run", "--out")
    with pytest.raises(UserError, match="--workdir=~nobody-of-this-name/x"):
        expand("~nobody-of-this-name/x")


def test_the_clock_goes_on_from_the_start_before(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "seconds": 1000.0}\n')
    log = MetricsLog(tmp_path, step=5, tensorboard=False)
    log.write({"step": 10})
    log.close()
    assert 1000.0 <= read_metrics(tmp_path)[-1]["seconds"] < 1060.0


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path, step=0, tensorboard=True)
    for step in (5, 10, 15):
        log.write({"step": step, "train/loss": 1 / step})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(
            '\n{}\n5\n{"step": 20, "train/lo'
        )  # blank lines, foreign lines, and one cut off by a kill
    log = MetricsLog(tmp_path, step=10, tensorboard=True)
    log.write({"step": 15, "train/loss": 0.5})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seconds = [row.pop("seconds") for row in rows]
    assert seconds == sorted(seconds) and 0 <= seconds[0] <= seconds[-1]
    assert rows == [
        {"step": 5, "train/loss": 0.2},
        {"step": 10, "train/loss": 0.1},
        {"step": 15, "train/loss": 0.5},
    ]
    assert [row["step"] for row in read_metrics(tmp_path, up_to=10)] == [5, 10]
    shown = tensorboard_shows(tmp_path / "tensorboard")["train/loss"]
    assert [(step, value) for step, value, _ in shown] == [
        (5, pytest.approx(0.2)),
        (10, pytest.approx(0.1)),
        (15, pytest.approx(0.5)),
    ]


def test_stopwatch_stands_still_while_stopped(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch()
    assert watch.rate() == {}
    watch.count(30)
    now[0] = 2.0
    watch.stop()
    now[0] = 10.0
    watch.go_on()
    now[0] = 11.0
    assert watch.rate() == {"images_per_second": 10.0}


def test_a_workdir_from_before_there_were_tasks_is_evaluated_and_resumed(tmp_path, one_device):
    """Its config has no task, and names the metrics that are now the task's first."""

    def config_of(steps, **changes):
        return tiny_config(steps=steps, optimizer__schedule__name="constant", **changes)

    train(config_of(4), str(tmp_path), devices=one_device)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("task") == {"name": "classification", "kwargs": {}}
    for section in (config["checkpoint"], config["optimizer"]["schedule"]):
        assert section["metric"] == ""
        section["metric"] = "eval/top1"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert evaluate_workdir(str(tmp_path), checkpoint="best")["step"] == 4
    longer = train(config_of(8), str(tmp_path), devices=one_device)
    whole = train(config_of(8), str(tmp_path / "whole"), devices=one_device)
    assert longer == whole
    with pytest.raises(UserError, match="checkpoint.metric .'eval/top1' there, 'eval/loss' here"):
        changed = config_of(8, checkpoint__metric="eval/loss")
        train(changed, str(tmp_path), devices=one_device)
