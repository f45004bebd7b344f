"""Figures, mistakes and confusions of detectors, against pycocotools and slow references."""

import contextlib
import dataclasses
import io
import json
import shutil
import types

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.tasks.confused import most_confused
from jaxconv.tasks.detection.matches import as_coco, matched, overlaps, voc_matched
from jaxconv.tasks.detection.mistakes import KINDS, mistakes, pairs
from jaxconv.tasks.detection.outcomes import (
    Outcomes,
    all_figures,
    class_rows,
    intervals,
    remark_rows,
    worst,
)
from jaxconv.tasks.detection.precision import figures, of_classes, voc_figures
from jaxconv.tasks.detection.tables import write_detections
from tests.data.test_annotations import data
from tests.tasks.detection.test_task import config_of, random_kept

# pycocotools' order.
NAMES = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar",
    "ar_small",
    "ar_medium",
    "ar_large",
)


def of_sizes(seed, **settings):
    """As `random_kept`, with objects of all three sizes."""
    kept = random_kept(seed, **settings)
    scale = np.random.default_rng(seed).choice([1, 3, 8], len(kept["loss"]))[:, None, None]
    for name in ("boxes", "true_boxes"):
        kept[name] = kept[name] * scale.astype(np.float32)
    kept["boxes"][..., 2:] = np.maximum(kept["boxes"][..., 2:], kept["boxes"][..., :2] + 1)
    return kept


def evaluated(truth, rows, images=None):
    """COCOeval of a dataset or file and of results, with its own settings."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(truth) if isinstance(truth, str) else COCO()
        if not isinstance(truth, str):
            coco.dataset = truth
            coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(rows), "bbox")
        evaluator.params.imgIds = images or evaluator.params.imgIds
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


@pytest.mark.parametrize("seed", range(3))
def test_all_figures_are_pycocotools_own(seed):
    kept = of_sizes(seed, images=20, detections=15)
    evaluator, matches = evaluated(*as_coco(kept, 4)), matched(kept, 4)
    found = figures(matches)
    assert sorted(found) == sorted(NAMES) and min(evaluator.stats) > 0.02
    for key, value in zip(NAMES, evaluator.stats, strict=True):
        assert found[key] == pytest.approx(value, abs=1e-12), key
    # [T, R, K, sizes, detections]
    wanted = evaluator.eval["precision"][..., -1].transpose(3, 0, 2, 1)
    drawn = matches.curves.at().precisions()
    np.testing.assert_allclose(np.nan_to_num(drawn, nan=-1), wanted, atol=1e-12)
    recall = evaluator.eval["recall"][:, :, 0, 2]
    np.testing.assert_allclose(np.nan_to_num(of_classes(matches)[1], nan=-1), recall, atol=1e-12)


def squeezed(folder, file="boxes"):
    """Detections near the truth of 40 photographs, in images that show them squeezed.

    Returns:
      The file of annotations, the numbers of the images, the source, and what is kept.
    """
    path, count = folder / "val2017" / f"{file}.json", 40
    config = data(f"coco:{folder}", resident_limit=0, coco__file=f"{{split}}/{file}.json")
    needs = ("boxes", "classes", "valid", "crowd", "filled")
    source = open_source(config, "val2017", needs=needs)
    truths = [source.records[i][1] for i in range(count)]
    kept = {f"true_{name}": np.stack([one[name] for one in truths]) for name in truths[0]}
    random, shape = np.random.default_rng(0), kept["true_valid"].shape
    kept["boxes"] = kept["true_boxes"] + random.normal(0, 5, (*shape, 4)).astype(np.float32)
    kept["boxes"][..., 2:] = np.maximum(kept["boxes"][..., 2:], kept["boxes"][..., :2] + 1)
    kept |= {"scores": random.uniform(size=shape), "classes": kept["true_classes"]}
    kept["valid"] = kept["true_valid"] & (random.uniform(size=shape) < 0.7)
    by_name = {one["file_name"]: one for one in json.loads(path.read_text())["images"]}
    of = [by_name[source.name(i).rpartition("/")[2]] for i in range(count)]
    size = np.array([[one["height"], one["width"]] for one in of], np.float32)
    seen = random.uniform(30, 96, size.shape).astype(np.float32)
    for name in ("boxes", "true_boxes"):
        kept[name] = (kept[name] * np.tile(seen / size, 2)[:, None]).astype(np.float32)
    true_boxes, filled = kept["true_boxes"], kept.pop("true_filled")
    kept["true_mask_areas"] = (true_boxes[..., 2:] - true_boxes[..., :2]).prod(axis=-1) * filled
    return path, [one["id"] for one in of], source, dict(kept, size=size, seen=seen)


@pytest.mark.parametrize("file", ["boxes", "instances"])
def test_figures_are_in_pixels_of_the_files(coco256, file):
    """Objects with masks have the area of their mask, as in COCO's own figures of boxes."""
    path, images, source, kept = squeezed(coco256, file)
    rows = as_coco(kept, 80, images, range(1, 81))[1]
    wanted = evaluated(str(path), rows, images).stats
    assert min(wanted) > 0.01 and len(source.class_names) == 80
    found = figures(matched(kept, 80))
    for key, value in zip(NAMES, wanted, strict=True):
        assert found[key] == pytest.approx(value, abs=2e-3), key
    assert abs(figures(matched({**kept, "size": kept["seen"]}, 80))["ar_small"] - wanted[9]) > 0.02


