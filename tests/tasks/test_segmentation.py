"""Segmentation: losses and figures against slow references; runs from the command to the report."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from jaxconv.config import load_config, set_key
from jaxconv.data.interface import describe
from jaxconv.data.masks import read_mask
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_run
from jaxconv.run import train
from jaxconv.tasks.segmentation import losses, outcomes
from tests.conftest import ROOT, assert_one_line_error, command

KEY = jax.random.key(0)


def slow_confusion(predicted, truth, classes):
    found = np.zeros((classes, classes), int)
    for said, true in zip(predicted.ravel(), truth.ravel(), strict=True):
        if true != losses.IGNORED:
            found[true, said] += 1
    return found


def slow_figures(predicted, truth, classes):
    ious, dices = [], []
    counts = truth != losses.IGNORED
    for k in range(classes):
        of, taken = (truth == k) & counts, (predicted == k) & counts
        if (of | taken).any():
            ious.append((of & taken).sum() / (of | taken).sum())
            dices.append(2 * (of & taken).sum() / (of.sum() + taken.sum()))
    right = (predicted == truth)[counts].mean() if counts.any() else 0.0
    means = [np.mean(x) if x else 0.0 for x in (ious, dices)]
    return {"miou": means[0], "accuracy": right, "dice": means[1]}


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 5), st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 1.0]))
def test_figures_are_those_of_a_slow_reference(classes, seed, ignored):
    """With ignored pixels, classes that do not occur, and masks without any pixel that counts."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, random.integers(1, classes + 1), (3, 4, 5)).astype(np.uint8)
    truth[random.random(truth.shape) < ignored] = losses.IGNORED
    logits = random.normal(size=(3, 4, 5, classes)).astype(np.float32)
    logits[..., -1] -= 3 * random.integers(2)
    found = np.asarray(losses.confusion(jnp.asarray(logits), jnp.asarray(truth)))
    predicted = logits.argmax(-1)
    for n in range(3):
        np.testing.assert_array_equal(found[n], slow_confusion(predicted[n], truth[n], classes))
    figures = outcomes.figures(found.sum(axis=0))
    for name, value in slow_figures(predicted, truth, classes).items():
        assert figures[name] == pytest.approx(value)


def test_losses_are_those_of_a_slow_reference():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 3, 4, 3)).astype(np.float32)
    truth = random.integers(0, 3, (2, 3, 4)).astype(np.uint8)
    truth[0, 0], truth[1] = losses.IGNORED, losses.IGNORED
    logarithms = np.asarray(jax.nn.log_softmax(logits))
    counts = truth[0] != losses.IGNORED
    each = [-logarithms[0, y, x, truth[0, y, x]] for y, x in np.argwhere(counts)]
    weights = jnp.array([1.0, 2.0, 0.5])
    heavy = [float(weights[truth[0, y, x]]) for y, x in np.argwhere(counts)]
    found = losses.pixel_cross_entropy(logits, truth)
    np.testing.assert_allclose(found, [np.mean(each), 0], rtol=1e-5)
    found = losses.pixel_cross_entropy(logits, truth, weights=weights)
    np.testing.assert_allclose(found[0], np.mean(np.multiply(each, heavy)), rtol=1e-5)
    probabilities, coefficients = np.exp(logarithms[0])[counts], []
    for k in range(3):
        of = (truth[0] == k)[counts]
        both = (probabilities[:, k] * of).sum()
        coefficients.append((both + 1) / ((probabilities[:, k].sum() + of.sum()) / 2 + 1))
    found = losses.dice(jnp.asarray(logits), jnp.asarray(truth))
    np.testing.assert_allclose(found, [1 - np.mean(coefficients), 0], rtol=1e-5, atol=1e-6)


def test_a_perfect_prediction_has_the_best_figures():
    truth = np.random.default_rng(0).integers(0, 3, (2, 8, 8)).astype(np.uint8)
    logits = 50.0 * jax.nn.one_hot(truth, 3)
    figures = outcomes.figures(np.asarray(losses.confusion(logits, truth)).sum(axis=0))
    assert all(value == 1 for value in figures.values())
    assert float(losses.dice(logits, truth).max()) < 1e-5
    assert float(losses.pixel_cross_entropy(logits, truth).max()) < 1e-5


