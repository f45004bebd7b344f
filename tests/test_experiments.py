"""Every experiment is a valid config, and trains, shrunk, from the beginning to the end."""

import ast
import dataclasses
import re

import numpy as np
import pytest

from jaxconv.checks import check_config
from jaxconv.config import load_config, thinner
from jaxconv.data.annotated import detection_targets
from jaxconv.data.interface import Target, describe
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.packaged import experiments
from jaxconv.run import train
from jaxconv.tasks import needs_of
from jaxconv.train.build import build
from jaxconv.train.workdir import read_metrics
from tests.conftest import ROOT

EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
# The images that the whole experiment trains on.
SIZES = {"xo": (32, 1, 2), "mnist": (28, 1, 10), "cifar10": (32, 3, 10), "imagenet": (224, 3, 1000)}
ARGUMENTS = {
    "cifar10_fast": ("sgd",),
    "cifar10_resnet20": ("resnet56", "resnet110"),
    "imagenet_vgg": ("vgg11", "vgg19"),
    "cifar10_distill": ("alone",),
    "imagenet_resnet50": ("resnet152_v1",),
    "camvid": ("scratch",),
    "xo_detection": ("masks",),
    "spoken_digits": ("log_mel",),
    "questions": ("bytes", "films"),
}


# The classes, targets and examples of a whole set that is not here, and the shape of its examples,
# unless it is the image size in the config.
OTHERS = {
    "camvid": (11, "segmentation", 367, (240, 320, 3)),
    "hippocampus": (3, "segmentation", 208, (40, 56, 40, 1)),
    "pets_unet": (3, "segmentation", 3_680, ()),
    "cityscapes_deeplabv3": (19, "segmentation", 2_975, ()),
    "imagenet_localization": (1000, "boxes", 1_281_167, ()),
    "bccd": (3, "objects", 205, (240, 320, 3)),
    "pennfudan": (1, "masks", 136, (320, 320, 3)),
    "coco_retinanet": (80, "objects", 117_266, (1024, 1024, 3)),
    "coco_fcos": (80, "objects", 117_266, (1024, 1024, 3)),
    "coco_faster_rcnn": (80, "objects", 117_266, (1024, 1024, 3)),
    "coco_mask_rcnn": (80, "masks", 117_266, (1024, 1024, 3)),
}
# Toys that stand for whole sets of sounds and texts, and how many examples those have.
STANDING_FOR = {"spoken_digits": ("tones", 2_700), "questions": ("sentences", 5_452)}
# Those that others are like are built with --full.
LIKE = ("coco_retinanet", "coco_faster_rcnn", "coco_mask_rcnn")
# Those of which the small version is trained without --full: one of each kind.
QUICK = ("cifar10_fast", "mnist_lenet5", "imagenet_resnet50")
QUICK += ("hippocampus", "imagenet_localization", "questions")


def is_classification(name):
    """Whether the experiment trains on images of the table; others draw their own."""
    inside = name.partition("_")[0] in SIZES and not name.startswith("xo_")
    return inside and name not in OTHERS


def path_of(name):
    return str(ROOT / "experiments" / f"{name}.py")


