"""Masks and keypoints of instances: what regions learn, what is measured and what people get,
against torchvision and pycocotools.
"""

import contextlib
import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxconv.checks import check_config
from jaxconv.data.interface import describe
from jaxconv.data.objects import as_bits, of_bits
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_run
from jaxconv.layers import roi_align
from jaxconv.look.opened import open_run
from jaxconv.playground.shown import make_view, say_overlay
from jaxconv.predict import find_items, predict_items
from jaxconv.run import train
from jaxconv.tasks import needs_of, open_task
from jaxconv.tasks.detection import shown
from jaxconv.tasks.detection.instances import (
    all_keypoints,
    mask_measures,
    masks_of_regions,
    planes,
)
from jaxconv.tasks.detection.masks import paste_masks
from jaxconv.tasks.detection.outcomes import figures, matched, more_figures, more_matched
from jaxconv.tasks.detection.tables import write_detections
from jaxconv.train.workdir import read_metrics
from jaxconv.weights.export import export_workdir, load_exported, load_run
from tests.tasks.detection.given import SEEDS, TURNED, boxes_of
from tests.tasks.test_segmentation import small

SIZE = (40, 56)


def blobs(seed, count, size=SIZE):
    """`count` masks [count, *size]: ellipses, which may reach beyond the image."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    places, radii = random.uniform(0, size, (count, 2)), random.uniform(3, 16, (count, 2))
    return np.array(
        [
            ((y - p[0]) / r[0]) ** 2 + ((x - p[1]) / r[1]) ** 2 < 1
            for p, r in zip(places, radii, strict=True)
        ]
    ).reshape(count, *size)


@given(SEEDS, st.integers(0, 20), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_bits_hold_the_masks(seed, count, most):
    masks = np.random.default_rng(seed).random((count, 5, 7)) > 0.5
    bits = as_bits(masks, most)
    assert bits.shape == (5, 7, -(-most // 8)) and bits.dtype == np.uint8
    wanted = np.zeros((most, 5, 7), bool)
    wanted[:count] = masks[:most]
    np.testing.assert_array_equal(of_bits(bits, most), wanted)
    np.testing.assert_array_equal(np.moveaxis(planes(jnp.asarray(bits), most), -1, 0), wanted)
    for m in range(min(count, most)):
        np.testing.assert_array_equal(bits[..., m // 8] >> (m % 8) & 1, masks[m])


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize(("side", "aligned"), [(7, False), (28, False), (28, True)])
def test_regions_read_what_roi_align_reads(side, aligned):
    """Of its own object, also of regions beyond the image and of small ones."""
    masks, boxes = blobs(0, 11), boxes_of(0, 40, SIZE, smallest=0.5, largest=60)
    index = np.random.default_rng(0).integers(-1, 11, 40)
    found = jax.jit(masks_of_regions, static_argnums=(3, 4, 5))(
        jnp.asarray(as_bits(masks, 11)), jnp.asarray(boxes), jnp.asarray(index), side, 2, aligned
    )
    maps = jnp.asarray(np.moveaxis(masks, 0, -1), jnp.float32)
    read = np.asarray(roi_align(maps, jnp.asarray(boxes), side, 1.0, 2, aligned))
    wanted = read[np.arange(40), :, :, np.maximum(index, 0)]
    assert 0.05 < wanted.mean() < 0.95
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_aligned_masks_are_pasted_where_they_were():
    """What regions read, pasted again, is the mask; else it lies half a pixel up and left."""
    masks = blobs(5, 30)
    masks = masks[(masks.sum(axis=(1, 2)) > 60) & ~masks[:, [0, -1]].any(axis=(1, 2))]
    masks = masks[~masks[:, :, [0, -1]].any(axis=(1, 2))]
    places = [np.argwhere(mask) for mask in masks]
    boxes = np.array([[*p.min(axis=0), *(p.max(axis=0) + 1)] for p in places], np.float32)
    middle, overlap = {}, {}
    for aligned in (True, False):
        bits = jnp.asarray(as_bits(masks, len(masks)))
        read = masks_of_regions(bits, jnp.asarray(boxes), jnp.arange(len(boxes)), aligned=aligned)
        again = paste_masks(np.asarray(read), boxes, SIZE)
        shifts = [
            np.argwhere(one).mean(axis=0) - place.mean(axis=0)
            for one, place in zip(again, places, strict=True)
        ]
        middle[aligned] = np.mean(shifts, axis=0)
        both = (again & masks).sum(axis=(1, 2)) / (again | masks).sum(axis=(1, 2))
        overlap[aligned] = both.mean()
    assert len(masks) > 5 and np.abs(middle[True]).max() < 0.1 and middle[False].max() < -0.3
    assert overlap[True] > overlap[False] and overlap[True] > 0.9


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("at_once", [1, 1 << 21])
def test_overlaps_are_pycocotools_own(at_once, monkeypatch):
    """Of the masks that the host pastes; in rows one by one, or all at once."""
    monkeypatch.setattr("jaxconv.tasks.detection.instances._AT_ONCE", at_once)
    random, true = np.random.default_rng(0), blobs(1, 9)
    true[4] = False
    masks = np.clip(random.normal(0.5, 0.3, (20, 28, 28)), 0, 1).astype(np.float32)
    masks[:10] = np.clip(masks[:10] + 0.4, 0, 1)
    boxes = np.clip(boxes_of(2, 20, SIZE, smallest=2, largest=60), 0, [*SIZE, *SIZE])
    boxes = boxes.astype(np.float32)
    boxes[3], boxes[4] = 0, np.nan
    valid, crowd = np.arange(20) != 5, np.arange(9) % 3 == 0
    found = jax.jit(mask_measures)(masks, boxes, valid, as_bits(true, 9), crowd)
    pasted = paste_masks(masks, boxes, SIZE) & valid[:, None, None]
    some, others = (
        tools.encode(np.asfortranarray(np.moveaxis(m, 0, -1), np.uint8)) for m in (pasted, true)
    )
    np.testing.assert_array_equal(found["mask_areas"], tools.area(some))
    np.testing.assert_array_equal(found["true_mask_areas"], tools.area(others))
    wanted = tools.iou(some, others, crowd.astype(np.uint8).tolist())
    assert (wanted > 0.3).any() and not found["mask_overlaps"][5].any()
    np.testing.assert_allclose(found["mask_overlaps"], wanted, atol=1e-6)


@pytest.mark.usefixtures("strict_dtypes")
def test_keypoints_are_torchvision_s(torchvision):
    """Of small and large boxes, in several squares; where values differ, the place is the same."""
    import torch
    from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

    boxes = boxes_of(0, 24, (300, 400), smallest=0.3, largest=200)
    boxes[0] = (3, 5, 3, 5)
    maps = np.random.default_rng(0).normal(size=(24, 14, 14, 5)).astype(np.float32)
    found = jax.jit(all_keypoints)(maps, boxes, np.arange(24) != 7)
    points, scores = heatmaps_to_keypoints(
        torch.from_numpy(np.moveaxis(maps, -1, 1)), torch.from_numpy(boxes[:, TURNED])
    )
    points, scores = points.numpy(), scores.numpy()
    rows = np.arange(24) != 7
    np.testing.assert_allclose(found[rows, :, 2], scores[rows], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[rows, :, :2], points[rows][..., [1, 0]], atol=1e-3)
    assert not found[7].any()


def kept_of(seed, images=8, detections=9, truths=5, classes=3, joints=17):
    """Detections near the truth, crowds among it, with pasted masks and keypoints."""
    random = np.random.default_rng(seed)
    true = np.stack([blobs(seed * 100 + n, truths) for n in range(images)])
    rolled = np.stack([np.roll(true[n], random.integers(-2, 3, 2), (1, 2)) for n in range(images)])
    of = random.integers(0, truths, (images, detections))
    said = np.take_along_axis(rolled, of[..., None, None], axis=1)
    labels = random.integers(0, classes, (images, truths)).astype(np.int32)
    corners = random.uniform(0, 20, (images, truths, 2))
    boxes = np.concatenate([corners, corners + random.uniform(8, 30, corners.shape)], axis=-1)
    points = corners[:, :, None] + random.uniform(0, 20, (images, truths, joints, 2))
    seen = random.integers(0, 3, (images, truths, joints, 1))
    seen[:, 0] = 0
    near = np.take_along_axis(points, of[..., None, None], axis=1)
    near = near + random.normal(0, 1.0, near.shape)
    kept = {
        "boxes": np.take_along_axis(boxes, of[..., None], axis=1).astype(np.float32),
        "scores": random.uniform(0, 1, of.shape).astype(np.float32),
        "classes": np.take_along_axis(labels, of, axis=1),
        "valid": random.uniform(size=of.shape) < 0.9,
        "keypoints": np.concatenate([near, near[..., :1]], axis=-1).astype(np.float32),
        "true_boxes": boxes.astype(np.float32),
        "true_classes": labels,
        "true_valid": random.uniform(size=labels.shape) < 0.8,
        "true_crowd": random.uniform(size=labels.shape) < 0.2,
        "true_keypoints": np.concatenate([points, seen], axis=-1).astype(np.float32),
        "true_mask_areas": true.sum(axis=(2, 3)).astype(np.float32),
        "mask_areas": said.sum(axis=(2, 3)).astype(np.float32),
        "loss": random.uniform(size=images),
    }
    overlaps = np.zeros((images, detections, truths), np.float32)
    for n in range(images):
        some, others = (
            tools.encode(np.asfortranarray(np.moveaxis(m, 0, -1), np.uint8))
            for m in (said[n], true[n])
        )
        overlaps[n] = tools.iou(some, others, kept["true_crowd"][n].astype(np.uint8).tolist())
    return kept | {"mask_overlaps": overlaps}, said, true


def by_hand(kept, said, true, kind):
    """COCOeval's figures of segmentations or keypoints, from run lengths and numbers."""
    truths, found = [], []
    for prefix, masks, into in (("true_", true, truths), ("", said, found)):
        for n, m in np.argwhere(kept[f"{prefix}valid"]):
            points = kept[f"{prefix}keypoints"][n, m].astype(float)
            top, left, bottom, right = kept[f"{prefix}boxes"][n, m].astype(float)
            into.append(
                {
                    "id": len(into) + 1,
                    "image_id": n + 1,
                    "category_id": int(kept[f"{prefix}classes"][n, m]) + 1,
                    "segmentation": tools.encode(np.asfortranarray(masks[n, m], np.uint8)),
                    "area": float(masks[n, m].sum()),
                    "bbox": [left, top, right - left, bottom - top],
                    "keypoints": points[:, [1, 0, 2]].reshape(-1).tolist(),
                    "num_keypoints": int((points[:, 2] > 0).sum()),
                    "iscrowd": int(kept["true_crowd"][n, m]) if prefix else 0,
                    "score": 0 if prefix else float(kept["scores"][n, m]),
                }
            )
    images = [{"id": n + 1, "height": SIZE[0], "width": SIZE[1]} for n in range(len(said))]
    dataset = {"images": images, "categories": [{"id": k + 1} for k in range(3)]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth, results = COCO(), COCO()
        truth.dataset, results.dataset = (
            {**dataset, "annotations": truths},
            {**dataset, "annotations": found},
        )
        truth.createIndex()
        results.createIndex()
        evaluator = COCOeval(truth, results, kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_masks_and_keypoints_are_pycocotools_own(seed):
    kept, said, true = kept_of(seed)
    found = more_figures(more_matched(kept, 3))
    masks, points = (by_hand(kept, said, true, kind) for kind in ("segm", "keypoints"))
    wanted = {"mask_ap": masks[0], "mask_ap50": masks[1], "mask_ap75": masks[2]}
    wanted |= {"keypoint_ap": points[0], "keypoint_ap50": points[1]}
    assert found.keys() == wanted.keys()
    assert 0.1 < wanted["mask_ap"] < 0.9 and 0.1 < wanted["keypoint_ap"] < 0.95
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, abs=1e-9), key
    # Those of boxes are what they are without masks.
    alone = {name: value for name, value in kept.items() if "mask" not in name}
    found, wanted = figures(matched(kept, 3)), figures(matched(alone, 3))
    for key in ("ap", "ap50", "ap75", "ar"):  # an object's size is that of its mask
        assert found[key] == wanted[key]


def test_other_numbers_of_keypoints_have_equal_constants():
    kept, *_ = kept_of(0, joints=3)
    kept["keypoints"] = np.take_along_axis(
        kept["true_keypoints"], np.zeros((8, 9, 1, 1), int), axis=1
    )
    assert 0 <= more_figures(more_matched(kept, 3))["keypoint_ap"] <= 1


def test_run_lengths_are_pycocotools_own(monkeypatch):
    for mask in (*blobs(3, 6), np.ones(SIZE, bool), np.zeros(SIZE, bool)):
        found = shown.run_lengths(mask)
        np.testing.assert_array_equal(tools.decode(found), mask)
        with monkeypatch.context() as patched:
            patched.setattr(shown.importlib.util, "find_spec", lambda name: None)
            plain = shown.run_lengths(mask)
        assert sum(plain["counts"]) == mask.size
        assert tools.frPyObjects(plain, *SIZE)["counts"].decode() == found["counts"]


NAMES = ["head", "left_foot", "right_foot"]
RCNN = {
    "backbone": "text:conv3-8/2 bn relu conv3-8/2 bn relu conv3-8/2 bn relu",
    "maps": ("relu2", "relu3"),
    "anchor_sizes": ((8,), (16,), (32,)),
    "filters": 8,
    "before_nms": (50, 50),
    "after_nms": (20, 20),
    "rpn_samples": 16,
    "samples": 16,
    "detections": 6,
    "box_filters": 16,
    "mask_filters": 8,
    "keypoint_filters": 8,
}


def write_people(root, count=6, side=48, names=NAMES):
    """Images of two bright ellipses, each with a mask and three keypoints, in COCO's layout; in the
    last there is none.
    """
    random, annotations, images = np.random.default_rng(0), [], []
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    for n in range(count):
        masks = blobs(n, 2 if n + 1 < count else 0, (side, side))
        pixels = np.where(masks.any(axis=0), 200, 40) + random.integers(0, 30, (side, side))
        Image.fromarray(pixels.astype(np.uint8)).save(root / "train" / f"{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "height": side, "width": side})
        for mask in masks:
            run = tools.encode(np.asfortranarray(mask, np.uint8))
            left, top, width, height = tools.toBbox(run).tolist()
            feet = [left, top + height - 1, 1, left + width - 1, top + height - 1, 2]
            annotations.append(
                {
                    "id": 1 + len(annotations),
                    "image_id": n,
                    "category_id": 1,
                    "bbox": [left, top, width, height],
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [side, side], "counts": run["counts"].decode()},
                    "keypoints": [left + width / 2, top + 1, 2, *feet],
                    "num_keypoints": 3,
                }
            )
    kinds = [{"id": 1, "name": "person", "keypoints": names}]
    found = {"images": images, "annotations": annotations, "categories": kinds}
    (root / "annotations" / "person_keypoints_train.json").write_text(json.dumps(found))


def people_config(root, **kwargs):
    config = small("xo_detection", log__report="False", batch_size=2, steps=3)
    with config.unlocked():
        config.model.name = "maskrcnn_resnet50_fpn"
        config.model.kwargs = {**RCNN, "keypoints": 3, **kwargs}
        config.data.update(source=f"coco:{root}", image_size=0, canvas=(32, 32), max_boxes=5)
        config.data.train_split = config.data.eval_split = "train"
        config.eval.every = 3
    return config


@pytest.fixture(scope="module")
def people_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    write_people(root / "set")
    result = train(people_config(root / "set"), str(root / "run"), devices=jax.devices()[:1])
    return root, result


@pytest.mark.slow
def test_a_run_with_masks_and_keypoints(people_run):
    """Its losses, its figures, and the same by `evaluate`; little is kept of each image."""
    root, result = people_run
    keys = {"mask_ap", "mask_ap50", "mask_ap75", "keypoint_ap", "keypoint_ap50", "ap", "loss"}
    assert keys <= result.keys() and all(np.isfinite(result[key]) for key in keys)
    last = [row for row in read_metrics(root / "run") if "train/loss" in row][-1]
    parts = {key for key in last if key.endswith("_loss")}
    assert parts >= {"train/masks_loss", "train/keypoints_loss", "train/objectness_loss"}
    assert sum(last[key] for key in parts) == pytest.approx(last["train/loss"], rel=1e-4)
    found = evaluate_run(str(root / "run"), devices=jax.devices()[:1])
    for key in keys:
        assert found.result[key] == pytest.approx(result[key], abs=1e-6), key
    values = found.outcomes.values
    shapes = {"mask_overlaps": (6, 6, 5), "keypoints": (6, 6, 3, 3), "true_keypoints": (6, 5, 3, 3)}
    for name, shape in shapes.items():
        assert values[name].shape == shape
    assert "masks" not in values and "true_masks" not in values
    valid = values["true_valid"]
    assert (values["true_mask_areas"][valid] > 0).all()
    assert found.task.intervals(found.outcomes, 20).keys() >= keys


@pytest.mark.slow
def test_masks_in_the_file_for_coco_s_server(people_run, tmp_path):
    """On a canvas smaller than the files; pycocotools, by hand, finds masks over the objects.

    The network has hardly learned, so boxes and masks of what there is take the place of its own.
    """
    root, _ = people_run
    found = evaluate_run(str(root / "run"), devices=jax.devices()[:1], files=["detections"])
    values = {name: np.array(value) for name, value in found.outcomes.values.items()}
    assert values["masks"].shape == (6, 6, 28, 28) and "true_masks" not in values
    for name in ("boxes", "classes", "valid"):
        values[name][:, :5] = values[f"true_{name}"]
    values["valid"][:, 5], values["masks"] = False, np.ones((6, 6, 28, 28), np.float32)
    outcomes = dataclasses.replace(found.outcomes, values=values)
    write_detections(tmp_path / "found.json", dataclasses.replace(found, outcomes=outcomes))
    rows = json.loads((tmp_path / "found.json").read_text())
    assert len(rows) == values["valid"].sum() > 0
    for row in rows:
        assert row["segmentation"]["size"] == [48, 48] and len(row["keypoints"]) == 9
        inside = tools.decode(row["segmentation"]).astype(bool)
        left, top, width, height = row["bbox"]
        # Pasting rounds a box to whole pixels.
        assert (width - 2) * (height - 2) < inside.sum() < (width + 3) * (height + 3)
        assert inside[int(top + height / 2), int(left + width / 2)]
    truth = root / "set" / "annotations" / "person_keypoints_train.json"
    assert {row["category_id"] for row in rows} == {1}
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(truth))
        evaluator = COCOeval(known, known.loadRes(str(tmp_path / "found.json")), "segm")
        evaluator.evaluate(), evaluator.accumulate(), evaluator.summarize()
    assert evaluator.stats[1] > 0.9  # ellipses fill 0.785 of their boxes