def small(name="xo_segmentation", **changes):
    config = load_config(f"{ROOT}/experiments/{name}.py:small", ["log.progress=False"])
    if "model__name" in changes:
        config.model.kwargs = ConfigDict()
    for key, value in {"log.tensorboard": "False", **changes}.items():
        set_key(config, key.replace("__", "."), str(value))
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["xo_segmentation", pytest.param("xo_localization", marks=pytest.mark.full)]
)
def test_the_same_on_one_and_on_four_devices(name, tmp_path):
    """jit on one, jit on four and pmap on four; evaluation counts every image once."""
    found = []
    for way, devices in (("jit", 1), ("jit", 4), ("pmap", 4)):
        config = small(name, parallel=way, log__report="False", batch_size=8, augment__flip="True")
        folder = tmp_path / f"{way}{devices}"
        found.append(train(config, str(folder), devices=jax.devices()[:devices]))
    for other in found[1:]:
        assert other["examples"] == 12
        for key, value in found[0].items():
            if isinstance(value, float):  # the smallest difference of a share is 1/12
                share = key in ("loc1", "loc5", "given", "top1")
                assert other[key] == pytest.approx(value, rel=2e-3, abs=0.1 if share else 2e-3), key


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["xo_segmentation", pytest.param("xo_localization", marks=pytest.mark.full)]
)
def test_a_run_of_each_task_from_command_to_page(name, tmp_path):
    """Trains, evaluates with intervals, predicts, exports; and an ensemble."""
    run = tmp_path / "run"
    flags = (f"--config=experiments/{name}.py:small", f"--workdir={run}")
    process = command("train", *flags, "--config.log.tensorboard=False")
    assert process.returncode == 0, process.stderr
    trained = json.loads(process.stdout.splitlines()[-1])
    page = (run / "report.html").read_text()
    assert "Predictions" in page
    table = ("--per_class",) if name == "xo_segmentation" else ()
    process = command("evaluate", f"--workdir={run}", *table)
    assert process.returncode == 0, process.stderr
    evaluated = json.loads(process.stdout.splitlines()[-1])
    for key, value in trained.items():
        assert evaluated[key] == value
    first = next(key for key in ("miou", "loc1") if key in evaluated)
    low, high = evaluated["intervals"][first]
    assert low <= evaluated[first] <= high
    Image.fromarray(np.full((32, 32), 128, np.uint8)).save(tmp_path / "image.png")
    process = command("predict", f"--workdir={run}", str(tmp_path / "image.png"), "--json")
    assert process.returncode == 0, process.stderr
    said = json.loads(process.stdout.splitlines()[-1])
    assert ("classes" if name == "xo_segmentation" else "top") in said
    process = command("export", f"--workdir={run}", f"--out={tmp_path / 'exported'}")
    assert process.returncode == 0, process.stderr
    again = tmp_path / "again"
    stopped = ("--config.log.tensorboard=False", "--config.log.report=False")
    several = (flags[0], f"--workdir={again}", "--config.ensemble.size=2")
    process = command("train", *several, *stopped)
    assert process.returncode == 0, process.stderr
    ensemble = json.loads(process.stdout.splitlines()[-1])
    assert f"ensemble_{first}" in ensemble and len(ensemble["members"]) == 2


@pytest.mark.slow
def test_resumed_to_the_bit(tmp_path, one_device):
    from jaxconv.train.restore import restore_run

    constant = {"optimizer__schedule__name": "constant", "optimizer__schedule__warmup_steps": 0}
    config = small(checkpoint__every=2, log__report="False", **constant)
    train(config, str(tmp_path / "whole"), devices=one_device)
    with config.unlocked():
        config.steps = 2
    train(config, str(tmp_path / "parts"), devices=one_device)
    with config.unlocked():
        config.steps = 4
    train(config, str(tmp_path / "parts"), devices=one_device)
    states = [restore_run(tmp_path / name)[0] for name in ("whole", "parts")]
    for one, other in zip(*(jax.tree.leaves(s.params) for s in states), strict=True):
        np.testing.assert_array_equal(one, other)


def write_masks(root, count=6, size=(24, 20), names=("sky", "road", "none"), ignored=2):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True)
        for n in range(count):
            mask = random.integers(0, len(names), size).astype(np.uint8)
            pixels = np.repeat(mask[..., None] * 80, 3, axis=-1).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / "images" / f"{n}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{n}.png")
    classes = {"classes": names, "ignore_index": ignored}
    (root / "classes.json").write_text(json.dumps(classes))
    return root


def masks_config(root, **changes):
    return small(data__source=f"masks:{root}", model__kwargs__widths="4,8", **changes)


