"""Detection through the engine: what is refused, COCO's figures, runs, and what people see."""

import contextlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxconv.config import load_config, set_key
from jaxconv.data.interface import describe
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_run
from jaxconv.playground.shown import say_overlay
from jaxconv.run import train
from jaxconv.tasks import needs_of, open_task
from jaxconv.tasks.detection.outcomes import (
    Outcomes,
    as_coco,
    class_lines,
    figures,
    intervals,
    matched,
)
from jaxconv.tasks.detection.truth import crowds, learned, present
from jaxconv.train.restore import restore_run
from jaxconv.train.workdir import read_metrics
from tests.conftest import ROOT, command, rarely
from tests.data.test_annotations import data
from tests.tasks.test_segmentation import small

RCNN = {
    "backbone": "text:conv3-8/2 bn relu conv3-8/2 bn relu conv3-8/2 bn relu",
    "maps": ("relu2", "relu3"),
    "anchor_sizes": ((8,), (16,), (32,)),
    "filters": 8,
    "before_nms": (50, 50),
    "after_nms": (20, 20),
    "rpn_samples": 16,
    "samples": 8,
}


def config_of(**changes):
    return small("xo_detection", log__report="False", **changes)


def rcnn_config(**changes):
    config = config_of(**changes)
    with config.unlocked():
        config.model.name, config.model.kwargs = "fasterrcnn_resnet50_fpn", dict(RCNN)
    return config


def masks_config(**changes):
    config = load_config(f"{ROOT}/experiments/xo_detection.py:masks_small", ["log.progress=False"])
    for key, value in {"log.tensorboard": "False", "log.report": "False", **changes}.items():
        set_key(config, key.replace("__", "."), str(value))
    return config


def task_of(config):
    source = open_source(config.data, "test", needs=needs_of(config))
    return open_task(config, describe(source)), source


def random_kept(seed, images=12, detections=9, truths=5, classes=3):
    """Detections of which many are near the truth, crowds among it, and images without any."""
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 40, (images, truths, 2))
    boxes = np.concatenate([corners, corners + random.uniform(4, 30, corners.shape)], axis=-1)
    labels = random.integers(0, classes, (images, truths)).astype(np.int32)
    of = random.integers(0, truths, (images, detections))
    near = np.take_along_axis(boxes, of[..., None], axis=1)
    same = np.take_along_axis(labels, of, axis=1)
    other = random.integers(0, classes, same.shape)
    return {
        "boxes": (near + random.normal(0, 1.5, near.shape)).astype(np.float32),
        "scores": random.uniform(0, 1, same.shape).astype(np.float32),
        "classes": np.where(random.uniform(size=same.shape) < 0.8, same, other).astype(np.int32),
        "valid": random.uniform(size=same.shape) < 0.8,
        "true_boxes": boxes.astype(np.float32),
        "true_classes": labels,
        "true_valid": random.uniform(size=labels.shape) < 0.6,
        "true_crowd": random.uniform(size=labels.shape) < 0.2,
        "loss": random.uniform(size=images),
    }


def by_hand(kept, classes):
    """What pycocotools prints: AP, AP50, AP75 and AR with 100 detections."""
    dataset, found = as_coco(kept, classes)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(("ap", "ap50", "ap75", "ar"), evaluator.stats[[0, 1, 2, 8]], strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_pycocotools_own(seed):
    """A class without objects does not count; crowds neither help nor harm."""
    kept = random_kept(seed)
    wanted = by_hand(kept, 4)
    assert 0.05 < wanted["ap"] < 0.95
    found = figures(matched(kept, 4))
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, abs=1e-12), key


def test_figures_of_photographs_are_pycocotools_own(coco256):
    """Of COCO's own file, with detections near the truth; the rows come from the source."""
    path, count = coco256 / "val2017" / "boxes.json", 24
    config = data(f"coco:{coco256}", resident_limit=0, coco__file="{split}/boxes.json")
    source = open_source(config, "val2017", needs=("boxes", "classes", "valid", "crowd"))
    truths = [source.records[i][1] for i in range(count)]
    kept = {f"true_{name}": np.stack([one[name] for one in truths]) for name in truths[0]}
    random = np.random.default_rng(0)
    shape = kept["true_valid"].shape
    kept["boxes"] = kept["true_boxes"] + random.normal(0, 4, (*shape, 4)).astype(np.float32)
    kept |= {"scores": random.uniform(size=shape), "classes": kept["true_classes"]}
    kept["valid"] = kept["true_valid"] & (random.uniform(size=shape) < 0.7)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        ids = {one["file_name"].rpartition("/")[2]: one["id"] for one in truth.dataset["images"]}
        categories = {one["name"]: one["id"] for one in truth.dataset["categories"]}
        images = [ids[source.name(i).rpartition("/")[2]] for i in range(count)]
        rows = [
            {
                "image_id": images[n],
                "category_id": categories[source.class_names[kept["classes"][n, m]]],
                "bbox": [left, top, right - left, bottom - top],
                "score": kept["scores"][n, m],
            }
            for n, m in np.argwhere(kept["valid"])
            for top, left, bottom, right in [kept["boxes"][n, m].astype(float)]
        ]
        evaluator = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluator.params.imgIds = images
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    found = figures(matched(kept, 80))
    for key, n in (("ap", 0), ("ap50", 1), ("ap75", 2), ("ar", 8)):
        assert found[key] == pytest.approx(evaluator.stats[n], abs=2e-3), key
    assert 0.1 < found["ap"] < 0.9


