"""Keras' files: read without Keras, and its applications' outputs from their own random weights."""

import hashlib
import io
import json
import sys
import zipfile

import jax
import numpy as np
import pytest

import jaxconv
from jaxconv.errors import UserError
from jaxconv.weights import fetch
from jaxconv.weights.reader import read_state_dict
from jaxconv.weights.torchvision import load_torchvision
from tests.weights.test_fetch import CONTENT, hub  # noqa: F401, a fixture

h5py = pytest.importorskip("h5py")
SAME = {"padding": "same", "epsilon": 1e-3}


@pytest.fixture(scope="module")
def keras():
    """Keras on JAX, which is quicker to import here than TensorFlow."""
    with pytest.MonkeyPatch.context() as patch:
        if "keras" not in sys.modules:
            patch.setenv("KERAS_BACKEND", "jax")
        yield pytest.importorskip("keras")


def randomize(model):
    """Weights far from those that a norm or a bias begins with; the input's stay."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        if type(layer).__name__ == "Normalization":
            continue
        for weight in layer.weights:
            name = weight.path.rpartition("/")[2]
            if name in ("gamma", "moving_variance"):
                weight.assign(random.uniform(0.5, 1.5, weight.shape))
            elif name in ("beta", "bias", "moving_mean"):
                weight.assign(random.normal(0, 0.1, weight.shape))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
@pytest.mark.parametrize(
    ("name", "theirs", "arguments", "side", "bgr", "scale"),
    [
        ("efficientnet_b0", "EfficientNetB0", SAME, 32, False, 255),
        pytest.param("densenet121", "DenseNet121", {}, 64, False, 1, marks=pytest.mark.full),
        pytest.param("resnet50_v1", "ResNet50", {}, 64, True, 1, marks=pytest.mark.full),
        pytest.param("vgg16", "VGG16", {}, 224, True, 1, marks=pytest.mark.full),
    ],
)
def test_keras_applications(keras, tmp_path, name, theirs, arguments, side, bgr, scale):
    """Convolutions with biases before a norm, BGR, SAME padding, and both forms of files."""
    classes = 10
    make = getattr(keras.applications, theirs)
    model = make(
        weights=None, classes=classes, classifier_activation=None, input_shape=(side, side, 3)
    )
    randomize(model)
    images = np.random.default_rng(1).uniform(0, 255, (2, side, side, 3)).astype(np.float32)
    with jax.numpy_rank_promotion("allow"):
        wanted = np.asarray(model(images, training=False))
    network = jaxconv.create_model(name, classes, **arguments)
    given = images[..., ::-1] / scale if bgr else images / scale
    found = []
    for file in ("a.keras", "a.h5"):
        model.save(tmp_path / file)
        found.append(load_torchvision(name, read_state_dict(tmp_path / file)))
    assert jax.tree.all(jax.tree.map(np.array_equal, *found))
    outputs = jax.jit(lambda variables: network.apply(variables, given, train=False))(found[0])
    np.testing.assert_allclose(outputs, wanted, atol=1e-4 * np.abs(wanted).max())


def write_version_2(path, layers, inside=""):
    """A file as Keras 2 wrote it; lists of names are attributes."""
    with h5py.File(path, "w") as file:
        group = file.create_group(inside) if inside else file
        group.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, arrays in layers.items():
            own = group.create_group(layer)
            own.attrs["weight_names"] = [f"{layer}_7/{name}:0".encode() for name in arrays]
            for name, value in arrays.items():
                own[f"{layer}_7/{name}:0"] = value


KERNEL = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
LAYERS = {
    "conv1/conv": {"kernel": KERNEL, "bias": np.float32([1, 2, 3])},
    "dw": {"depthwise_kernel": KERNEL},
    "relu": {},
}


@pytest.mark.parametrize("inside", ["", "model_weights"])
def test_files_of_version_2(tmp_path, inside):
    """By the names that the file lists, whatever its layers were called when it was written."""
    write_version_2(tmp_path / "a.h5", LAYERS, inside)
    found = read_state_dict(tmp_path / "a.h5")
    assert found.keys() == {"conv1_conv/kernel", "conv1_conv/bias", "dw/kernel"}
    np.testing.assert_array_equal(found["dw/kernel"], KERNEL)


def archive_of(path, layers, arrays):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, value in arrays.items():
            file[name] = value
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"config": {"layers": layers}}))
        archive.writestr("model.weights.h5", content.getvalue())


def layer(kind, name, **settings):
    return {"class_name": kind, "config": {"name": name, **settings}}


def test_files_of_version_3(tmp_path):
    layers = [
        layer("Conv2D", "first"),
        layer("ReLU", "relu"),
        layer("Conv2D", "second", use_bias=False),
        layer("BatchNormalization", "norm", scale=False),
    ]
    arrays = {"layers/conv2d/vars/0": KERNEL, "layers/conv2d/vars/1": np.ones(3, np.float32)}
    arrays |= {"layers/conv2d_1/vars/0": KERNEL + 1}
    arrays |= {f"layers/batch_normalization/vars/{n}": np.float32([n]) for n in range(3)}
    archive_of(tmp_path / "a.keras", layers, arrays)
    found = read_state_dict(tmp_path / "a.keras")
    names = {"first/kernel", "first/bias", "second/kernel"}
    assert found.keys() == names | {"norm/beta", "norm/moving_mean", "norm/moving_variance"}
    assert found["norm/moving_mean"] == 1 and found["second/kernel"][0, 0, 0, 0] == 1
    archive_of(tmp_path / "b.keras", [layer("Conv2D", "first", use_bias=False)], arrays)
    with pytest.raises(UserError, match="layer 'first', Conv2D, has 2 arrays"):
        read_state_dict(tmp_path / "b.keras")
    other = {"layers/my_layer/vars/0": KERNEL}
    archive_of(tmp_path / "c.keras", [layer("MyLayer", "mine")], other)
    with pytest.raises(UserError, match="layer 'mine', MyLayer, has 1 arrays; known are Conv2D"):
        read_state_dict(tmp_path / "c.keras")


def test_files_that_cannot_be_used(tmp_path, monkeypatch):
    """Each is one line that names the file."""
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = KERNEL
    with pytest.raises(UserError, match=r"a\.weights\.h5: weights of Keras 3 alone, without"):
        read_state_dict(tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["measurements"] = KERNEL
    with pytest.raises(UserError, match=r"b\.h5: it has no list of layers, but measurements"):
        read_state_dict(tmp_path / "b.h5")
    write_version_2(tmp_path / "c.h5", LAYERS)
    content = (tmp_path / "c.h5").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(50):
        damaged = bytearray(content)
        damaged[random.integers(len(damaged))] ^= 1 << random.integers(8)
        (tmp_path / "d.h5").write_bytes(damaged[: random.integers(9, len(damaged))])
        with pytest.raises(UserError, match=r"d\.h5"):
            read_state_dict(tmp_path / "d.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"needs h5py.*pip install 'jaxconv\[keras\]'"):
        read_state_dict(tmp_path / "c.h5")


def test_digests_as_keras_publishes_them(hub):  # noqa: F811
    url = hub.add("net", CONTENT)
    right = "md5:" + hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    assert fetch.fetch(url, sha256=right).path.read_bytes() == CONTENT
    with pytest.raises(
        UserError, match=r"what came is not the file: its MD5 is \w+\.\.\., not 000"
    ):
        fetch.fetch(hub.add("other", CONTENT), sha256="md5:" + "0" * 32)