@pytest.mark.slow
def test_masks_and_keypoints_of_files(people_run):
    """In the pixels of the file, from the run and from its export."""
    root, _ = people_run
    pixels = np.full((60, 40), 90, np.uint8)
    pixels[10:40, 10:30] = 200
    Image.fromarray(pixels).save(root / "image.png")
    export_workdir(str(root / "run"), str(root / "out"))
    items = find_items([str(root / "image.png")], "image")
    for network in (load_run(root / "run"), load_exported(str(root / "out"))):
        (one,) = predict_items(network, items)
        assert one.served["size"].tolist() == [60, 40]
        for said in one.said["objects"]:
            assert tools.decode(said["mask"]).shape == (60, 40) and len(said["keypoints"]) == 3
        served = {**one.served, "valid": np.ones(6, bool), "scores": np.full(6, 0.9, np.float32)}
        served["boxes"] = np.tile(np.float32([10, 5, 50, 35]), (6, 1))
        served["mask_boxes"] = served["boxes"]
        served["masks"] = np.ones((6, 28, 28), np.float32)
        objects = np.asarray(network.task.images(served)["objects"])
        assert objects.shape == (60, 40) and objects[30, 20] == 1 and objects[55, 20] == 0
        _, said = network.describe(served, 2)
        assert len(said["objects"]) == 2
        inside = tools.decode(said["objects"][0]["mask"])
        assert inside[30, 20] and not inside[55, 20]
        figure = network.task.draw([np.asarray(pixels)[..., None]], [{}], [served])
        assert any(len(axis.lines) for axis in figure.axes)