def test_as_coco_has_coco_s_boxes():
    kept = random_kept(0, images=1, detections=1, truths=1)
    kept["true_boxes"][:] = [3, 5, 10, 25]
    kept["true_valid"][:] = kept["valid"][:] = True
    dataset, (one,) = as_coco(kept, 3)
    assert dataset["annotations"][0]["bbox"] == [5, 3, 20, 7]
    assert dataset["annotations"][0]["area"] == 140
    assert one["category_id"] == kept["classes"][0, 0] + 1


def test_images_that_count_twice_are_images_that_are_there_twice():
    kept, times = random_kept(1), np.array([2, 0, 1, 3, 1, 1, 0, 1, 2, 1, 0, 0])
    repeated = {name: np.repeat(value, times, axis=0) for name, value in kept.items()}
    found = figures(matched(kept, 3), times.astype(float))
    for key, value in figures(matched(repeated, 3)).items():
        assert found[key] == pytest.approx(value, abs=1e-12), key


def test_intervals_hold_the_figures_and_the_table_has_each_class():
    kept = random_kept(2, images=40)
    outcomes = Outcomes(kept, ("a", "b", "c", "none"), np.arange(40), matched(kept, 4))
    between = intervals(outcomes, 50)
    for key, value in figures(outcomes.matches).items():
        low, high = between[key]
        assert low < value < high
    head, *rows = class_lines(outcomes)
    assert head.split() == ["class", "objects", "AP", "AP50", "AP75", "AR"]
    assert sorted(row.split()[0] for row in rows) == ["a", "b", "c"]


def test_without_an_object_or_a_detection_all_is_0():
    kept = random_kept(3)
    nothing = {"ap": 0.0, "ap50": 0.0, "ap75": 0.0, "ar": 0.0}
    assert figures(matched({**kept, "true_valid": kept["true_valid"] & False}, 3)) == nothing
    found = figures(matched({**kept, "valid": kept["valid"] & False}, 3))
    assert nothing.keys() < found.keys() and not any(found.values())


def test_crowds_and_slivers_are_not_learned():
    batch = {
        "boxes": jnp.array([[[0.0, 0, 9, 9], [0, 0, 9, 9], [0, 4, 0.5, 9], [0, 0, 0, 0]]]),
        "classes": jnp.zeros((1, 4), jnp.int32),
        "valid": jnp.array([[True, True, True, False]]),
        "crowd": jnp.array([[False, True, False, False]]),
    }
    assert present(batch).tolist() == [[True, True, False, False]]
    assert learned(batch)["valid"].tolist() == [[True, False, False, False]]
    del batch["crowd"]
    assert not crowds(batch).any()


def test_scenes_for_a_detector_have_two_classes():
    task, source = task_of(config_of())
    assert task.class_names == ("o", "x") and "segmentation" not in source.targets
    valid, classes = source.arrays["valid"], source.arrays["classes"]
    assert set(classes[valid]) == {0, 1}
    whole = open_source(config_of().data, "test")
    np.testing.assert_array_equal(whole.arrays["classes"][valid] - 1, classes[valid])


