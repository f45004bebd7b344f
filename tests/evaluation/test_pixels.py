"""Views of networks with logits for each pixel, and evaluation at the images' own size."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxconv.data.decode import choose_decoder, decode_sized
from jaxconv.data.geometry import whole_size
from jaxconv.errors import UserError
from jaxconv.evaluation import pixels
from jaxconv.evaluation.evaluation import evaluate_run
from jaxconv.layers import resize
from jaxconv.look.opened import open_run
from jaxconv.run import train
from jaxconv.tasks.segmentation import losses
from tests.conftest import assert_one_line_error, command
from tests.tasks.test_segmentation import masks_config, slow_confusion, small

IMAGES = jax.random.normal(jax.random.key(0), (2, 13, 17, 3))
KERNEL = jax.random.normal(jax.random.key(1), (3, 4))


def local(variables, images):
    """Logits of each pixel by its own colour alone."""
    return images @ variables


def leaning(variables, images):
    """Logits that also depend on the column."""
    across = jnp.arange(images.shape[2]).reshape(1, 1, -1, 1) * jnp.array([[[[0.1, 0, 0, 0]]]])
    return images @ variables + across.astype(jnp.float32)


def probabilities(logits):
    return np.asarray(jax.nn.softmax(logits))


def test_a_flip_averages_each_pixel_with_its_own_mirror_image():
    found = pixels.flipped(leaning)(KERNEL, IMAGES)
    mirrored = leaning(KERNEL, IMAGES[:, :, ::-1])[:, :, ::-1]
    wanted = (probabilities(leaning(KERNEL, IMAGES)) + probabilities(mirrored)) / 2
    np.testing.assert_allclose(np.exp(found), wanted, rtol=1e-5)
    np.testing.assert_allclose(
        np.exp(pixels.flipped(local)(KERNEL, IMAGES)),
        probabilities(local(KERNEL, IMAGES)),
        rtol=1e-5,
    )


def test_scales_are_resized_back_and_averaged():
    found = pixels.at_scales(leaning, (1.0, 0.5, 1.5))(KERNEL, IMAGES)
    both, wanted = pixels.flipped(leaning), 0
    for size in ((13, 17), (6, 8), (20, 26)):
        scaled = jax.image.resize(IMAGES, (2, *size, 3), "linear")
        wanted += probabilities(resize(both(KERNEL, scaled), (13, 17))) / 3
    np.testing.assert_allclose(np.exp(found), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        pixels.at_scales(leaning, (1.0,))(KERNEL, IMAGES),
        both(KERNEL, IMAGES),
        rtol=1e-4,
        atol=1e-5,
    )


@given(st.integers(1, 200), st.integers(1, 64))
def test_windows_reach_both_ends_and_overlap(side, window):
    found = pixels.starts(side, min(window, side))
    assert found[0] == 0 and found[-1] == side - min(window, side)
    apart = np.diff(found)
    if window >= 3:
        assert all(0 < d <= math.ceil(window * (1 - pixels.OVERLAP)) for d in apart)
    else:
        assert all(0 < d <= window for d in apart)


def test_windows_average_what_they_say_of_a_pixel():
    """A network of single pixels says the same; one that leans is averaged by a slow loop."""
    found = pixels.in_windows(local, (6, 6))(KERNEL, IMAGES)
    np.testing.assert_allclose(np.exp(found), probabilities(local(KERNEL, IMAGES)), rtol=1e-4)
    total, times = np.zeros((2, 13, 17, 4)), np.zeros((1, 13, 17, 1))
    for top in pixels.starts(13, 6):
        for left in pixels.starts(17, 6):
            part = slice(None), slice(top, top + 6), slice(left, left + 6)
            total[part] += probabilities(leaning(KERNEL, IMAGES[part]))
            times[part] += 1
    assert times.min() == 1 and times.max() > 1
    found = pixels.in_windows(leaning, (6, 6))(KERNEL, IMAGES)
    np.testing.assert_allclose(np.exp(found), total / times, rtol=1e-4)
    # A window larger than the image is the image; volumes have windows too.
    np.testing.assert_allclose(
        np.exp(pixels.in_windows(leaning, (20, 20))(KERNEL, IMAGES)),
        probabilities(leaning(KERNEL, IMAGES)),
        rtol=1e-4,
    )
    volumes = jax.random.normal(jax.random.key(2), (2, 5, 6, 7, 3))
    found = pixels.in_windows(local, (4, 4, 4))(KERNEL, volumes)
    np.testing.assert_allclose(np.exp(found), probabilities(local(KERNEL, volumes)), rtol=1e-4)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 24)), min_size=2, max_size=2))
def test_logits_at_own_sizes_are_those_resized_alone(sizes):
    logits = jax.random.normal(jax.random.key(3), (2, 7, 9, 3))
    found = losses.at_own_size(logits, jnp.array(sizes, jnp.int32), (20, 24))
    assert found.shape == (2, 20, 24, 3) and found.dtype == jnp.float32
    for n, (height, width) in enumerate(sizes):
        wanted = resize(logits[n : n + 1], (height, width))[0]
        np.testing.assert_allclose(found[n, :height, :width], wanted, rtol=1e-4, atol=1e-4)
    truth = np.asarray(losses.only_within(jnp.ones((2, 20, 24), jnp.uint8), jnp.array(sizes)))
    for mask, (height, width) in zip(truth, sizes, strict=True):
        assert (mask[:height, :width] == 1).all()
        assert (mask != losses.IGNORED).sum() == height * width


def write_photographs(root, sizes, split="test"):
    """Images of several sizes with blobs of two classes and an ignored border."""
    random = np.random.default_rng(1)
    for folder in ("images", "masks"):
        (root / split / folder).mkdir(parents=True)
    for n, (height, width) in enumerate(sizes):
        mask = np.zeros((height, width), np.uint8)
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        mask[top : top + height // 2, left : left + width // 2] = 1
        pixels_of = np.where(mask[..., None] > 0, 200, 60) + random.integers(
            -40, 40, (*mask.shape, 3)
        )
        mask[: height // 10 + 1] = losses.IGNORED
        Image.fromarray(pixels_of.astype(np.uint8)).save(root / split / "images" / f"{n}.png")
        Image.fromarray(mask).save(root / split / "masks" / f"{n}.png")
    (root / "classes.json").write_text(json.dumps(["ground", "thing"]))
    return root


SIZES = [(40, 60), (60, 40), (33, 33), (50, 140), (40, 60)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on crops of 32x32, of photographs of several sizes; and its folder of data."""
    folder = tmp_path_factory.mktemp("own")
    root = write_photographs(folder / "set", SIZES)
    write_photographs(root, SIZES * 2, "train")
    config = masks_config(root, data__image_size=32, batch_size=5, steps=20, log__report="False")
    train(config, str(folder / "run"), devices=jax.devices()[:1])
    return folder / "run", root


