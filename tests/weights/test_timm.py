"""Parity with timm: its networks with random weights and statistics give the same logits.

Needs torch, torchvision and timm, which `.ci/run` installs; skipped where they are absent.
"""

import functools
import itertools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import jaxconv
from jaxconv.models import abstract_variables, usual_task
from jaxconv.models.repvgg import reparameterize
from jaxconv.weights.names import keys_of, schemes_of
from jaxconv.weights.reader import read_state_dict
from jaxconv.weights.timm_names import OTHERWISE, of_timm
from jaxconv.weights.torchvision import load_torchvision
from tests.conftest import rarely

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

# timm's network -> the side of the image; one of each family.
NETWORKS = {
    "resnet18": 33,
    "vgg11": 33,
    "densenet121": 33,
    "inception_v3": 75,
    "regnety_004": 33,
    "convnext_tiny": 33,
    "mobilenetv2_100": 33,
    "mobilenetv3_small_100": 33,
    "mnasnet_050": 33,
    "tf_efficientnet_b0": 33,
    "tf_efficientnet_lite0": 33,
    "tf_efficientnetv2_s": 33,
    "resnet18d": 33,
    "resnetrs50": 33,
    "ecaresnet26t": 33,
    "skresnet18": 33,
    "convnext_atto": 33,
    "convnextv2_atto": 33,
    "repvgg_a0": 33,
    "dm_nfnet_f0": 33,
    "darknet53": 33,
    "cspresnet50": 33,
    "legacy_xception": 49,
}
# The same families, in other sizes or as trained by another framework.
MORE = {
    "resnet50": 33,
    "wide_resnet50_2": 33,
    "resnext50_32x4d": 33,
    "vgg16_bn": 33,
    "densenet161": 33,
    "regnetx_008": 33,
    "convnext_base": 33,
    "mobilenetv3_large_100": 33,
    "tf_mobilenetv3_small_100": 33,
    "mnasnet_100": 33,
    "efficientnet_b0": 33,
    "efficientnet_b5": 33,
    "efficientnet_lite0": 33,
    "tf_efficientnet_lite4": 33,
    "tf_efficientnetv2_m": 33,
    "resnet50d": 75,
    "resnetrs101": 33,
    "ecaresnet50d": 33,
    "ecaresnetlight": 33,
    "skresnet34": 33,
    "skresnet50d": 33,
    "skresnext50_32x4d": 33,
    "convnextv2_tiny": 33,
    "repvgg_b1g4": 33,
    "dm_nfnet_f1": 75,
    "nfnet_l0": 75,
    "eca_nfnet_l0": 33,
    "cspdarknet53": 33,
    "cspresnext50": 33,
}


# Of the same names as resnet50; timm has no such networks.
SYNONYMS = {f"resnet{depth}_v1" for depth in (18, 34, 50, 101, 152)} | {"mnasnet1_3"}


def random_model(timm, name, side):
    """A network of timm's in inference mode, whose weights and statistics are all random.

    The statistics are near those of noise; others would make most deep networks so steep that
    float32 does not suffice, or so flat that the logits hardly depend on the image.
    """
    with torch.device("meta"):  # its own initialization would take longer than all else
        model = timm.create_model(name, num_classes=10)
    torch.manual_seed(0)
    model = model.to_empty(device="cpu")
    leaves = itertools.chain(model.named_parameters(), model.named_buffers())
    with torch.no_grad():
        for key, leaf in leaves:
            if not leaf.is_floating_point():
                leaf.zero_()
            elif leaf.ndim > 1 and max(leaf.shape) < leaf.numel():
                leaf.normal_(std=(2 / leaf[0].numel()) ** 0.5)
            elif key.endswith(("bias", "running_mean")):
                leaf.normal_(std=0.1)
            else:
                leaf.uniform_(0.5, 1.0)
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        if norms:
            model.train()(torch.randn(16, 3, side, side))
        for norm in norms:
            spread = norm.running_var.sqrt()
            norm.running_mean += 0.1 * spread * torch.randn_like(spread)
            norm.running_var *= torch.empty_like(spread).uniform_(1.0, 1.5)
    return model.eval()