@pytest.mark.parametrize(
    "make", rarely([config_of, masks_config, rcnn_config], {masks_config, rcnn_config})
)
def test_images_without_objects_give_finite_losses(make):
    task, source = task_of(make())
    batch = {name: jnp.asarray(value[:3]) for name, value in source.arrays.items()}
    batch |= {"image": jnp.asarray(source.images[:3], jnp.float32) / 255}
    batch |= {
        "valid": jnp.zeros_like(batch["valid"]),
        "random_key": jax.random.split(jax.random.key(0), 3),
    }
    model = task.model()
    variables = model.init(jax.random.key(0), batch["image"], train=False)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        outputs, _ = model.apply(
            {**variables, "params": params},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
            **task.call(batch),
        )
        return jnp.mean(task.loss(outputs, batch))

    value, gradient = loss(variables["params"])
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.full
def test_the_loss_of_an_image_does_not_depend_on_its_batch():
    task, source = task_of(config_of())
    batch = {name: jnp.asarray(value[:4]) for name, value in source.arrays.items()}
    batch |= {"image": jnp.asarray(source.images[:4], jnp.float32) / 255}
    model = task.model()
    variables = model.init(jax.random.key(0), batch["image"], train=False)
    outputs = model.apply(variables, batch["image"], train=False)
    alone = jax.tree.map(lambda x: x[2:3], (outputs, batch))
    np.testing.assert_allclose(
        task.eval_loss(outputs, batch)[2], task.eval_loss(*alone)[0], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__name": "resnet18"}, "is no detector; use fcos_resnet50_fpn, retinanet"),
        ({"model__name": "keypointrcnn_resnet50_fpn"}, "needs the target 'keypoints'"),
        ({"augment__mixup": 0.2}, "the task detection cannot mix its targets"),
        ({"augment__cutmix": 1.0}, "the task detection cannot mix its targets"),
        ({"loss__label_smoothing": 0.1}, "the task detection does not use it"),
        ({"data__source": "xo"}, "needs the target 'boxes'"),
    ],
)
def test_what_does_not_fit_is_said_before_training(changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        train(config_of(**changes), str(tmp_path / "run"))


def test_ensembles_of_r_cnn_are_refused(tmp_path):
    with pytest.raises(UserError, match="look at different regions, which have no mean"):
        train(rcnn_config(ensemble__size=2), str(tmp_path / "run"))


def test_another_size_in_evaluation_is_refused():
    config = config_of(data__eval_image_size=48)
    description = describe(open_source(config_of().data, "test", needs=needs_of(config)))
    with pytest.raises(UserError, match="eval_image_size is 48, and a detector is evaluated on"):
        open_task(config, description).model()


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [config_of, *(pytest.param(m, marks=pytest.mark.full) for m in (masks_config, rcnn_config))],
)
def test_resumed_is_one_go_and_evaluation_says_the_same(make, tmp_path, one_device):
    constant = {"optimizer__schedule__name": "constant", "optimizer__schedule__warmup_steps": 0}
    config = make(checkpoint__every=2, **constant)
    result = train(config, str(tmp_path / "whole"), devices=one_device)
    for steps in (2, 4):
        with config.unlocked():
            config.steps = steps
        train(config, str(tmp_path / "parts"), devices=one_device)
    states = [restore_run(tmp_path / name)[0] for name in ("whole", "parts")]
    for one, other in zip(*(jax.tree.leaves(s.params) for s in states), strict=True):
        np.testing.assert_array_equal(one, other)
    records = read_metrics(tmp_path / "whole")
    last = next(record for record in reversed(records) if "train/loss" in record)
    parts = [value for key, value in last.items() if key.endswith("_loss")]
    assert len(parts) == {config_of: 3, rcnn_config: 4, masks_config: 5}[make]
    assert sum(parts) == pytest.approx(last["train/loss"], rel=1e-4)
    found = evaluate_run(str(tmp_path / "whole"), devices=one_device)
    assert found.result["examples"] == 12 == len(found.outcomes)
    keys = ("mask_ap", "mask_ap75") if make is masks_config else ()
    for key in ("loss", "ap", "ap50", "ar", *keys):
        assert found.result[key] == pytest.approx(result[key], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [config_of, pytest.param(masks_config, marks=pytest.mark.full)])
def test_every_image_once_on_several_devices(make, tmp_path):
    """12 images on 4 devices; a padding example is no image."""
    found = []
    for devices in (1, 4):
        config = make(batch_size=8, eval__batch_size=8, parallel="jit")
        folder = str(tmp_path / str(devices))
        train(config, folder, devices=jax.devices()[:devices])
        found.append(evaluate_run(folder, devices=jax.devices()[:devices]))
    one, four = (each.outcomes.values for each in found)
    for name in one.keys() & {"true_boxes", "true_mask_areas"}:
        np.testing.assert_array_equal(one[name], four[name])
    assert found[1].result["examples"] == 12
    assert found[1].result["loss"] == pytest.approx(found[0].result["loss"], rel=2e-3)


@pytest.mark.full
def test_a_run_on_photographs(coco256, tmp_path, one_device):
    config = config_of(batch_size=2)
    with config.unlocked():
        config.data.update(
            source=f"coco:{coco256}", image_size=64, train_split="train2017", crop_ratio=1.0
        )
        config.data.eval_split, config.data.coco.file = "val2017", "{split}/boxes.json"
        config.data.resident_limit, config.eval.every = 0, 4
    result = train(config, str(tmp_path / "run"), devices=one_device)
    assert result["examples"] == 128 and np.isfinite(result["loss"])


