"""Test-time views: their pixels, combined predictions, fully connected layers as convolutions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxconv import create_model, from_text
from jaxconv.config import thinner
from jaxconv.data.decode import decode_middle, decode_whole
from jaxconv.data.geometry import whole_box
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_run
from jaxconv.evaluation.sliding import sliding, total_stride
from jaxconv.evaluation.views import View, mirrored, over_views, read_scales, six_crops, ten_crops
from jaxconv.models import MODELS
from jaxconv.models.configured import build_model
from jaxconv.run import train
from jaxconv.train.restore import restore_run
from jaxconv.train.workdir import saved_config
from tests.conftest import tiny_config

pytestmark = pytest.mark.slow


def test_ten_crops_are_alexnets():
    """Every pixel is its own number, 10 * row + column."""
    image = jnp.array(10 * np.arange(6)[:, None] + np.arange(7)).reshape(1, 6, 7, 1)
    crops = np.asarray(ten_crops(image, 4))[0, ..., 0]
    assert crops.shape == (10, 4, 4)
    assert crops[:, 0, 0].tolist() == [0, 3, 20, 23, 11, 3, 6, 23, 26, 14]
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])
    np.testing.assert_array_equal(mirrored(image)[0, 1, ..., 0], image[0, :, ::-1, 0])


def test_six_crops_are_the_image_and_two_moved_by_a_pixel():
    """Every pixel is its own number, 10 * row + column."""
    image = jnp.array(10 * np.arange(3)[:, None] + np.arange(4)).reshape(1, 3, 4, 1)
    crops = np.asarray(six_crops(image))[0, ..., 0]
    np.testing.assert_array_equal(crops[0], image[0, ..., 0])
    assert crops[1].tolist() == [[11, 12, 13, 12], [21, 22, 23, 22], [11, 12, 13, 12]]
    assert crops[2].tolist() == [[11, 10, 11, 12], [1, 0, 1, 2], [11, 10, 11, 12]]
    np.testing.assert_array_equal(crops[3:], crops[:3, :, ::-1])


def test_answers_are_averaged_as_probabilities():
    def apply(variables, images):
        return images.reshape(len(images), -1) @ variables

    variables, images = (
        jax.random.normal(jax.random.key(0), (12, 3)),
        jax.random.normal(jax.random.key(1), (5, 2, 6, 1)),
    )
    joint = over_views(apply, mirrored)(variables, images)
    each = [jax.nn.softmax(apply(variables, x)) for x in (images, images[:, :, ::-1])]
    np.testing.assert_allclose(jnp.exp(joint), (each[0] + each[1]) / 2, rtol=1e-5)
    joint = over_views(apply, mirrored, weights=(3, 1))(variables, images)
    np.testing.assert_allclose(jnp.exp(joint), 0.75 * each[0] + 0.25 * each[1], rtol=1e-5)


# Thinner than they are known, which changes nothing of their geometry.
NETWORKS = {
    "vgg11": (224, from_text(thinner(MODELS["vgg11"].arguments["text"], 16), 7, by_stage=True), 32),
    "alexnet": (227, from_text(thinner(MODELS["alexnet"].arguments["text"], 16), 7), 32),
    "lenet5": (32, create_model("lenet5", 7), 4),
    "a chain": (16, create_model("chain", 7, filters=(4, 8), neurons=(6, 5), batch_norm=True), 4),
    "a chain without neurons": (16, create_model("chain", 7, filters=(4,)), 2),
    "a text": (
        18,
        from_text("conv3-4 bn relu maxpool3/2ceil adaptpool4 fc6 relu bn dropout0.3 fc", 7),
        2,
    ),
    "bfloat16": (16, create_model("chain", 7, dtype=jnp.bfloat16, filters=(4, 8), neurons=(6,)), 4),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_as_convolutions_fully_connected_layers_give_the_same_logits(name):
    """At the size that they were trained at; and at a larger one, logits for every position,
    averaged.
    """
    size, model, stride = NETWORKS[name]
    images = jax.random.normal(jax.random.key(0), (2, size, size, 1))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), images)
    slid = sliding(model, variables, (size, size, 1))
    tolerance = 1e-5 if model.dtype == jnp.float32 else 2e-2
    plain = functools.partial(model.apply, train=False)
    logits = jax.jit(plain)(variables, images)
    np.testing.assert_allclose(
        jax.jit(slid)(variables, images),
        logits,
        rtol=tolerance,
        atol=tolerance * float(jnp.abs(logits).max()),
    )
    larger = jax.eval_shape(
        slid, variables, jax.ShapeDtypeStruct((2, size + 32, size + 64, 1), jnp.float32)
    )
    assert larger.shape == (2, 7) and larger.dtype == jnp.float32
    assert total_stride(model, variables, (size, size, 1)) == stride


@pytest.mark.parametrize(
    "text",
    [
        "conv3-4p0 relu maxpool2 fc8 relu fc",
        "conv3-4/2p0 tanh conv3-5p0 fc",
        "conv5-3p0 relu avgpool2 fc",
    ],
)
def test_each_position_is_the_vote_of_its_window(text):
    """Without padding, sliding the layers is sliding the whole network."""
    model, shape = from_text(text, 5), (10, 10, 2)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
    image = jax.random.normal(jax.random.key(1), (1, 12, 16, 2))
    windows = jnp.concatenate(
        [image[:, y : y + 10, x : x + 10] for y in range(0, 3, 2) for x in range(0, 7, 2)]
    )
    wanted = jnp.mean(model.apply(variables, windows, train=False), axis=0)
    np.testing.assert_allclose(
        sliding(model, variables, shape)(variables, image)[0], wanted, rtol=1e-4, atol=1e-5
    )


def test_global_pooling_takes_larger_images_as_it_is():
    model = create_model("resnet18", 7, units=(1, 1, 1, 1))
    images = jax.random.normal(jax.random.key(0), (1, 48, 64, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), images)
    logits = sliding(model, variables, (32, 32, 3))(variables, images)
    np.testing.assert_array_equal(logits, model.apply(variables, images, train=False))
    assert total_stride(model, variables, (32, 32, 3)) == 32


def test_adaptive_pooling_that_works_stays():
    """At 32 pixels VGG's last maps are 1x1, repeated to 7x7: the network takes any size, and
    nothing can slide.
    """
    model = from_text(thinner(MODELS["vgg11"].arguments["text"], 16), 7, by_stage=True)
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), images)
    logits = sliding(model, variables, (32, 32, 3))(variables, images)
    np.testing.assert_allclose(
        logits, model.apply(variables, images, train=False), rtol=1e-5, atol=1e-5
    )


SIDES = st.integers(1, 3000)


@given(SIDES, SIDES, st.integers(1, 600), st.integers(1, 64))
def test_the_whole_image_but_for_a_rest(height, width, scale, step):
    (top, left, h, w), (new_height, new_width) = whole_box(height, width, scale, step, longest=3)
    assert min(new_height, new_width) == scale and (max(new_height, new_width) - scale) % step == 0
    assert max(new_height, new_width) <= 3 * scale
    assert top >= 0 and top + h <= height and left >= 0 and left + w <= width and h >= 1 and w >= 1
    # In the middle, the shorter side whole, of the longer less lost than a step and a pixel unless
    # it is very long.
    assert (
        abs((height - h) - 2 * top) <= 1
        and abs((width - w) - 2 * left) <= 1
        and min(h, w) == min(height, width)
    )
    if max(height, width) <= 3 * min(height, width):
        assert max(height, width) - max(h, w) <= (step + 1) * min(height, width) / scale + 1


SIZES = ((24, 16), (16, 24), (16, 16), (37, 16), (80, 20))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Images of several shapes, one of them damaged, and a run on them that crops 16 of 20
    pixels.
    """
    root, random = tmp_path_factory.mktemp("views"), np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 13)):
        for number, name in enumerate(("cat", "dog")):
            (root / "images" / split / name).mkdir(parents=True)
            for n in range(count):
                width, height = SIZES[n % len(SIZES)]
                pixels = random.integers(0, 200, (height, width, 3)) + 50 * number
                Image.fromarray(pixels.astype(np.uint8)).resize((2 * width, 2 * height)).save(
                    root / "images" / split / name / f"{n:02}.png"
                )
    (root / "images" / "test" / "cat" / "03.png").write_bytes(b"no image")
    run(root, "run")
    return root