@pytest.mark.slow
def test_what_is_drawn_over_a_picture(people_run):
    """The playground's mask and keypoints; and the truth in pictures of examples."""
    root, _ = people_run
    network = load_run(root / "run")
    picture = np.full((32, 32, 1), 128, np.uint8)
    served = {name: np.array(value[0]) for name, value in network.serve(picture[None]).items()}
    opened = open_run(root / "run")
    settings = (opened.model, opened.preprocess, opened.variables, opened.input_shape)
    view = make_view(*settings, opened.class_names, opened.task)
    for name, value in view.call(opened.variables, picture)[0].items():
        np.testing.assert_allclose(value, served[name], atol=1e-3)
    served |= {"valid": np.arange(6) < 3, "scores": np.float32([0.9, 0.8, 0.1, 0, 0, 0])}
    served["boxes"][:3] = [[2, 2, 12, 12], [8, 8, 30, 30], [20, 0, 30, 10]]
    served["masks"] = np.ones_like(served["masks"])
    said, more = say_overlay(network.task, served)
    mask = np.frombuffer(more, np.uint8).reshape(32, 32)
    assert mask[5, 5] == 0 and mask[20, 20] == 0 and mask[25, 2] == 255
    assert np.shape(said["overlay"]["points"]) == (2, 3, 2) and said["overlay"]["lines"] == []
    source = open_source(
        people_config(root / "set").data, "train", needs=needs_of(people_config(root / "set"))
    )
    example = source.read(0)
    figure = network.task.draw_targets([example["image"]], [example])
    assert any(len(axis.lines) for axis in figure.axes)


