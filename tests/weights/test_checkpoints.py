"""Checkpoints as PyTorch's training scripts save them, converted: the same logits as the network
that was saved.
"""

import argparse
import copy
import json

import jax
import numpy as np
import pytest

import jaxconv
from jaxconv.errors import UserError
from jaxconv.train.initial import load_weights
from jaxconv.weights.convert import convert
from tests.conftest import assert_one_line_error, command
from tests.weights.test_torchvision import random_torch_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def net(torchvision):
    return random_torch_model(torchvision, "resnet18")


@pytest.fixture(scope="module")
def other(net):
    """The same network with other weights, for averages."""
    changed = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.1)
    return changed


@pytest.fixture(scope="module")
def logits_of():
    network = jaxconv.create_model("resnet18", 10)
    run = jax.jit(lambda variables: network.apply(variables, IMAGES, train=False))
    return lambda folder: run(load_weights(folder)[0])


def assert_logits(found, net):
    with torch.no_grad():
        expected = net(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def before(prefix, names):
    return {prefix + name: value for name, value in names.items()}


def references(net, other):
    """torchvision's references/classification/train.py with --model-ema."""
    average = torch.optim.swa_utils.AveragedModel(other)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    return {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 30).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, model="resnet18"),
        "model_ema": average.state_dict(),
    }


def lightning(net, other):
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": before("model.", net.state_dict()) | {"loss.weight": torch.ones(10)},
        "hparams_name": "kwargs",
        "hyper_parameters": argparse.Namespace(lr=0.1),
    }


def mmpretrain(net, other):
    def named(network):
        return {
            ("head." if name.startswith("fc") else "backbone.") + name: value
            for name, value in network.state_dict().items()
        }

    average = {"steps": torch.tensor(9), **before("module.", named(other))}
    return {"meta": {"epoch": 3}, "state_dict": named(net), "ema_state_dict": average}


CHECKPOINTS = {
    "bare": (lambda net, other: net.state_dict(), ""),
    "keep_vars": (lambda net, other: net.state_dict(keep_vars=True), ""),
    "DataParallel": (lambda net, other: torch.nn.DataParallel(net).state_dict(), ""),
    "compile": (lambda net, other: torch.compile(net, backend="eager").state_dict(), ""),
    "compile of DataParallel": (
        lambda net, other: torch.compile(torch.nn.DataParallel(net), backend="eager").state_dict(),
        "",
    ),
    "PyTorch's ImageNet example": (
        lambda net, other: {
            "epoch": 3,
            "arch": "resnet18",
            "state_dict": torch.nn.DataParallel(net).state_dict(),
            "best_acc1": torch.tensor(69.7),
        },
        "",
    ),
    "AveragedModel": (
        lambda net, other: torch.optim.swa_utils.AveragedModel(net).state_dict(),
        "",
    ),
    "timm": (
        lambda net, other: {
            "epoch": 9,
            "arch": "resnet18",
            "state_dict": net.state_dict(),
            "state_dict_ema": other.state_dict(),
            "args": argparse.Namespace(lr=0.1),
        },
        "state_dict_ema",
    ),
    "references": (references, "model_ema"),
    "Lightning": (lightning, ""),
    "mmpretrain": (mmpretrain, "ema_state_dict"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_are_those_of_the_saved_network(name, net, other, logits_of, tmp_path, caplog):
    make, averaged = CHECKPOINTS[name]
    torch.save(make(net, other), tmp_path / "a.ckpt")
    convert(str(tmp_path / "a.ckpt"), "resnet18", str(tmp_path / "out"))
    assert_logits(logits_of(tmp_path / "out"), net)
    assert bool(averaged) == ("--weights_key" in caplog.text)
    if averaged:
        assert f"--weights_key={averaged} takes that" in caplog.text
        convert(str(tmp_path / "a.ckpt"), "resnet18", str(tmp_path / "average"), averaged)
        assert_logits(logits_of(tmp_path / "average"), other)
        source = load_weights(tmp_path / "average")[1]["source"]
        assert source.startswith("a.ckpt, CRC-32 ") and f"its {averaged}" in source


def test_the_function_takes_checkpoints_and_parameters_too(net, logits_of):
    direct = jaxconv.load_torchvision("resnet18", net.state_dict())
    half = {name: value.bfloat16() for name, value in net.state_dict().items()}
    for state in (
        {"state_dict": torch.nn.DataParallel(net).state_dict()},
        net.state_dict(keep_vars=True),
    ):
        found = jaxconv.load_torchvision("resnet18", state)
        jax.tree.map(np.testing.assert_array_equal, found, direct)
    found = jaxconv.load_torchvision("resnet18", {"ema": half, "model": {}}, weights_key="ema")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.01), found, direct)


FULL = [pytest.param(name, marks=pytest.mark.full) for name in ("resnet34", "vgg11", "se_resnet50")]


@pytest.mark.parametrize("named", [*FULL, "lenet5"])
def test_the_wrong_network_is_told_shortly(net, named, tmp_path):
    torch.save({"model": net.state_dict()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="the weights look like those of resnet18$") as error:
        convert(str(tmp_path / "a.pth"), named, str(tmp_path / "out"))
    assert len(str(error.value)) < 1500 and not (tmp_path / "out").exists()


def test_a_file_that_is_nearly_right_is_no_other_network_s(net):
    state = net.state_dict()
    del state["layer1.0.conv1.weight"]
    with pytest.raises(ValueError) as error:
        jaxconv.load_torchvision("resnet18", state)
    assert str(error.value).endswith(
        "missing: layer1.0.conv1.weight (for params/conv2_1/conv1/conv/kernel)"
    )


def test_the_command_says_what_it_took_and_where_it_wrote(net, other, tmp_path):
    torch.save(CHECKPOINTS["timm"][0](net, other), tmp_path / "a.pth.tar")
    convert_a = ("convert", "a.pth.tar", "--model=resnet18")
    done = command(*convert_a, "--out=new/out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "took state_dict (102 arrays), passed over state_dict_ema (102 arrays)" in done.stderr
    written = json.loads(done.stdout)
    assert written["out"] == str(tmp_path / "new" / "out")
    assert (tmp_path / "new" / "out" / "weights.json").is_file()
    done = command(*convert_a, f"--out={tmp_path}/b", "--weights_key=state_dict_ema", cwd=tmp_path)
    assert json.loads(done.stdout)["source"].endswith(", its state_dict_ema")
    assert json.loads(done.stdout)["fingerprint"] != written["fingerprint"]
    # Said before a large file is read.
    done = command(*convert_a, "--out=new/out", cwd=tmp_path)
    assert_one_line_error(done, 2, "--out=new/out: already exists")
    done = command(*convert_a, "--out=c", "--weights_key=ema", cwd=tmp_path)
    assert_one_line_error(done, 2, "--weights_key=ema: the file has no such dictionary")
    assert not (tmp_path / "c").exists()