def test_masks_in_folders(tmp_path):
    """The ignored index is no class; streamed and in memory alike; resized with their images."""
    root = write_masks(tmp_path / "set")
    config = masks_config(root)
    source = open_source(config.data, "train")
    assert source.class_names == ("sky", "road")
    example = source.read(0)
    wanted = np.asarray(Image.open(root / "train/masks/0.png"))
    np.testing.assert_array_equal(
        example["segmentation"], np.where(wanted == 2, losses.IGNORED, wanted)
    )
    config.data.resident_limit = 0
    streamed = open_source(config.data, "train")
    np.testing.assert_array_equal(streamed.read(3)["segmentation"], source.read(3)["segmentation"])
    config.data.image_size = 10
    half = open_source(config.data, "train").read(0)
    assert half["image"].shape == (10, 10, 3) and half["segmentation"].shape == (10, 10)
    assert set(np.unique(half["segmentation"])) <= {0, 1, losses.IGNORED}


@pytest.mark.slow
def test_a_run_on_masks_in_folders(tmp_path, one_device):
    config = masks_config(write_masks(tmp_path / "set"), batch_size=4, augment__cutmix=1.0)
    result = train(config, str(tmp_path / "run"), devices=one_device)
    assert result["examples"] == 6 and 0 <= result["miou"] <= 1
    found = evaluate_run(str(tmp_path / "run"), devices=one_device)
    assert found.outcomes.confusions.shape == (6, 2, 2)
    # As many pixels as count.
    counted = sum(
        int((np.asarray(Image.open(tmp_path / f"set/test/masks/{n}.png")) != 2).sum())
        for n in range(6)
    )
    assert found.outcomes.confusions.sum() == counted


@pytest.mark.slow
def test_bad_masks_are_one_line_each(tmp_path):
    def train_on(root, *flags):
        return command(
            "train",
            "--config=experiments/xo_segmentation.py:small",
            f"--config.data.source=masks:{root}",
            f"--workdir={tmp_path / 'run'}",
            *flags,
        )

    root = write_masks(tmp_path / "set", count=2)
    (root / "train/masks/1.png").unlink()
    assert_one_line_error(train_on(root), 1, "train/images/1.png", "has no mask")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "train/masks/1.png")
    assert_one_line_error(train_on(root), 1, "masks/1.png: is 5x5 pixels", "is 20x24")


def test_a_mask_with_an_index_beyond_the_classes_or_with_colours(tmp_path):
    Image.fromarray(np.full((3, 3), 9, np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(
        UserError, match=r"mask.png: has the index 9, but there are 3 classes, 0 to"
    ):
        read_mask(tmp_path / "mask.png", 3)
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="has the mode RGB; a mask is 8-bit grey"):
        read_mask(tmp_path / "mask.png", 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss__name": "dise"}, "config.loss.name is 'dise', did you mean 'dice'"),
        ({"augment__mixup": 0.2}, "mixup is 0.2: a pixel has one class; use cutmix"),
        ({"model__name": "resnet18"}, "segmentation needs logits .*use unet"),
        ({"data__source": "xo"}, "needs the target 'segmentation'"),
        ({"data__scenes__size": 8}, "config.data.scenes.size is 8; it must be between 32"),
    ],
)
def test_settings_that_do_not_fit(changes, message, tmp_path, one_device):
    with pytest.raises(UserError, match=message):
        train(small(**changes), str(tmp_path / "run"), devices=one_device)


def test_evaluation_at_another_size(tmp_path):
    """Masks then have that size too."""
    root = write_masks(tmp_path / "set", count=2)
    config = masks_config(root, data__image_size=16, data__eval_image_size=20)
    trained = describe(open_source(config.data, "train", augment=config.augment))
    source = open_source(config.data, "test", like=trained)
    assert source.read(0)["segmentation"].shape == (20, 20)
    assert source.image_shape == (20, 20, 3) and trained["image_shape"] == [16, 16, 3]


def test_a_mask_has_the_size_of_its_image_turned_upright(tmp_path):
    """A photograph that its EXIF data turns on its side: the mask is of what the network sees."""
    from jaxconv.data.pictures import upright_size

    root = write_masks(tmp_path / "set", count=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "test"):
        for suffix in ("jpg", "png"):
            path = root / split / "images" / f"turned_{suffix}.{suffix}"
            Image.new("RGB", (24, 20)).save(path, exif=exif)
            assert upright_size(path.read_bytes()) == (24, 20)
            mask = Image.fromarray(np.zeros((24, 20), np.uint8))
            mask.save(root / split / "masks" / f"turned_{suffix}.png")
    source = open_source(masks_config(root).data, "train")
    assert source.images.shape == (4, 24, 20, 3)
    mask.transpose(Image.Transpose.ROTATE_90).save(root / "train" / "masks" / "turned_jpg.png")
    with pytest.raises(UserError, match=r"turned_jpg.png: is 24x20 .*turned_jpg.jpg is 20x24"):
        open_source(masks_config(root).data, "train")