@pytest.mark.parametrize("devices", [1, 4])
def test_own_size_is_that_of_a_slow_reference(trained, devices):
    """Every image once; each resized, predicted alone, resized back, and counted in a loop."""
    workdir, root = trained
    found = evaluate_run(str(workdir), own_size=True, devices=jax.devices()[:devices])
    assert found.result["examples"] == len(SIZES) and str(found.view) == "center, own size"
    opened, decoder = open_run(workdir), choose_decoder("auto")
    for n, (height, width) in enumerate(SIZES):
        content = (root / f"test/images/{n}.png").read_bytes()
        size = whole_size(height, width, 32, 2)
        assert (
            min(size) == 32 and abs(max(size) - 32 * max(height, width) / min(height, width)) <= 1
        )
        box = (0, 0, height, width)
        image = decode_sized(content, lambda h, w, s=size, b=box: (b, s), 3, decoder)
        logits = opened.model.apply(opened.variables, opened.inputs(image[None]), train=False)
        predicted = np.asarray(resize(logits, (height, width)).argmax(-1))[0]
        truth = np.asarray(Image.open(root / f"test/masks/{n}.png"))
        wanted = slow_confusion(predicted, truth, 2)
        # Rounding may decide pixels whose two classes are equally probable.
        assert np.abs(found.outcomes.confusions[n] - wanted).sum() <= 2
        assert found.outcomes.confusions[n].sum() == (truth != losses.IGNORED).sum()