def test_what_lacks_is_said(tmp_path):
    """Masks, keypoints, and another number of them; one line each."""
    write_people(tmp_path)
    config = people_config(tmp_path)
    needed = needs_of(config)
    assert needed[:5] == ("boxes", "classes", "valid", "masks", "keypoints")
    assert {"crowd", "filled"} <= set(needed)
    description = describe(open_source(config.data, "train", needs=needs_of(config)))
    open_task(config, description).check()
    for target in ("masks", "keypoints"):
        others = {k: v for k, v in description["targets"].items() if k != target}
        with pytest.raises(UserError, match=f"needs the target '{target}' for each example"):
            open_task(config, {**description, "targets": others}).check()
    more = people_config(tmp_path, keypoints=17)
    with pytest.raises(UserError, match="keypoints is 17, and the objects of .* have 3 keypoints"):
        open_task(more, description).check()
    alone = people_config(tmp_path, keypoints=0)
    assert "keypoints" not in needs_of(alone)
    keys = [figure.key for figure in open_task(alone, description).figures]
    assert "mask_ap" in keys and "keypoint_ap" not in keys
    with alone.unlocked():
        alone.optimizer.schedule.metric = "eval/keypoint_ap"
    with pytest.raises(UserError, match="config.optimizer.schedule.metric is 'eval/keypoint_ap'"):
        check_config(alone)
