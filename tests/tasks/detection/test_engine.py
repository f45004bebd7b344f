"""Detection on several devices, in parts, in bfloat16; and one program for all images of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.run import train
from jaxconv.tasks.detection.training import mean_count
from jaxconv.train.restore import restore_run
from jaxconv.train.workdir import read_metrics
from tests.data.test_canvas import write_rectangles
from tests.tasks.detection.test_canvas_runs import canvas_config
from tests.tasks.detection.test_task import config_of, masks_config, rcnn_config


def losses_of(config, folder, devices):
    """The logged losses of a run of two steps, which the detector has not yet settled in."""
    train(config, str(folder), devices=jax.devices()[:devices])
    records = [one for one in read_metrics(folder) if "train/loss" in one]
    return [{k: v for k, v in one.items() if k.endswith("loss")} for one in records]


def test_the_mean_count_is_of_all_devices():
    counted = jnp.arange(24).reshape(8, 3) % 5 == 0
    alone = mean_count(counted, None)
    parts = jax.pmap(lambda x: mean_count(x, "d"), "d")(counted.reshape(4, 2, 3))
    np.testing.assert_allclose(parts, np.full(4, alone), rtol=1e-6)
    nothing = jax.pmap(lambda x: mean_count(x, "d"), "d")(jnp.zeros((4, 2, 3), bool))
    np.testing.assert_allclose(nothing, np.full(4, 1 / 8))
    assert alone == counted.sum() / 8 and mean_count(counted & False, None) == 1 / 8


@pytest.mark.full
@pytest.mark.parametrize(
    "make",
    [config_of, *(pytest.param(m, marks=pytest.mark.full) for m in (rcnn_config, masks_config))],
)
def test_the_same_losses_on_any_devices(make, tmp_path):
    """Of the first two steps: divisors are the whole batch's, and samples are of each image."""
    found = {}
    changes = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.01, "steps": 2}
    changes |= {"batch_size": 8, "augment__flip": "True", "optimizer__schedule__warmup_steps": 0}
    for name, way, devices in (
        ("one", "jit", 1),
        ("jit", "jit", 4),
        ("pmap", "pmap", 4),
        ("fsdp", "fsdp", 4),
    ):
        config = make(parallel=way, **changes)
        found[name] = losses_of(config, tmp_path / name, devices)
    assert len(found["one"]) == 2
    for name in ("jit", "pmap", "fsdp"):
        for one, other in zip(found["one"], found[name], strict=True):
            assert one.keys() == other.keys()
            for key, value in one.items():
                assert other[key] == pytest.approx(value, rel=1e-2), (name, key)


@pytest.mark.full
def test_one_program_for_images_of_any_shape(tmp_path, one_device):
    """Photographs of many shapes on a canvas: a longer run compiles as many programs."""
    root = write_rectangles(tmp_path / "set")
    compiled: list[str] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    counts = {}
    for steps in (3, 7):
        # Both runs start without a program.
        jax.clear_caches()
        compiled.clear()
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            config = canvas_config(root, data__resident_limit=0, steps=steps, batch_size=2)
            train(config, str(tmp_path / str(steps)), devices=one_device)
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
        counts[steps] = len(compiled)
    assert 0 < counts[3] == counts[7]


@pytest.mark.full
@pytest.mark.slow
def test_in_parts_and_in_bfloat16(tmp_path, one_device):
    """Each part has its own divisors; the parameters stay float32."""
    plain = losses_of(config_of(batch_size=8), tmp_path / "plain", 1)
    parts = losses_of(config_of(batch_size=8, accumulate=2), tmp_path / "parts", 1)
    half = losses_of(config_of(batch_size=8, model__dtype="bfloat16"), tmp_path / "half", 1)
    for other in (parts, half):
        assert other[0]["train/loss"] == pytest.approx(plain[0]["train/loss"], rel=0.1)
        assert all(np.isfinite(value) for one in other for value in one.values())
    params = restore_run(tmp_path / "half")[0].params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