@pytest.mark.parametrize(
    "view",
    [
        {"views": "flip"},
        {"views": "scales", "scales": (1.0, 0.5)},
        {"views": "sliding", "own_size": True},
        {"views": "scales", "scales": (1,), "own_size": True},
    ],
)
def test_views_of_a_run(trained, view):
    found = evaluate_run(str(trained[0]), devices=jax.devices()[:2], **view)
    plain = evaluate_run(str(trained[0]), own_size=view.get("own_size", False))
    # The same pixels, told apart in a similar way.
    np.testing.assert_array_equal(
        found.outcomes.confusions.sum(axis=2), plain.outcomes.confusions.sum(axis=2)
    )
    assert found.result["loss"] != plain.result["loss"]
    assert found.result["miou"] == pytest.approx(plain.result["miou"], abs=0.35)


def test_sliding_over_larger_images_without_own_size(trained):
    with pytest.raises(UserError, match="no larger than the 32x32 .* add --own_size"):
        evaluate_run(str(trained[0]), views="sliding")
    found = evaluate_run(str(trained[0]), views="sliding", overrides=["data.eval_image_size=48"])
    assert found.outcomes.confusions.sum() > 0


@pytest.mark.slow
def test_the_command(trained):
    flags = f"--workdir={trained[0]}", "--views=scales", "--scales=0.5,1", "--own_size"
    process = command("evaluate", *flags, "--bootstrap=50")
    assert process.returncode == 0, process.stderr
    record = json.loads(process.stdout.splitlines()[-1])
    assert record["view"] == "scales at 0.5, 1, own size"
    low, high = record["intervals"]["miou"]
    assert low <= record["miou"] <= high
    process = command("evaluate", f"--workdir={trained[0]}", "--own_size", "--crop_ratio=0.5")
    assert_one_line_error(process, 2, "--crop_ratio=0.5: does not apply to --own_size")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A run on scenes, which are read at one size."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    train(small(log__report="False"), str(folder), devices=jax.devices()[:1])
    return folder


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"views": "10-crop"}, "does not support it; it supports center, flip, scales, sliding"),
        ({"views": "scales", "scales": (0, 1)}, "--scales=0,1: must be factors .* such as 0.75"),
        ({"views": "flip", "scales": (1,)}, "applies to --views=dense and --views=scales"),
        ({"own_size": True}, "--own_size: needs image files with masks"),
    ],
)
def test_views_that_do_not_fit(view, message, toy):
    with pytest.raises(UserError, match=message):
        evaluate_run(str(toy), **view)


def test_a_mask_of_another_size_than_its_image_is_said(trained, tmp_path):
    root = write_photographs(tmp_path / "set", SIZES[:2])
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "test/masks/1.png")
    with pytest.raises(UserError, match="masks/1.png: is 5x5 pixels"):
        evaluate_run(str(trained[0]), own_size=True, overrides=[f"data.source=masks:{root}"])


def test_a_photograph_that_its_mask_is_not_turned_with_is_said(trained, tmp_path):
    """The camera's orientation turns the image, but not the mask."""
    root = write_photographs(tmp_path / "set", [(20, 30)])
    turned = Image.open(root / "test/images/0.png").getexif()
    turned[0x0112] = 6
    Image.open(root / "test/images/0.png").save(root / "test/images/0.jpg", exif=turned)
    (root / "test/images/0.png").unlink()
    with pytest.raises(UserError, match=r"0.png: is 30x20 pixels, but its image .*0.jpg is 20x30"):
        evaluate_run(str(trained[0]), own_size=True, overrides=[f"data.source=masks:{root}"])