def test_sizes_without_an_object_have_no_figures():
    kept = random_kept(0)
    kept["true_boxes"] = kept["true_boxes"] / 2
    assert not {"ap_medium", "ar_large"} & figures(matched(kept, 3)).keys()
    outcomes = Outcomes(kept, ("a", "b", "c"), np.arange(12), matched(kept, 3))
    assert "ap_medium" not in intervals(outcomes, 5)
    assert "medium" not in str(remark_rows(outcomes, ""))


def voc_by_hand(kept, k, recalls):
    """The development kit's AP of a class: VOCevaldet.m and VOCap.m, of continuous boxes."""
    rows = [
        (-kept["scores"][n, d], n, d)
        for n, d in np.argwhere(kept["valid"] & (kept["classes"] == k)).tolist()
    ]
    objects = kept["true_valid"] & (kept["true_classes"] == k)
    taken, right, wrong = set(), [], []
    for _, n, d in sorted(rows):
        iou = np.where(objects[n], overlaps(kept, n)[d], -1)
        m = int(iou.argmax())
        if iou[m] >= 0.5 and kept["true_crowd"][n, m]:
            continue
        good = iou[m] >= 0.5 and (n, m) not in taken
        taken |= {(n, m)} if good else set()
        right.append(good)
        wrong.append(not good)
    count = (objects & ~kept["true_crowd"]).sum()
    recall = np.cumsum(right) / count
    precision = np.cumsum(right) / np.maximum(np.cumsum(right) + np.cumsum(wrong), 1)
    if recalls:
        each = [precision[recall >= t].max(initial=0) for t in np.linspace(0, 1, 11)]
        return float(np.mean(each))
    padded = np.concatenate([[0], recall, [1]])
    highest = np.concatenate([[0], precision, [0]])
    for i in range(len(highest) - 2, -1, -1):
        highest[i] = max(highest[i], highest[i + 1])
    steps = np.flatnonzero(padded[1:] != padded[:-1]) + 1
    return float(((padded[steps] - padded[steps - 1]) * highest[steps]).sum())


@pytest.mark.parametrize("seed", range(3))
def test_voc_s_ap_is_that_of_its_development_kit(seed):
    kept = random_kept(seed, images=25, detections=20)
    found = voc_figures(voc_matched(kept, 4))  # of the fourth class there is no object
    for key, recalls in (("voc07", 11), ("voc10", 0)):
        wanted = np.mean([voc_by_hand(kept, k, recalls) for k in range(3)])
        assert 0.05 < wanted < 0.9 and found[key] == pytest.approx(wanted, abs=1e-12), key