def served_of(*objects):
    """What `serve` returns of (box, score, class) each, and one row that does not count."""
    boxes, scores, classes = zip(*objects, ([0, 0, 0, 0], 0.0, 0), strict=True)
    return {
        "boxes": np.array(boxes, np.float32),
        "scores": np.array(scores, np.float32),
        "classes": np.array(classes, np.int32),
        "valid": np.arange(len(boxes)) < len(objects),
    }


def test_what_people_see():
    """Of two objects, one is too uncertain for a picture; the other has its name and its box."""
    task, source = task_of(config_of())
    served = served_of(([1, 2, 11, 22], 0.75, 1), ([3, 3, 9, 9], 0.25, 0))
    said, _ = say_overlay(task, served)
    (box,) = said["overlay"]["boxes"]
    assert (box["box"], box["class"], box["score"]) == ([1, 2, 11, 22], "x", 0.75)
    assert said["overlay"]["said"] == "1 x" and said["best"] == "x"
    assert [vote["probability"] for vote in said["votes"]] == [0.25, 0.75]
    lines, found = task.describe(served, task.description, 5)
    assert lines == ["   75.00 %  x  box 1 2 11 22", "   25.00 %  o  box 3 3 9 9"]
    assert found["objects"][0] == {"class": "x", "score": 0.75, "box": [1.0, 2.0, 11.0, 22.0]}
    assert task.describe(served_of(), task.description, 5) == (["  nothing"], {"objects": []})
    example = source.read(0)
    figure = task.draw([example["image"]], [example], [served], "title")
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert "x 75 %" in texts and "o 25 %" not in texts
    frames = [p for axis in figure.axes for p in axis.patches if p.get_linestyle() == "--"]
    assert len(frames) == example["valid"].sum()
    figure = task.draw_targets([example["image"]], [example])
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert task.caption_of(example) in texts


@pytest.mark.full
@pytest.mark.slow
def test_members_of_an_ensemble_and_their_mean(tmp_path, one_device):
    config = config_of(ensemble__size=2)
    result = train(config, str(tmp_path / "run"), devices=one_device)
    assert len(result["members"]) == 2 and np.isfinite(result["ensemble_loss"])
    assert 0 <= result["ensemble_ap"] <= 1


@pytest.mark.full
def test_from_command_to_page(tmp_path):
    """Trains with a page, evaluates with intervals and a table, predicts boxes of the file."""
    run = tmp_path / "run"
    flags = ("--config=experiments/xo_detection.py:small", f"--workdir={run}")
    process = command("train", *flags, "--config.log.tensorboard=False")
    assert process.returncode == 0, process.stderr
    assert "Predictions" in (run / "report.html").read_text()
    for title in ("Precision", "Mistakes", "Confusions", "Worst"):
        assert f">{title}" in (run / "report.html").read_text()
    assert "This section could not be made" not in (run / "report.html").read_text()
    files = (f"--detections={tmp_path / 'found.json'}", f"--confusion={tmp_path / 'found.csv'}")
    process = command("evaluate", f"--workdir={run}", "--per_class", "--views=flip", *files)
    assert process.returncode == 0, process.stderr
    said = json.loads(process.stdout.splitlines()[-1])
    assert {"ap", "ap50", "ap75", "ar", "loss", "ar10", "voc07"} <= said["intervals"].keys()
    assert isinstance(json.loads((tmp_path / "found.json").read_text()), list)
    header, *rows = (tmp_path / "found.csv").read_text().splitlines()
    assert header.split(",")[1:] == ["o", "x", "background"] and len(rows) == 3
    assert "objects" in process.stdout + process.stderr
    picture = tmp_path / "mistakes.png"
    process = command("look", "mistakes", f"--workdir={run}", f"--out={picture}")
    assert process.returncode == 0 and picture.is_file(), process.stderr
    Image.fromarray(np.full((40, 64), 128, np.uint8)).save(tmp_path / "image.png")
    process = command("export", f"--workdir={run}", f"--out={tmp_path / 'exported'}")
    assert process.returncode == 0, process.stderr
    out = tmp_path / "pictures"
    process = command(
        "predict", f"--workdir={run}", str(tmp_path / "image.png"), "--json", f"--out={out}"
    )
    assert process.returncode == 0, process.stderr
    assert isinstance(json.loads(process.stdout.splitlines()[-1])["objects"], list)
    assert (out / "image.png").is_file()
