"""Detections of several networks and views, joined by weighted boxes; pictures of what is found."""

import dataclasses

import numpy as np
import pytest

from jaxconv.errors import UserError
from jaxconv.evaluation.several import together
from jaxconv.evaluation.whole import Mirrored
from jaxconv.tasks.detection import pictures
from jaxconv.tasks.detection.fusion import fused, joined, turned_back
from jaxconv.tasks.detection.matches import matched, overlaps
from jaxconv.tasks.detection.mistakes import KINDS, unpaired
from jaxconv.tasks.detection.outcomes import Outcomes
from tests.tasks.detection.test_measuring import of_sizes
from tests.tasks.detection.test_task import config_of as small_config
from tests.tasks.detection.test_task import random_kept, task_of


def found_of(*rows):
    """Detections of one image: (class, score, box) each, and a row that does not count."""
    rows = [*rows, (0, 0.0, [0, 0, 0, 0])]
    return {
        "boxes": np.array([[box for *_, box in rows]], np.float32),
        "scores": np.array([[score for _, score, _ in rows]], np.float32),
        "classes": np.array([[k for k, *_ in rows]], np.int32),
        "valid": np.arange(len(rows))[None] < len(rows) - 1,
    }


def fused_by_hand(each, same=0.55):
    """The paper's section 3, for one image, one detection after the other."""
    rows = sorted(
        (
            (
                float(one["scores"][0, d]),
                int(one["classes"][0, d]),
                one["boxes"][0, d].astype(float),
            )
            for one in each
            for d in np.flatnonzero(one["valid"][0])
        ),
        key=lambda row: -row[0],
    )
    groups = []
    for score, k, box in rows:
        best, at = same, None
        for group in groups:
            kept = {"boxes": box[None, None], "true_boxes": group["box"][None, None]}
            iou = float(overlaps(kept, 0)[0, 0])
            if group["class"] == k and iou > best:
                best, at = iou, group
        if at is None:
            at = {"class": k, "rows": []}
            groups.append(at)
        at["rows"].append((score, box))
        total = sum(s for s, _ in at["rows"])
        at["box"] = sum(s * b for s, b in at["rows"]) / total
        at["score"] = total / len(at["rows"]) * min(len(at["rows"]), len(each)) / len(each)
    return sorted(groups, key=lambda group: -group["score"])


@pytest.mark.parametrize("seed", range(3))
def test_boxes_are_fused_as_the_paper_says(seed):
    kept = [of_sizes(seed, images=1, detections=12, truths=3) for _ in range(3)]
    random = np.random.default_rng(seed)
    for one in kept:
        one["boxes"] = one["boxes"] + random.normal(0, 0.7, one["boxes"].shape).astype(np.float32)
        one["scores"] = random.uniform(0.05, 1, one["scores"].shape).astype(np.float32)
    found, wanted = fused(kept), fused_by_hand(kept)
    assert 3 < len(wanted) < 30 and any(len(group["rows"]) > 2 for group in wanted)
    count = int(found["valid"].sum())
    assert count == min(len(wanted), 12)
    for d, group in enumerate(wanted[:count]):
        np.testing.assert_allclose(found["boxes"][0, d], group["box"], rtol=1e-4, atol=1e-3)
        assert found["scores"][0, d] == pytest.approx(group["score"], abs=1e-6)
        assert found["classes"][0, d] == group["class"]
    for name in ("boxes", "scores", "classes", "valid"):
        assert found[name].dtype == kept[0][name].dtype


def test_what_one_of_two_networks_finds_has_half_its_score():
    one = found_of((0, 0.8, [0, 0, 10, 10]), (1, 0.6, [20, 20, 30, 30]))
    other = found_of((0, 0.4, [0, 0, 10, 13]))
    found = fused([one, other])
    assert found["scores"][0, :2] == pytest.approx([0.6, 0.3])
    # The surer box counts twice as much.
    np.testing.assert_allclose(found["boxes"][0, 0], [0, 0, 10, 11])
    assert found["classes"][0, :2].tolist() == [0, 1] and found["valid"][0].sum() == 2
    nothing = fused([found_of(), found_of()])
    assert not nothing["valid"].any()


def test_many_images_are_fused_as_each_alone():
    kept = [random_kept(seed, images=300, detections=6) for seed in (0, 1)]
    together_, alone = (
        fused([{name: value[rows] for name, value in one.items()} for one in kept])
        for rows in (slice(None), slice(280, 281))
    )
    for name, value in alone.items():
        np.testing.assert_array_equal(together_[name][280:281], value)


def test_mirror_images_and_the_boxes_in_them():
    """A canvas of 12 pixels shows 8 of them; boxes come back to where they were."""
    task, source = task_of(small_config())
    mirrored = Mirrored(source)
    image = source.read(1)["image"]
    np.testing.assert_array_equal(mirrored.read(1)["image"], image[:, ::-1])
    assert len(mirrored) == len(source) and mirrored.checksum() == source.checksum()

    class OnCanvas:
        class_names, element, targets = source.class_names, source.element, source.targets
        decoder, random, notes = "", False, ()

        def read(self, i, key=(0, 0)):
            return {"image": np.arange(12)[None, :, None], "seen": np.array([1, 8], np.float32)}

    row = Mirrored(OnCanvas()).read(0)["image"][0, :, 0]
    assert row.tolist() == [7, 6, 5, 4, 3, 2, 1, 0, 8, 9, 10, 11]
    kept = found_of((0, 0.5, [1, 2, 3, 6]))
    assert turned_back(kept, 12)["boxes"][0, 0].tolist() == [1, 6, 3, 10]
    kept["seen"] = np.array([[1, 8]], np.float32)
    assert turned_back(kept, 12)["boxes"][0, 0].tolist() == [1, 2, 3, 6]


