"""Checkpoints: the latest and the best are kept, damaged ones are skipped."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.errors import UserError
from jaxconv.train.checkpoint import Checkpoints
from jaxconv.train.parallel import make_parallel
from jaxconv.train.state import Plateau, TrainState


def state_at(step):
    plateau = Plateau(jnp.ones(()), jnp.array(-jnp.inf), jnp.zeros((), jnp.int32))
    params = {"kernel": jnp.arange(50_000.0) + step, "bias": jnp.zeros(3)}
    return TrainState(
        jnp.array(step, jnp.int32),
        params,
        {},
        {"trace": jax.tree.map(lambda p: 2 * p, params)},
        plateau,
    )


TARGETS = make_parallel("jit", jax.devices()[:1]).targets(state_at(0))


# The metric that decides the best, unless a test sets another.
TOP1 = {"metrics": ("eval/top1",), "higher": True}


def save_all(folder, values, **settings):
    checkpoints = Checkpoints(folder, **(TOP1 | settings))
    for step, value in values.items():
        checkpoints.save(
            step,
            state_at(step),
            {"note": step},
            {} if value is None else {"eval/top1": value, "eval/loss": value},
        )
    checkpoints.wait()
    return checkpoints


def test_state_and_host_part_come_back(tmp_path):
    save_all(tmp_path / "c", {3: 0.5, 7: None}).close()
    state, host = Checkpoints(tmp_path / "c").restore(TARGETS)
    assert int(state.step) == 7 and host["note"] == 7
    jax.tree.map(np.testing.assert_array_equal, state, state_at(7))
    assert int(Checkpoints(tmp_path / "c").restore(TARGETS, 3)[0].step) == 3
    assert Checkpoints(tmp_path / "empty").restore(TARGETS) is None
    with pytest.raises(UserError, match="has no checkpoint of step 5; it has 3, 7"):
        Checkpoints(tmp_path / "c").restore(TARGETS, 5)


@pytest.mark.parametrize(
    ("settings", "kept", "best"),
    [
        ({"keep": 2, "keep_best": 1}, [2, 5, 6], 2),
        ({"keep": 1, "keep_best": 2}, [2, 3, 6], 2),
        ({"keep": 1, "keep_best": 0}, [6], None),
        ({"keep": 1, "keep_best": 1, "metrics": ("eval/loss",), "higher": False}, [1, 6], 1),
    ],
)
def test_latest_and_best_are_kept(tmp_path, settings, kept, best):
    checkpoints = save_all(
        tmp_path / "c", {1: 0.1, 2: 0.9, 3: 0.8, 4: None, 5: 0.2, 6: None}, **settings
    )
    assert checkpoints.steps() == kept
    metric = (TOP1 | settings)["metrics"][0]
    assert checkpoints.best_step(metric) == best
    checkpoints.close()
    assert (
        Checkpoints(tmp_path / "c", **(TOP1 | settings), read_only=True).best_step(metric) == best
    )


def damage_data(folder):
    file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_off_all(folder):
    for file in folder.glob("state/**/d/*"):
        file.write_bytes(file.read_bytes()[:10])


def cut_off(folder):
    file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:100])


def lose_metadata(folder):
    (folder / "state" / "_METADATA").unlink()


def lose_host(folder):
    (folder / "host" / "metadata").write_text("{")


def change_fingerprint(folder):
    file = folder / "host" / "metadata"
    file.write_text(file.read_text().replace('"fingerprint": ', '"fingerprint": 1'))


@pytest.mark.parametrize(
    "damage", [damage_data, cut_off, cut_off_all, lose_metadata, lose_host, change_fingerprint]
)
def test_damaged_checkpoint_is_passed_over(tmp_path, damage, caplog):
    save_all(tmp_path / "c", {3: 0.5, 7: 0.6}, keep=5).close()
    damage(tmp_path / "c" / "7")
    checkpoints = Checkpoints(tmp_path / "c", keep=5, **TOP1)
    with caplog.at_level(logging.WARNING, logger="jaxconv"):
        state, _ = checkpoints.restore(TARGETS)
    assert int(state.step) == 3
    assert (
        "checkpoint of step 7 is damaged" in caplog.text and "resuming from step 3" in caplog.text
    )
    # The run reaches step 7 again and rewrites it; the damaged checkpoint is kept aside.
    checkpoints.save(7, state_at(7), {"note": "again"}, {})
    checkpoints.wait()
    assert checkpoints.restore(TARGETS)[1]["note"] == "again"
    assert (tmp_path / "damaged" / "7").is_dir()


@pytest.mark.parametrize("step", [3, 7])
@pytest.mark.parametrize("content", ["", "null", "{"])
def test_damaged_metrics_lose_the_metrics_alone(tmp_path, step, content, caplog):
    save_all(tmp_path / "c", {3: 0.5, 7: 0.6}, keep=5).close()
    (tmp_path / "c" / str(step) / "metrics" / "metrics").write_text(content)
    assert Checkpoints(tmp_path / "c", **TOP1, read_only=True).best_step("eval/top1") == 10 - step
    with caplog.at_level(logging.WARNING, logger="jaxconv"):
        checkpoints = Checkpoints(tmp_path / "c", keep=5, **TOP1)
    assert f"metrics of the checkpoint of step {step} are damaged" in caplog.text
    assert (
        int(checkpoints.restore(TARGETS)[0].step) == 7
        and checkpoints.best_step("eval/top1") == 10 - step
    )


def test_nothing_is_touched_where_none_can_be_read(tmp_path):
    save_all(tmp_path / "c", {3: 0.5}).close()
    cut_off(tmp_path / "c" / "3")
    with pytest.raises(UserError, match="no checkpoint can be read; the error of step 3"):
        Checkpoints(tmp_path / "c").restore(TARGETS)
    assert (tmp_path / "c" / "3").is_dir()


def test_host_part_may_change_meanwhile(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=20)
    rows = []
    for n in range(10):
        rows.append(n)
        checkpoints.save(n, state_at(n), {"rows": rows}, {})
        rows.append(n)
    checkpoints.wait()
    for n in range(10):
        assert len(checkpoints.restore(TARGETS, n)[1]["rows"]) == 2 * n + 1


def test_half_written_checkpoint_is_not_seen(tmp_path):
    save_all(tmp_path / "c", {3: 0.5}).close()
    (tmp_path / "c" / "7.orbax-checkpoint-tmp").mkdir()
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.steps() == [3]
    assert int(checkpoints.restore(TARGETS)[0].step) == 3


def test_saved_state_may_be_donated(tmp_path):
    """The write continues in the background while the next step overwrites the state's memory."""
    step = jax.jit(
        lambda s: s.replace(params=jax.tree.map(lambda p: p * 0 - 1, s.params)), donate_argnums=0
    )
    checkpoints = Checkpoints(tmp_path / "c", keep=20)
    for n in range(10):
        state = state_at(n)
        checkpoints.save(n, state, {}, {})
        step(state)
    checkpoints.wait()
    for n in range(10):
        np.testing.assert_array_equal(
            checkpoints.restore(TARGETS, n)[0].params["kernel"], state_at(n).params["kernel"]
        )
