"""A network in an NNX program: `nnx.Optimizer`, BatchNorm's statistics as variables of the module.

`ToNNX` updates the collections that a call names as `mutable`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxconv

STEPS = 3
optimizer = optax.sgd(0.1, momentum=0.9)
network = jaxconv.create_model("resnet20_cifar", num_classes=4, units=(1, 1))
images = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
labels = jnp.arange(8) % 4


@nnx.jit
def train_step(model, optimizer, images, labels):
    """The step as NNX's users write it; `mutable` is the one addition."""

    def loss_fn(model):
        logits = model(images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), a, b)


def test_an_nnx_step_is_the_linen_step():
    model = nnx.bridge.ToNNX(network, rngs=nnx.Rngs(0)).lazy_init(images, train=False)
    module, before = jaxconv.from_nnx(model)
    nnx_optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    losses = [train_step(model, nnx_optimizer, images, labels) for _ in range(STEPS)]

    state = jaxconv.create_state(module, optimizer, jax.random.key(0), images)
    stats = {"batch_stats": before["batch_stats"]}
    state = state.replace(params=before["params"], model_state=stats)
    step = jax.jit(jaxconv.make_train_step(module, optimizer))
    for loss in losses:
        state, metrics = step(state, {"image": images, "label": labels}, jax.random.key(0))
        np.testing.assert_allclose(loss, metrics["loss"], rtol=1e-4)
    _, after = jaxconv.from_nnx(model)
    close(after, state.variables)
    mean = [tree["batch_stats"]["conv1"]["norm"]["mean"] for tree in (before, after)]
    assert np.abs(mean[1] - mean[0]).max() > 0.01
    logits = model(images, train=False)
    close(logits, network.apply(state.variables, images, train=False))


def test_feature_maps_of_an_nnx_module():
    model = nnx.bridge.ToNNX(network, rngs=nnx.Rngs(0)).lazy_init(images, train=False)
    maps = model(images, train=False, features=("conv1", "conv3"))
    wanted = jaxconv.features(*jaxconv.from_nnx(model), images)
    close(maps, {name: wanted[name] for name in ("conv1", "conv3")})


class Rotations(nnx.Module):
    """A head of NNX's own on our features, which predicts one of four rotations."""

    def __init__(self, rngs: nnx.Rngs):
        features = jaxconv.create_model("resnet20_cifar", num_classes=0, units=(1, 1))
        self.backbone = nnx.bridge.ToNNX(features, rngs=rngs)
        self.backbone.lazy_init(jnp.zeros((1, 16, 16, 3)), train=False)
        self.head = nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x, train, mutable=False):
        return self.head(self.backbone(x, train=train, mutable=mutable))


def test_a_network_inside_of_an_nnx_module():
    model = Rotations(nnx.Rngs(0))
    nnx_optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    rotated = jnp.concatenate([jnp.rot90(images[:2], k, axes=(1, 2)) for k in range(4)])
    turns = jnp.arange(8) // 2
    losses = [train_step(model, nnx_optimizer, rotated, turns) for _ in range(10)]
    assert losses[-1] < 0.3 * losses[0]
    assert model(rotated, train=False).shape == (8, 4)
