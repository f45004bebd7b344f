"""Detectors on a canvas: what counts as padding, in training, evaluation and `predict`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import jaxconv
from jaxconv.data.canvas import fit_size
from jaxconv.evaluation.evaluation import evaluate_run
from jaxconv.predict import find_items, predict_items
from jaxconv.run import train
from jaxconv.tasks import open_task
from jaxconv.train.workdir import saved_data
from jaxconv.weights.export import export_workdir, load_exported
from tests.data.test_canvas import SIZES, write_rectangles
from tests.tasks.detection.test_task import RCNN, config_of


def canvas_config(root, **changes):
    """A tiny FCOS on a canvas of photographs with one red rectangle each."""
    config = config_of(**changes)
    config.data.source = f"coco:{root}"
    config.data.eval_split, config.data.canvas, config.data.max_boxes = "train", (48, 64), 3
    config.augment.flip = True
    return config


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory):
    return write_rectangles(tmp_path_factory.mktemp("rectangles"))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, pytest.param(10**9, marks=pytest.mark.full)])
def test_a_run_on_a_canvas(rectangles, tmp_path, limit):
    """Streamed and resident, on four devices; evaluated on one; predicted in the file's pixels."""
    config = canvas_config(rectangles, data__resident_limit=limit, augment__mosaic=0.5)
    train(config, str(tmp_path / "run"))
    evaluation = evaluate_run(str(tmp_path / "run"), devices=jax.devices()[:1])
    kept = evaluation.outcomes.values
    assert kept["size"].tolist() == [list(size) for size in SIZES]
    assert kept["seen"].tolist() == [list(fit_size(*size, (48, 64))) for size in SIZES]
    # No detection lies in the padding, nor does the truth.
    for name in ("boxes", "true_boxes"):
        assert (kept[name] <= np.tile(kept["seen"], 2)[:, None]).all()
    assert kept["valid"].any()
    shown = []
    files = [rectangles / "train" / f"{n}.png" for n in range(len(SIZES))]
    for n, said in enumerate(jaxconv.predict(str(tmp_path / "run"), [str(f) for f in files])):
        assert (said.served["boxes"] <= np.array(SIZES[n] * 2)).all()
        # The strongest detection is that of evaluation, in the pixels of the file.
        scale = np.array(SIZES[n]) / kept["seen"][n]
        own = kept["boxes"][n, 0] * np.tile(scale, 2)
        np.testing.assert_allclose(said.served["boxes"][0], own, atol=0.05)
        shown.append(said.served["boxes"])
    if not limit:
        return
    exported = export_workdir(str(tmp_path / "run"), str(tmp_path / "out"))
    assert [*exported["platforms"]] == ["cpu", "cuda", "tpu"]
    items = find_items([str(file) for file in files], "image")
    for boxes, said in zip(
        shown, predict_items(load_exported(str(tmp_path / "out")), items), strict=True
    ):
        np.testing.assert_allclose(said.served["boxes"], boxes, atol=1e-3)


@pytest.mark.full
def test_regions_do_not_reach_into_the_padding(rectangles, tmp_path):
    """Of an R-CNN: proposals in training, and detections, end where the image does."""
    config = canvas_config(rectangles)
    with config.unlocked():
        config.model.name, config.model.kwargs = "fasterrcnn_resnet50_fpn", ConfigDict(RCNN)
    train(config, str(tmp_path / "run"))
    task = open_task(config, saved_data(tmp_path / "run"))
    seen = jnp.array([[20.0, 64.0], [48.0, 30.0]])
    batch = {
        "image": jnp.zeros((2, 48, 64, 3)), "boxes": jnp.zeros((2, 3, 4)), "seen": seen,
        "classes": jnp.zeros((2, 3), jnp.int32), "valid": jnp.zeros((2, 3), bool),
    }  # fmt: skip
    given = task.call(batch | {"random_key": jax.random.split(jax.random.key(0), 2)})
    variables = task.model().init(jax.random.key(1), batch["image"], train=False)
    outputs, _ = task.model().apply(
        variables, batch["image"], train=True, mutable=["batch_stats"], **given
    )
    measured = task.eval_call(batch)
    proposed = task.model().apply(variables, batch["image"], train=False, **measured)["regions"]
    assert not task.eval_call({"image": batch["image"]})
    for boxes in (
        proposed["boxes"],
        outputs["regions"]["boxes"],
        task.found(outputs, batch)["boxes"],
    ):
        assert (np.asarray(boxes) <= np.tile(seen, 2)[:, None]).all()
    kept = evaluate_run(str(tmp_path / "run")).outcomes.values
    assert (kept["boxes"] <= np.tile(kept["seen"], 2)[:, None]).all()