def run(root, name, **changes):
    settings = {
        "data__source": f"folder:{root / 'images'}",
        "data__image_size": 16,
        "data__crop_ratio": 0.8,
        "data__resident_limit": 0,
        "data__damaged_share": 0.1,
        "data__decoder": "pillow",
        "batch_size": 4,
        "steps": 3,
        "eval__batch_size": 8,
        "model__kwargs__neurons": (6,),
    }
    train(tiny_config(**settings | changes), str(root / name), devices=jax.devices()[:1])


def by_hand(root, name, files, apply_to):
    """Mean probabilities [N, K] of the views that `apply_to(content)` cuts out of each file, one
    image at a time.
    """
    config = saved_config(root / name)
    state, _ = restore_run(root / name)
    model = build_model(config.model, 2)
    probabilities = []
    for file in files:
        logits = [
            apply(model, state.variables, (jnp.asarray(views) / 255 - 0.5) / 0.5)
            for apply, views in apply_to(file.read_bytes())
        ]
        probabilities.append(np.mean([jax.nn.softmax(x).mean(axis=0) for x in logits], axis=0))
    return np.stack(probabilities)


def good_files(root):
    return [
        file
        for file in sorted((root / "images" / "test").rglob("*.png"))
        if file.stat().st_size > 10
    ]