def expected_of(model, images):
    with torch.no_grad():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def compare(timm, name, side):
    """Logits agree on images whose sides are not multiples of the strides."""
    model = random_model(timm, name, side)
    images = np.random.default_rng(0).normal(size=(2, side, side + 11, 3)).astype(np.float32)
    expected = expected_of(model, images)
    ours, arguments = of_timm(name)
    variables = load_torchvision(ours, model.state_dict())
    network = jaxconv.create_model(ours, 10, **arguments)
    logits = jax.jit(functools.partial(network.apply, train=False))(variables, images)
    assert np.ptp(expected, axis=0).max() > 5e-3 * np.abs(expected).max()  # it sees the images
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# Those of which tests/weights/test_torchvision.py has the same network, under torchvision's names.
ALSO_THERE = {
    *("convnext_tiny", "densenet121", "inception_v3", "mnasnet_050", "mobilenetv2_100"),
    *("mobilenetv3_small_100", "regnety_004", "vgg11"),
}


@pytest.mark.parametrize("name", rarely(NETWORKS, ALSO_THERE))
def test_logits_agree(timm, name):
    compare(timm, name, NETWORKS[name])


@pytest.mark.full
@pytest.mark.parametrize("name", MORE)
def test_logits_agree_of_more_networks(timm, name):
    compare(timm, name, MORE[name])


# timm's names of all networks that both have.
BOTH = sorted(
    {n for n in jaxconv.list_models() if "timm" in schemes_of(n)} - {"xception"} | {*OTHERWISE}
)


@pytest.mark.full
@pytest.mark.parametrize("name", BOTH)
def test_every_network_has_timm_s_parameters(timm, name):
    """By name, size and number; nothing is allocated."""
    ours, arguments = of_timm(name)
    if not timm.is_model(name):
        assert name in {of for of, _ in OTHERWISE.values()} | SYNONYMS, "timm has no such network"
        return
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    theirs = {k: v.numel() for k, v in state.items() if "num_batches" not in k}
    if ours == "inception_v3":
        arguments["auxiliary"] = False
    variables = abstract_variables(
        jaxconv.create_model(ours, 1000, **arguments), (1, *usual_task(ours)[0])
    )
    leaves = flatten_dict(variables, sep="/")
    keys = keys_of(ours, leaves, "timm")
    assert {keys[path]: leaf.size for path, leaf in leaves.items()} == theirs


def test_a_file_in_timm_s_names_is_told_from_torchvision_s(timm, tmp_path):
    """`.safetensors` as timm publishes, and `.pth`; the same variables."""
    state = random_model(timm, "mobilenetv3_small_100", 33).state_dict()
    save_file({k: v.numpy() for k, v in state.items()}, str(tmp_path / "model.safetensors"))
    torch.save(state, tmp_path / "model.pth")
    read = [read_state_dict(tmp_path / f"model.{kind}") for kind in ("safetensors", "pth")]
    loaded = [load_torchvision("mobilenet_v3_small", arrays) for arrays in read]
    jax.tree.map(np.testing.assert_array_equal, *loaded)
    kernel = loaded[0]["params"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kernel, state["conv_head.weight"].numpy()[:, :, 0, 0].T)


@pytest.mark.full
def test_a_file_of_a_relative_is_named(timm):
    state = random_model(timm, "mobilenetv3_small_100", 33).state_dict()
    with pytest.raises(ValueError, match="the weights look like those of mobilenet_v3_small"):
        load_torchvision("mobilenet_v3_large", state)


@pytest.mark.parametrize("name", ["repvgg_a0", pytest.param("repvgg_b1g4", marks=pytest.mark.full)])
def test_a_reparameterized_repvgg_is_timm_s(timm, name):
    """The outputs stay, and kernels and biases are timm's."""
    model = random_model(timm, name, 33)
    images = np.random.default_rng(0).normal(size=(2, 33, 44, 3)).astype(np.float32)
    expected = expected_of(model, images)
    variables = load_torchvision(name, model.state_dict())
    plain, joined = reparameterize(jaxconv.create_model(name, 10), variables)
    logits = jax.jit(functools.partial(plain.apply, train=False))(joined, images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    for module in model.modules():
        if hasattr(module, "reparameterize"):
            module.reparameterize()
    paths = flatten_dict(joined, sep="/")
    state = model.state_dict()
    keys = keys_of(name, paths)
    assert {*keys.values()} == {*state}
    for path, key in keys.items():
        value = state[key].numpy()
        value = value.transpose(*range(2, value.ndim), 1, 0) if value.ndim > 1 else value
        np.testing.assert_allclose(paths[path], value, rtol=1e-4, atol=1e-5)
