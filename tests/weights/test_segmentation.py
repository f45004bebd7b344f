"""Segmentation networks against torchvision's: converted random weights give the same logits, in
the second head too; and as many parameters as torchvision publishes.
"""

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxconv
from jaxconv.models import abstract_variables
from jaxconv.weights.torchvision import load_torchvision
from tests.weights.test_torchvision import random_torch_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

# `num_params` of torchvision 0.28's weights: 21 classes, with the second head.
PARAMETERS = {
    "fcn_resnet50": 35_322_218,
    "fcn_resnet101": 54_314_346,
    "deeplabv3_resnet50": 42_004_074,
    "deeplabv3_resnet101": 60_996_202,
    "deeplabv3_mobilenet_v3_large": 11_029_328,
    "lraspp_mobilenet_v3_large": 3_221_538,
}
QUICK = ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")


def without_dropout(call, args, kwargs, context):
    """For `nn.intercept_methods`: dropout returns what it gets."""
    return args[0] if isinstance(context.module, nn.Dropout) else call(*args, **kwargs)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_torchvision_s(name):
    variables = abstract_variables(jaxconv.create_model(name, 21), (1, 64, 64, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.full) for n in PARAMETERS],
)
def test_logits_are_torchvision_s(torchvision, name):
    second = {} if name.startswith("lraspp") else {"aux_loss": True}
    model = random_torch_model(torchvision, name, weights_backbone=None, **second)
    images = np.random.default_rng(0).normal(size=(1, 65, 97, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    variables = load_torchvision(name, model.state_dict())
    ours = jaxconv.create_model(name, 10, frozen_norm=True)
    found = {"out": jax.jit(lambda x: ours.apply(variables, x, train=False))(images)}
    if second:
        # The second head exists in training alone; torchvision's also answers in inference mode.
        def in_training(x):
            with nn.intercept_methods(without_dropout):
                return ours.apply(variables, x, train=True, mutable=["auxiliary"])

        main, changed = jax.jit(in_training)(images)
        found["aux"], weight = changed["auxiliary"]["aux"]
        assert weight == 0.5
        np.testing.assert_allclose(main, found["out"], atol=1e-4 * np.abs(main).max())
    assert found.keys() == expected.keys()
    for head, logits in found.items():
        wanted = expected[head].numpy().transpose(0, 2, 3, 1)
        assert wanted.std() > 1e-3
        np.testing.assert_allclose(logits, wanted, atol=1e-4 * max(1.0, np.abs(wanted).max()))
