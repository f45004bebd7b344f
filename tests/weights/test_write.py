"""Weights out again: names and shapes are torchvision's, the arrays come back bit for bit."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import jaxconv
from jaxconv.models import abstract_variables, list_models, usual_task
from jaxconv.weights.names import schemes_of
from jaxconv.weights.reader import read_state_dict
from jaxconv.weights.torchvision import load_torchvision
from jaxconv.weights.write import to_torchvision, write_torch

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

# A network of each way in which arrays are turned.
QUICK = ["mobilenet_v3_small", "convnext_tiny", "ssdlite320_mobilenet_v3_large", "resnet18"]
WHOLE = ["googlenet_torchvision", "densenet121", "regnet_y_400mf", "fcos_resnet50_fpn"]
WHOLE += ["maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn", "ssd300_vgg16", "vgg11_bn"]
WHOLE += ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "alexnet_torchvision"]
OF_TORCHVISION = [
    name
    for name in list_models()
    if "torchvision" in schemes_of(name) and "_lite" not in name and not name.endswith("_v1")
]


def random_variables(name, classes):
    random = np.random.default_rng(0)
    shapes = abstract_variables(jaxconv.create_model(name, classes), (1, *usual_task(name)[0]))
    flat = flatten_dict(shapes, sep="/")
    # Odd bits too: the smallest numbers, and minus zero.
    return unflatten_dict(
        {
            path: random.standard_normal(leaf.shape, np.float32)
            * np.float32([1, 1e-42, -0.0])[random.integers(0, 3, leaf.shape)]
            for path, leaf in flat.items()
        },
        sep="/",
    )


def torch_network(torchvision, name, classes):
    theirs = name.removesuffix("_torchvision")
    settings = {"num_classes": classes}
    if theirs == "googlenet":
        settings |= {"aux_logits": True, "init_weights": False}
    if theirs.startswith(("fcn_", "deeplab")):
        settings |= {"aux_loss": True}
    if "backbone" in jaxconv.model_arguments(name):
        settings |= {"weights_backbone": None}
    return torchvision.models.get_model(theirs, weights=None, **settings)


def bits(array):
    return np.ascontiguousarray(array).view(np.uint32)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.full) for name in WHOLE)]
)
def test_there_and_back_to_the_bit(torchvision, tmp_path, name):
    variables = random_variables(name, 7)
    arrays = to_torchvision(name, variables)
    with_background = name.startswith(("ssd", "maskrcnn", "keypointrcnn"))
    network = torch_network(torchvision, name, 7 + with_background)
    network.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in arrays.items()}, strict=True)
    held = network.state_dict()
    for key, array in arrays.items():
        np.testing.assert_array_equal(bits(held[key].numpy()), bits(array))
    write_torch(tmp_path / "net.pth", arrays)
    loaded = torch.load(tmp_path / "net.pth", weights_only=True)
    assert list(loaded) == list(arrays)
    for key, array in arrays.items():
        assert loaded[key].shape == array.shape and loaded[key].is_contiguous()
        np.testing.assert_array_equal(bits(loaded[key].numpy()), bits(array))
    back = load_torchvision(name, read_state_dict(tmp_path / "net.pth"))
    ours = flatten_dict(variables, sep="/")
    for path, array in flatten_dict(back, sep="/").items():
        np.testing.assert_array_equal(bits(array), bits(ours.pop(path)))
    assert not ours


@pytest.mark.full
@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_every_network_has_torchvision_s_names_and_shapes(torchvision, name):
    """Without values: of broadcast zeros, and on PyTorch's device of shapes."""
    shape, classes = usual_task(name)
    shapes = abstract_variables(jaxconv.create_model(name, classes), (1, *shape))
    flat = flatten_dict(shapes, sep="/")
    zeros = {path: np.zeros(leaf.shape, np.float32) for path, leaf in flat.items()}
    found = to_torchvision(name, unflatten_dict(zeros, sep="/"))
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        network = torch_network(torchvision, name, classes)
    assert {key: value.shape for key, value in found.items()} == {
        key: tuple(value.shape)
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }


def test_networks_that_torchvision_lacks():
    variables = {"params": {"fc": {"kernel": np.ones((2, 3), np.float32)}}}
    with pytest.raises(ValueError, match="torchvision has no network in the layout of 'lenet5'"):
        to_torchvision("lenet5", variables)
    with pytest.raises(ValueError, match="torchvision's resnet18 has nothing like adapter"):
        to_torchvision("resnet18", {"params": {"adapter": variables["params"]["fc"]}})


def test_odd_shapes_in_a_file(tmp_path):
    arrays = {
        "scalar": np.float32(2.5).reshape(()),
        "empty": np.zeros((0, 3), np.float32),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "ümlaut": np.ones(3, np.float32),
    }
    write_torch(tmp_path / "a.pth", arrays)
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name].numpy(), array)
    found = read_state_dict(tmp_path / "a.pth")
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in arrays.items()
    }
