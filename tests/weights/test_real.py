"""Weights that others have trained, on real images: errors as published, objects recognized.

Needs the archives of ../shared/data; skipped where they are absent.
"""

import json
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import jaxconv
from jaxconv.train.initial import fitted_weights, load_weights, read_folder
from jaxconv.weights.convert import convert
from jaxconv.weights.names import keys_of
from jaxconv.weights.reader import read_state_dict
from jaxconv.weights.torchvision import load_torchvision
from tests.conftest import SHARED

pytestmark = pytest.mark.slow

# Wrong ones of the first 1,000 test images, as measured with NumPy beside the files; and of the
# first 100.
CIFAR_ERRORS = {20: (85, 6), 32: (72, 8), 44: (67, 7), 56: (74, 4)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# COCO's class -> the classes of ILSVRC 2012 that it is.
CLASSES = {
    "zebra": {340},
    "elephant": {101, 385, 386},
    "bear": {294, 295, 296, 297},
    "cat": {*range(281, 286)},
    "dog": {*range(151, 269)},
    "airplane": {404, 895, 908},
    "banana": {954},
    "teddy bear": {850},
    "toilet": {861},
}


def unpacked(name, tmp_path_factory):
    """The folder of an archive."""
    archive = SHARED / "data" / f"{name}.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive} not found")
    folder = tmp_path_factory.mktemp(name)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.rglob("README.txt")).parent


@pytest.fixture(scope="module")
def cifar_weights(tmp_path_factory):
    return unpacked("weights_cifar_resnets", tmp_path_factory)


@pytest.fixture(scope="module")
def cifar_test(tmp_path_factory):
    """1,000 images [N, 32, 32, 3], normalised as the networks were trained, and labels [N]."""
    folder = unpacked("cifar10_lossless", tmp_path_factory)
    with np.load(folder / "cifar10_lossless.npz") as arrays:
        images, labels = arrays["test_images"], arrays["test_labels"]
    return ((images / np.float32(255) - MEAN) / STD).astype(np.float32), labels


def wrong(name, variables, images, labels):
    model = jaxconv.create_model(name, 10)
    apply = jax.jit(lambda x: jnp.argmax(model.apply(variables, x, train=False), -1))
    parts = [apply(images[n : n + 100]) for n in range(0, len(images), 100)]
    return int(np.sum(np.concatenate(parts) != labels))


def test_a_resnet_for_cifar_from_its_file_to_a_network(cifar_weights, cifar_test, tmp_path):
    """The author's own file, by `jaxconv convert`, as `config.model.init_from` reads it."""
    said = convert(
        str(cifar_weights / "resnet20-12fca82f.th"), "resnet20_cifar", str(tmp_path / "out")
    )
    assert said["parameters"] == 269_722 and "its state_dict.module" in said["source"]
    variables, _ = load_weights(tmp_path / "out")
    images, labels = cifar_test
    assert wrong("resnet20_cifar", variables, images[:100], labels[:100]) == CIFAR_ERRORS[20][1]
    direct = load_torchvision("resnet20_cifar", read_state_dict(cifar_weights / "resnet20.npz"))
    jax.tree.map(np.testing.assert_array_equal, direct, variables)
    # For two classes the logits are new.
    model, key = jaxconv.create_model("resnet20_cifar", 2), jax.random.key(0)
    state = jax.eval_shape(
        lambda key: jaxconv.create_state(model, optax.sgd(0.1), key, images[:1]), key
    )
    fitted, messages = fitted_weights(str(tmp_path / "out"), state, 2, read_folder)
    assert fitted["params"]["fc"]["kernel"].shape == (64, 2)
    assert any("fc is newly initialized" in message for message in messages)


@pytest.mark.full
@pytest.mark.parametrize("depth", CIFAR_ERRORS)
def test_errors_of_resnets_for_cifar(cifar_weights, cifar_test, depth):
    name = f"resnet{depth}_cifar"
    variables = load_torchvision(name, read_state_dict(cifar_weights / f"resnet{depth}.npz"))
    assert wrong(name, variables, *cifar_test) == CIFAR_ERRORS[depth][0]


@pytest.mark.full
def test_a_file_of_another_depth_is_named(cifar_weights):
    state = read_state_dict(cifar_weights / "resnet32.npz")
    with pytest.raises(ValueError, match="the weights look like those of resnet32_cifar"):
        load_torchvision("resnet20_cifar", state)