def test_times_of_images_are_copies_of_them():
    kept = of_sizes(1)
    times = np.array([2, 0, 1, 3, 1, 1, 0, 1, 2, 1, 0, 0])
    repeated = {name: np.repeat(value, times, axis=0) for name, value in kept.items()}
    one, other = (
        Outcomes(rows, ("a", "b", "c"), np.arange(12), matched(rows, 3))
        for rows in (kept, repeated)
    )
    found, wanted = all_figures(one, times.astype(float)), all_figures(other)
    assert found == pytest.approx(wanted, abs=1e-12) and len(found) == 14


def kept_of(truths, found, crowd=()):
    """One image, of (class, box) and (class, score, box) with boxes (top, left, bottom, right)."""
    return {
        "boxes": np.array([[box for *_, box in found]], np.float32).reshape(1, -1, 4),
        "classes": np.array([[k for k, *_ in found]], np.int32),
        "scores": np.array([[score for _, score, _ in found]], np.float32),
        "valid": np.ones((1, len(found)), bool),
        "true_boxes": np.array([[box for _, box in truths]], np.float32).reshape(1, -1, 4),
        "true_classes": np.array([[k for k, _ in truths]], np.int32),
        "true_valid": np.ones((1, len(truths)), bool),
        "true_crowd": np.isin(np.arange(len(truths)), crowd)[None],
        "loss": np.zeros(1),
    }


WHOLE, HALF, FAR = [0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60]


@pytest.mark.parametrize(
    ("kind", "truths", "found", "ap", "cost"),
    [
        # Without its class, one is right in another one.
        ("class", [(0, WHOLE)], [(1, 0.9, WHOLE)], 0, 1),
        ("localisation", [(0, WHOLE)], [(0, 0.9, HALF)], 0, 1),
        ("both", [(0, WHOLE)], [(1, 0.9, HALF)], 0, 0),
        # Of two objects both are found, but one is found twice before the other is.
        (
            "duplicate",
            [(0, WHOLE), (0, FAR)],
            [(0, 0.9, WHOLE), (0, 0.8, WHOLE), (0, 0.7, FAR)],
            (51 + 50 * 2 / 3) / 101,
            50 / 3 / 101,
        ),
        ("background", [(0, WHOLE)], [(0, 0.9, FAR), (0, 0.8, WHOLE)], 0.5, 0.5),
        ("missed", [(0, WHOLE), (0, FAR)], [(0, 0.9, WHOLE)], 51 / 101, 50 / 101),
    ],
)
def test_each_kind_of_mistake(kind, truths, found, ap, cost):
    result = mistakes(kept_of(truths, found), 2)
    others = {"missed"} if kind == "both" else set()
    assert {name for name, count in result.counts().items() if count} == {kind, *others}
    assert result.ap50() == pytest.approx(ap)
    costs = result.costs()
    assert costs[kind] == pytest.approx(cost)
    assert all(costs[name] == 0 for name in set(KINDS) - {kind})


def test_of_mistakes_about_one_object_the_surest_is_mended():
    """The other one is gone; both together leave no object missed."""
    found = [(0, 0.5, HALF), (0, 0.9, HALF), (1, 0.7, WHOLE)]
    result = mistakes(kept_of([(0, WHOLE)], found), 2)
    assert result.counts()["localisation"] == 2 and result.counts()["missed"] == 0
    assert result.becomes.tolist() == [0, -1, -1] and result.row.tolist() == [1, 2, 0]
    costs = result.costs()
    assert costs["localisation"] == 1 and costs["class"] == 0


def test_what_lies_in_a_crowd_is_no_mistake():
    result = mistakes(kept_of([(0, WHOLE)], [(0, 0.9, HALF), (1, 0.9, FAR)], crowd=(0,)), 2)
    assert result.counts() == dict.fromkeys(KINDS, 0) | {"background": 1}


@pytest.mark.parametrize("seed", range(2))
def test_ap50_before_mending_is_coco_s(seed):
    kept = of_sizes(seed, images=20)
    found = mistakes(kept, 4)
    assert found.ap50() == pytest.approx(figures(matched(kept, 4))["ap50"], abs=1e-9)
    assert max(found.costs().values()) > 0.02