@functools.partial(jax.jit, static_argnums=0)
def plain(model, variables, images):
    return model.apply(variables, images, train=False)


@functools.partial(jax.jit, static_argnums=0)
def slid(model, variables, images):
    return sliding(model, variables, (16, 16, 3))(variables, images)


def ten_of(content):
    image = decode_middle(content, 20, 3, "pillow")[None]
    return [(plain, ten_crops(image, 16)[0])]


def whole_of(content, scales):
    for scale in scales:
        image = decode_whole(content, scale, 4, 3, 3, "pillow")
        yield slid, np.stack([image, image[:, ::-1]])


def middle_of(content, ratio):
    image = decode_middle(content, 16, 3, "pillow", ratio)
    return [(plain, np.stack([image, image[:, ::-1]]))]


WAYS = {
    "10-crop": ({}, ten_of),
    "flip": ({}, lambda content: middle_of(content, 0.8)),
    "flip of all": ({"views": "flip", "crop_ratio": 1.0}, lambda content: middle_of(content, 1.0)),
    "dense": ({}, lambda content: whole_of(content, (20,))),
    "dense at two": (
        {"views": "dense", "scales": (16, 22)},
        lambda content: whole_of(content, (16, 22)),
    ),
}


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("way", WAYS)
def test_views_of_files(photographs, way, devices):
    """Each file's probabilities as they come out one image at a time, in the order of the files,
    without the damaged one.
    """
    settings, apply_to = WAYS[way]
    found = evaluate_run(
        str(photographs / "run"), devices=jax.devices()[:devices], **{"views": way} | settings
    )
    files = good_files(photographs)
    assert [found.source.name(int(i)) for i in found.outcomes.index] == [
        str(file) for file in files
    ]
    assert found.result["examples"] == 25 and found.outcomes.index.tolist() == [
        n for n in range(26) if n != 3
    ]
    wanted = by_hand(photographs, "run", files, apply_to)
    np.testing.assert_allclose(found.outcomes.probabilities, wanted, atol=2e-5)
    assert found.result["loss"] == pytest.approx(found.outcomes.losses.mean(), rel=1e-5)
    assert found.result["top1"] == (found.outcomes.ranks == 0).mean()