def test_views_are_joined_with_the_truth_and_the_loss_of_the_images():
    task, _ = task_of(small_config())
    one = random_kept(0)
    width = task.size[1]
    mirrored = {**one, "loss": one["loss"] + 1}
    left, right = one["boxes"][..., 1], one["boxes"][..., 3]
    mirrored["boxes"] = np.stack(
        [one["boxes"][..., 0], width - right, one["boxes"][..., 2], width - left], axis=-1
    )
    found = task.join_passes([one, mirrored])
    wanted = joined([one, one])
    assert found.keys() == wanted.keys() and task.join_passes([one]) is one
    for name in ("true_boxes", "true_valid", "loss", "scores", "classes"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
    """What `together` reads of an evaluation."""

    name: str
    task: object
    source: object
    outcomes: object
    result: dict
    split: str = "test"
    step: int = 1
    members: dict = dataclasses.field(default_factory=dict)

    def checksum(self):
        return 0


def test_several_runs_have_the_figures_of_their_joint_detections():
    """Two networks that each find half of the objects find all of them together."""
    task, source = task_of(small_config())
    kept = random_kept(0, images=8, detections=5, truths=5, classes=2)
    kept["boxes"], kept["classes"] = kept["true_boxes"], kept["true_classes"]
    kept["scores"], kept["true_crowd"] = np.full((8, 5), 0.9, np.float32), kept["valid"] & False
    halves = np.arange(5) % 2 == 0
    each = [{**kept, "valid": kept["true_valid"] & half} for half in (halves, ~halves)]
    runs = []
    for name, one in zip("ab", each, strict=True):
        outcomes = task.outcomes(one, np.arange(8))
        result = task.finish({"loss": one["loss"].sum()}, 8, one)
        runs.append(Evaluated(name, task, source, outcomes, {"examples": 8, **result}))
    found = together(runs)
    assert found.result["ensemble_ap"] == pytest.approx(1, abs=0.05)
    assert found.result["ap"] < 0.7 and "ensemble_loss" not in found.result
    assert task.intervals(found.outcomes, 5).keys() >= {"ap", "voc10"}
    other = dataclasses.replace(
        runs[1], outcomes=task.outcomes({**each[1], "true_boxes": kept["boxes"] + 1}, np.arange(8))
    )
    with pytest.raises(UserError, match="only runs on the same data can be averaged"):
        together([runs[0], other])


def test_missed_objects_and_wrong_detections_of_a_picture():
    kept = found_of((1, 0.9, [0, 0, 10, 10]), (0, 0.9, [0, 0, 10, 10]), (0, 0.1, [0, 0, 9, 9]))
    served = {name: value[0] for name, value in kept.items()}
    targets = {
        "boxes": np.array([[30, 30, 40, 40], [0, 0, 0, 0], [0, 0, 10, 10]], np.float32),
        "classes": np.array([0, 0, 0]),
        "valid": np.array([True, False, True]),
    }
    missed, wrong = unpaired(targets, served)
    assert missed.tolist() == [True, False] and wrong.tolist() == [True, False]


def test_crops_show_both_boxes():
    image = np.zeros((40, 60, 1), np.uint8)
    crop = pictures.cropped(image, np.array([10, 10, 20, 20]), np.array([10, 14, 20, 24]))
    assert crop.shape == (96, 96, 3) and crop.dtype == np.uint8
    colours = {tuple(pixel) for pixel in crop.reshape(-1, 3).tolist()}
    assert colours == {(0, 0, 0), (27, 158, 119), (217, 95, 2)}
    beyond = pictures.cropped(image / 255.0, None, np.array([-5, -5, 5, 5]))
    assert beyond[0, 0].tolist() == [128, 128, 128] and beyond[-1, -1].tolist() == [0, 0, 0]


def test_pictures_have_their_numbers():
    kept = of_sizes(0, images=20)
    outcomes = Outcomes(kept, ("$a", "b", "c", "none"), np.arange(20), matched(kept, 4))
    shown = lambda row: np.full((40, 40, 3), row, np.uint8)  # noqa: E731
    crops = pictures.crops_of(outcomes, shown)
    wrong = outcomes.mistakes.counts()
    assert [len(of_kind) for of_kind in crops] == [min(4, wrong[kind]) for kind in KINDS]
    texts = texts_of(pictures.mistakes(outcomes.mistakes, crops, "title"))
    assert texts[0] == "title: what mistakes cost" and set(KINDS) < set(texts)
    assert any(text.endswith(f"({wrong['background']:,})") for text in texts)
    texts = texts_of(pictures.confused(outcomes, shown, 3))
    assert "background" in texts and any(" → " in text for text in texts)
    figure = pictures.precision(outcomes)
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert len(labels) == 10 and labels[0].startswith("0.50: AP ")
    assert len(figure.axes[1].lines) == 3  # a class without objects has no curve


def texts_of(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]