def described(name, config):
    """What the data of the whole experiment looks like, and how many examples it has."""
    if name in OTHERS:
        (classes, target, examples, shape), size = OTHERS[name], config.data.image_size
        shape = shape or (size, size, 3)
        targets = {
            "segmentation": {"segmentation": Target(shape[:-1], "uint8", "mask:255")},
            "boxes": {"label": Target(), "boxes": Target((100, 4), "float32", "boxes")},
            "objects": detection_targets(100),
            "masks": {
                **detection_targets(100),
                "masks": Target((*shape[:-1], 13), "uint8", "mask"),
            },
        }[target]
        description = {
            "image_shape": [*shape],
            "kind": "image" if len(shape) == 3 else "signal",
            "cropped": bool(size),
            "class_names": [str(n) for n in range(classes)],
            "targets": {key: dataclasses.asdict(value) for key, value in targets.items()},
        }
        return description, examples
    if name in STANDING_FOR:
        config.data.source, examples = STANDING_FOR[name]
        config.data.folder.test = ""
        return describe(open_source(config.data, config.data.train_split)), examples
    if not is_classification(name):  # drawn on the spot
        source = open_source(config.data, config.data.train_split, needs=needs_of(config))
        return describe(source), len(source)
    size, channels, classes = SIZES[name.partition("_")[0]]
    size = config.data.image_size or size
    description = {
        "image_shape": [size, size, channels],
        "kind": "image",
        "cropped": False,
        "class_names": [str(n) for n in range(classes)],
    }
    return description, 1_281_167 if channels * classes == 3000 else 50_000


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.full) if n in LIKE else n for n in EXPERIMENTS],
)
def test_whole(name):
    """The config is valid, its network takes its images, and the docstring gives the commands and
    what came of it.
    """
    text = ast.get_docstring(ast.parse((ROOT / "experiments" / f"{name}.py").read_text()))
    assert (
        f"--config=experiments/{name}.py " in text
        and f"--config=experiments/{name}.py:small" in text
        and "Result" in text
    )
    for argument in ("", *ARGUMENTS.get(name, ())):
        config = load_config(f"{path_of(name)}:{argument}" if argument else path_of(name))
        check_config(config)
        description, examples = described(name, config)
        assert build(config, description, examples, None).total_steps > 100


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_argument_that_there_is_not_trains_nothing(name):
    with pytest.raises(
        UserError,
        match=rf"{name}.py:smal: unknown argument 'smal', did you mean 'small'\?; it must be",
    ):
        load_config(f"{path_of(name)}:smal")


# Those of other signals are trained by tests/data/test_signals.py, of other tasks by tests/tasks.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.full)
        for name in EXPERIMENTS
        if is_classification(name) or name in OTHERS or name in STANDING_FOR
    ],
)
def test_small(name, tmp_path, one_device):
    config = load_config(
        f"{path_of(name)}:small",
        ["log.progress=False", "log.tensorboard=False", "log.report=False"],
    )
    result = train(config, str(tmp_path), devices=one_device)
    assert result["examples"] == 12 and np.isfinite(result["loss"])
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["train/loss"]) and row["train/grad_norm"] > 0 for row in rows)


def test_thinner():
    assert thinner(
        "conv11-96/4p0 lrn maxpool3/2 conv5-256g2 conv1-16 conv3 dropout0.5 fc4096 fc", 16
    ) == ("conv11-6/4p0 lrn maxpool3/2 conv5-16g2 conv1-2 conv3 dropout0.5 fc256 fc")


def test_the_shortened_schedules_still_change_the_rate():
    for name in EXPERIMENTS:
        config = load_config(f"{path_of(name)}:small")
        if config.optimizer.schedule.name == "step":
            assert re.match(r"\(3,", str(config.optimizer.schedule.boundaries))


def test_packaged_experiments():
    """By name, with an argument; and listed as their docstrings describe them."""
    assert load_config("jaxconv:xo").to_dict() == load_config(path_of("xo")).to_dict()
    small = load_config("jaxconv:imagenet_resnet50:small", ["seed=3"])
    assert small.steps == 4 and small.seed == 3
    with pytest.raises(UserError, match="called 'xoo', did you mean 'xo'.*jaxconv experiments"):
        load_config("jaxconv:xoo")
    with pytest.raises(UserError, match="unknown argument 'smal', did you mean 'small'"):
        load_config("jaxconv:xo:smal")
    listed = {one.name: one for one in experiments()}
    assert sorted(listed) == EXPERIMENTS
    assert all(one.title and one.result for one in listed.values())
    assert listed["xo"].time == "15 s from start to finish, including compilation"
    assert listed["xo"].result == "100% of 2,000 test images (seeds 0, 1, 2)"
    assert listed["cifar10_resnet20"].result.startswith("error 16.60% after a tenth")