def test_pairs_of_classes_and_the_background():
    """One right, one taken for another class, one missed, one of the background, one unsure."""
    far, away = [80, 80, 90, 90], [200, 200, 210, 210]
    truths = [(0, WHOLE), (0, FAR), (1, far)]
    found = [(0, 0.9, WHOLE), (1, 0.8, FAR), (1, 0.7, away), (1, 0.1, far)]
    result = pairs(kept_of(truths, found), 2)
    assert result.counts.tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert most_confused(result.counts[:-1, :-1], 5) == [(0, 1, 1)]
    # Two of the three sure detections are wrong, and two of the three objects are not found.
    assert result.f1.tolist() == [pytest.approx(1 / 3)] and result.wrong.tolist() == [4]
    nothing = pairs(kept_of([], []), 2)
    assert nothing.f1.tolist() == [1.0] and not nothing.counts.any()


def test_an_object_of_its_own_class_comes_first():
    """The surest of two detections has another class, and overlaps more."""
    found = [(1, 0.9, WHOLE), (0, 0.6, [0, 0, 10, 8])]
    result = pairs(kept_of([(0, WHOLE)], found), 2)
    assert result.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_the_worst_images_and_the_rows_of_classes():
    kept = of_sizes(0, images=20)
    kept["scores"][3], kept["valid"][3], kept["true_valid"][3] = 0.9, True, False
    outcomes = Outcomes(kept, ("a", "b", "c", "none"), np.arange(20), matched(kept, 4))
    assert worst(outcomes, 2)[0] == 3  # nothing there, everything found
    rows = class_rows(outcomes)
    assert [row[0] for row in rows] == sorted("abc", key=lambda k: [r[0] for r in rows].index(k))
    assert np.mean([row[2] for row in rows]) == pytest.approx(figures(outcomes.matches)["ap"])
    text = dict(remark_rows(outcomes, ", by two"))
    assert "10 detections" in text["AR, by two"] and "2007" in text["VOC's AP"]
    assert text["mistakes, AP50 lost"].count("%") == 6


def test_a_file_for_coco_s_server_gives_the_same_figures(coco256, tmp_path):
    """With the numbers of images and categories that the annotations have."""
    folder = tmp_path / "data"
    shutil.copytree(coco256 / "val2017" / "images", folder / "val2017" / "images")
    content = json.loads((coco256 / "val2017" / "boxes.json").read_text())
    for one in content["images"]:
        one["id"] = 2000 - 7 * one["id"]
    for one in content["annotations"]:
        one["image_id"], one["category_id"] = 2000 - 7 * one["image_id"], 3 * one["category_id"]
    for one in content["categories"]:
        one["id"] *= 3
    (folder / "val2017" / "boxes.json").write_text(json.dumps(content))
    path, images, source, kept = squeezed(folder)
    outcomes = Outcomes(kept, source.class_names, np.arange(40), matched(kept, 80))
    config = config_of(data__source=f"coco:{folder}", data__coco__file="{split}/boxes.json")
    evaluation = types.SimpleNamespace(
        outcomes=outcomes, source=source, task=types.SimpleNamespace(config=config),
        data=config.data.source, split="val2017",
    )  # fmt: skip
    write_detections(tmp_path / "found.json", evaluation)
    rows = json.loads((tmp_path / "found.json").read_text())
    assert set(rows[0]) == {"image_id", "category_id", "bbox", "score"}
    wanted = evaluated(str(path), rows, images).stats
    found = figures(outcomes.matches)
    for key, value in zip(NAMES, wanted, strict=True):
        assert found[key] == pytest.approx(value, abs=2e-3), key
    evaluation.outcomes = dataclasses.replace(
        outcomes, values={name: kept[name] for name in kept.keys() - {"size", "seen"}}
    )
    config.data.image_size = 64
    with pytest.raises(UserError, match="--detections: .* were cropped"):
        write_detections(tmp_path / "found.json", evaluation)
