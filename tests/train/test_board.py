"""TensorBoard's files over resumes: nothing is lost, shown twice, or moved in time."""

import importlib.util
import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxconv.run import train
from jaxconv.train.board import Board, events, files, scalars
from tests.conftest import tiny_config


def rows(*steps, value=1.0):
    return [{"step": step, "train/loss": value * step, "eval/loss": value} for step in steps]


def tensorboard_shows(folder):
    """{name: [(step, value, wall time), ...]} by TensorBoard's rule: a START drops later steps."""
    shown = {}
    for event in events(folder):
        if event.HasField("session_log"):
            kept = {name: [x for x in all_ if x[0] < event.step] for name, all_ in shown.items()}
            shown = {name: all_ for name, all_ in kept.items() if all_}
        for value in event.summary.value:
            entry = (event.step, value.simple_value, event.wall_time)
            shown.setdefault(value.tag, []).append(entry)
    return shown


def steps(folder, name="train/loss"):
    return [step for step, _, _ in tensorboard_shows(folder)[name]]


def write(folder, before, after, wall_time=0.0):
    made = Board(folder, before, wall_time)
    for row in after:
        made.write(row)
    made.close()


def test_a_resumed_run_appends_and_keeps_times(tmp_path):
    write(tmp_path, [], rows(1, 2, 3, 4))
    first = {path: path.read_bytes() for path in files(tmp_path)}
    before = tensorboard_shows(tmp_path)["train/loss"]
    write(tmp_path, rows(1, 2), rows(3, 4, 5, value=2.0))
    assert {path: path.read_bytes() for path in first} == first
    assert len(files(tmp_path)) == 2 and files(tmp_path)[0] in first
    after = tensorboard_shows(tmp_path)["train/loss"]
    assert after[:2] == before[:2]
    assert [(step, value) for step, value, _ in after[2:]] == [(3, 6), (4, 8), (5, 10)]


def test_nothing_to_repeat_makes_no_mark_and_nothing_to_do_no_file(tmp_path):
    write(tmp_path, [], rows(1, 2))
    write(tmp_path, rows(1, 2), [])
    assert len(files(tmp_path)) == 1
    write(tmp_path, rows(1, 2), rows(3))
    assert not any(event.HasField("session_log") for event in events(tmp_path))
    assert steps(tmp_path) == [1, 2, 3]


def test_rows_that_a_kill_cut_off_are_written_again_in_order(tmp_path):
    write(tmp_path, [], rows(1, 2, 3))
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:-70])  # within the row of step 3
    assert list(scalars(tmp_path))[-1] == (2, "eval/loss")
    write(tmp_path, rows(1, 2, 3), rows(4), wall_time=7.0)
    shown = tensorboard_shows(tmp_path)
    assert steps(tmp_path) == steps(tmp_path, "eval/loss") == [1, 2, 3, 4]
    assert [wall == 7.0 for _, _, wall in shown["train/loss"]] == [False, False, True, False]


def test_tensorboard_switched_on_later_has_the_past(tmp_path):
    write(tmp_path, rows(1, 2), rows(3), wall_time=5.0)
    assert [(step, wall == 5.0) for step, _, wall in tensorboard_shows(tmp_path)["train/loss"]] == [
        (1, True),
        (2, True),
        (3, False),
    ]


def test_a_new_file_is_the_last_by_name_though_the_clock_went_back(tmp_path, monkeypatch):
    write(tmp_path, [], rows(1))
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    write(tmp_path, rows(1), rows(2))
    write(tmp_path, rows(1, 2), rows(3))
    assert len(files(tmp_path)) == 3 and steps(tmp_path) == [1, 2, 3]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_step_is_shown_once_after_any_kills(tmp_path_factory, data):
    """A run is killed at any byte of its newest file, and resumes from an earlier checkpoint."""
    folder, done = tmp_path_factory.mktemp("board"), 0
    for value in range(1, data.draw(st.integers(2, 5))):
        to = data.draw(st.integers(done, done + 4))
        write(folder, rows(*range(1, done + 1)), rows(*range(done + 1, to + 1), value=value))
        if files(folder):
            newest = files(folder)[-1]
            content = newest.read_bytes()
            newest.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        done = data.draw(st.integers(0, to))
    write(folder, rows(*range(1, done + 1)), rows(done + 1))
    for name in ("train/loss", "eval/loss"):
        assert steps(folder, name) == list(range(1, done + 2))


@pytest.mark.slow
def test_tensorboard_itself_shows_the_run(tmp_path, one_device):
    """An open one sees what a resumed run adds, in its order; and a new one sees the same."""
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def seen(accumulator):
        accumulator.Reload()
        return [(x.step, x.wall_time, x.value) for x in accumulator.Scalars("train/loss")]

    def run(steps):
        config = tiny_config(steps=steps, log__every=1, log__tensorboard=True)
        config.optimizer.schedule.name = "constant"
        train(config, str(tmp_path), devices=one_device)

    run(6)  # checkpoints at 4 and 6
    open_ = EventAccumulator(str(tmp_path / "tensorboard"))
    before = seen(open_)
    assert [step for step, _, _ in before] == [1, 2, 3, 4, 5, 6]
    (tmp_path / "checkpoints" / "6").rename(tmp_path / "lost")
    run(8)
    after = seen(open_)
    assert [step for step, _, _ in after] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert after[:4] == before[:4]
    assert seen(EventAccumulator(str(tmp_path / "tensorboard"))) == after
    logged = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = {row["step"]: row["train/loss"] for row in map(json.loads, logged)}
    assert losses == {step: pytest.approx(value) for step, _, value in after}