@pytest.mark.full
def test_views_of_an_ensemble_under_pmap(photographs):
    run(photographs, "two", ensemble__size=2, ensemble__by="unroll", parallel="pmap")
    found = evaluate_run(
        str(photographs / "two"), devices=jax.devices()[:2], views="dense", scales=(16, 20)
    )
    single = [outcomes.probabilities for outcomes in found.members.values()]
    assert len(single) == 2 and np.abs(single[0] - single[1]).max() > 1e-3
    np.testing.assert_allclose(found.outcomes.probabilities, np.mean(single, axis=0), atol=1e-6)
    assert found.result["members"][1]["loss"] == pytest.approx(
        found.members["seed 1"].losses.mean(), rel=1e-5
    )
    assert found.result["ensemble_loss"] == pytest.approx(found.outcomes.losses.mean(), rel=1e-5)
    assert found.result["ensemble_loss"] <= found.result["loss"]


@pytest.mark.parametrize(
    "settings, words",
    [
        (
            {"views": "10crop"},
            "--views=10crop: unknown view, did you mean '10-crop'.*center, flip, 6-crop, 10-crop",
        ),
        (
            {"scales": (256,)},
            "--scales=256: applies to --views=dense and --views=scales, not to center",
        ),
        ({"views": "dense", "scales": (0,)}, "--scales=0: must be whole numbers of pixels"),
        (
            {"views": "dense", "scales": (16, 2)},
            "--scales=2: the network, for 16x16, cannot take 2x2: pool2: ",
        ),
        (
            {"views": "dense", "scales": (12,)},
            r"--scales=12: the network, for 16x16, cannot take 12x12: fc1: .* larger than 3",
        ),
        ({"views": "dense", "crop_ratio": 0.5}, "does not apply to --views=dense; give --scales"),
        ({"crop_ratio": 1.5}, "--crop_ratio=1.5: must be more than 0 and at most 1"),
        (
            {"views": "10-crop", "crop_ratio": 1.0},
            r"the run's crop is the whole image .*; give a --crop_ratio below 1",
        ),
    ],
)
def test_views_that_there_are_not(photographs, settings, words):
    with pytest.raises(UserError, match=words) as error:
        evaluate_run(str(photographs / "run"), **settings)
    assert "\n" not in str(error.value)


def test_where_there_are_no_more_pixels(tmp_path, one_device):
    train(tiny_config(steps=3), str(tmp_path), devices=one_device)
    for settings in ({"views": "10-crop"}, {"views": "dense"}, {"crop_ratio": 0.5}):
        with pytest.raises(
            UserError, match="needs image files larger than the crop, and xo gives exactly 16x16"
        ):
            evaluate_run(str(tmp_path), **settings)
    assert evaluate_run(str(tmp_path), views="flip", devices=one_device).result["examples"] == 30


def test_views_are_of_images(tmp_path, one_device):
    config = tiny_config(
        steps=3,
        data__source="sentences",
        data__toy__train_examples=8,
        data__toy__test_examples=8,
        data__text__length=16,
    )
    train(config, str(tmp_path), devices=one_device)
    with pytest.raises(UserError, match="--views=flip: is for images, and sentences holds texts"):
        evaluate_run(str(tmp_path), views="flip")


def test_scales_as_text():
    assert read_scales("") == () and read_scales("256,384") == (256, 384)
    assert read_scales("0.5,1") == (0.5, 1)
    with pytest.raises(UserError, match="--scales=256;384: must be numbers separated by commas"):
        read_scales("256;384")
    assert (
        str(View("dense", (256, 384))) == "dense at 256, 384"
        and str(View("flip", crop_ratio=0.875)) == "flip, crop_ratio 0.875"
    )