@pytest.fixture(scope="module")
def photographs(coco256):
    """Of each photograph whose objects are all of one of `CLASSES`, one of them over a tenth of
    it: the picture and the class.
    """
    found = []
    for part in ("train2017", "val2017"):
        listed = json.loads((coco256 / part / "boxes.json").read_text())
        names = {category["id"]: category["name"] for category in listed["categories"]}
        for image in listed["images"]:
            boxes = [box for box in listed["annotations"] if box["image_id"] == image["id"]]
            kinds = {names[box["category_id"]] for box in boxes}
            sizes = [box["bbox"][2] * box["bbox"][3] for box in boxes]
            if (
                len(kinds) == 1
                and kinds <= CLASSES.keys()
                and max(sizes) > 0.1 * image["width"] * image["height"]
            ):
                path = coco256 / part / "images" / image["file_name"]
                found.append((Image.open(path).convert("RGB"), *kinds))
    return found


def middle(picture, size):
    """The middle of a picture whose shorter side is made 256: [size, size, 3] float32, 0 to 255."""
    scale = 256 / min(picture.size)
    picture = picture.resize(
        [round(side * scale) for side in picture.size], Image.Resampling.BICUBIC
    )
    left, top = ((side - size) // 2 for side in picture.size)
    return np.asarray(picture.crop((left, top, left + size, top + size)), np.float32)


def recognized(photographs, name, variables, size, mean, std, **arguments):
    """The photographs whose class is the first, and those whose class is among the first five."""
    model = jaxconv.create_model(name, 1000, **arguments)
    images = np.stack([(middle(picture, size) - mean) / std for picture, _ in photographs])
    apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    logits = apply(images.astype(np.float32))
    best = np.argsort(-np.asarray(logits), axis=-1)[:, :5]
    kinds = [kind for _, kind in photographs]
    hits = [
        [label in CLASSES[kind] for label in row] for row, kind in zip(best, kinds, strict=True)
    ]
    return sum(row[0] for row in hits), sum(map(any, hits))


# Caffe's means of blue, green and red, in our order; its values are 0 to 255.
CAFFE = {"size": 227, "mean": (123.0, 117.0, 104.0), "std": 1.0}


def test_photographs_are_recognized_by_squeezenet(photographs, tmp_path_factory, tmp_path):
    folder = unpacked("weights_squeezenet", tmp_path_factory)
    file = folder / "squeezenet_v1.0_decoded.npz"
    convert(str(file), "squeezenet1_0", str(tmp_path / "out"))
    variables, _ = load_weights(tmp_path / "out")
    assert len(photographs) == 19
    # One of the photographs shows a dog among teddy bears.
    settings = {"variables": variables, **CAFFE, "last_padding": 1}
    assert recognized(photographs, "squeezenet1_0", **settings) == (17, 18)
    # The file's kernel sees blue, green and red.
    kernel = variables["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(
        kernel, read_state_dict(file)["conv1/kernel"].T[:, :, ::-1].swapaxes(0, 1)
    )


def test_photographs_are_recognized_by_efficientnet_lite0(photographs, tmp_path_factory):
    folder = unpacked("weights_efficientnet_lite0", tmp_path_factory)
    state = read_state_dict(folder / "efficientnet_lite0.npz")
    variables = load_torchvision("efficientnet_lite0", state)
    settings = {"size": 224, "mean": 127.0, "std": 128.0}
    assert recognized(photographs, "efficientnet_lite0", variables, **settings) == (16, 17)


def test_caffe_s_squeezenet_is_torchvision_s_but_for_the_order_of_channels():
    """The names are found out from the file."""
    leaves = jaxconv.models.abstract_variables(
        jaxconv.create_model("squeezenet1_1", 10), (1, 64, 64, 3)
    )
    random, files = np.random.default_rng(0), {"torchvision": {}, "caffe": {}}
    shapes = {path: leaf.shape for path, leaf in flatten_dict(leaves, sep="/").items()}
    values = {
        path: random.normal(size=shape[-2:][::-1] + shape[:-2] if len(shape) > 1 else shape)
        for path, shape in shapes.items()
    }
    for scheme, arrays in files.items():
        for path, key in keys_of("squeezenet1_1", shapes, scheme).items():
            bgr = scheme == "caffe" and path == "params/conv1/kernel"
            arrays[key] = values[path][:, ::-1] if bgr else values[path]
    assert (
        "fire2/squeeze1x1/kernel" in files["caffe"] and "features.0.weight" in files["torchvision"]
    )
    one, two = (load_torchvision("squeezenet1_1", arrays) for arrays in files.values())
    jax.tree.map(np.testing.assert_array_equal, one, two)
