"""The workdir stays one run; its numbers are cut back to the checkpoint."""

import json

import pytest

from jaxconv.errors import UserError
from jaxconv.train.watch import MetricsLog, Stopwatch
from jaxconv.train.workdir import check_data, open_workdir, read_metrics, saved_config, write_json
from tests.conftest import tiny_config


def test_config_comes_back_as_it_was(tmp_path):
    config = tiny_config(data__mean=(0.1, 0.2, 0.3))
    open_workdir(tmp_path / "run", config, restart=False)[1].close()
    assert saved_config(tmp_path / "run").to_dict() == config.to_dict()
    open_workdir(tmp_path / "run", tiny_config(data__mean=(0.1, 0.2, 0.3), parallel="pmap"), restart=False)[1].close()


def test_another_run_is_refused_or_moved_aside(tmp_path):
    folder = tmp_path / "run"
    open_workdir(folder, tiny_config(), restart=False)[1].close()
    (folder / "kept").write_text("kept")
    with pytest.raises(UserError, match="holds a run with another config: seed .0 there, 1 here.; .*--restart"):
        open_workdir(folder, tiny_config(seed=1), restart=False)
    for number in (1, 2):
        open_workdir(folder, tiny_config(seed=number), restart=True)[1].close()
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
    with pytest.raises(UserError, match="cannot be written .Not a directory.; give a folder that can"):
        open_workdir(tmp_path / "file" / "run", tiny_config(), restart=False)
    with pytest.raises(UserError, match="holds no run"):
        saved_config(tmp_path)
    write_json(tmp_path / "config.json", {})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: cannot be read"):
        saved_config(tmp_path)


def test_data_that_changed_is_noticed(tmp_path):
    check_data(tmp_path, {"image_shape": [8, 8, 1], "train_examples": 10})
    check_data(tmp_path, {"image_shape": [8, 8, 1], "train_examples": 10})
    with pytest.raises(UserError, match="the data has changed since the run began: train_examples was 10, now it is 11"):
        check_data(tmp_path, {"image_shape": [8, 8, 1], "train_examples": 11})


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path, step=0, tensorboard=True)
    for step in (5, 10, 15):
        log.write({"step": step, "train/loss": 1 / step})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "train/lo')  # a kill in the middle of a line
    log = MetricsLog(tmp_path, step=10, tensorboard=True)
    log.write({"step": 15, "train/loss": 0.5})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 5, "train/loss": 0.2}, {"step": 10, "train/loss": 0.1}, {"step": 15, "train/loss": 0.5}]
    assert read_metrics(tmp_path, up_to=10) == rows[:2]
    assert tensorboard_scalars(tmp_path / "tensorboard") == [(5, 0.2), (10, 0.1), (15, 0.5)]


def tensorboard_scalars(folder):
    """(step, value) of every scalar in TensorBoard's files: length, checksum, event, checksum each."""
    import struct

    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in folder.iterdir():
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
            found += [(event.step, pytest.approx(value.simple_value)) for value in event.summary.value]
    return found


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
