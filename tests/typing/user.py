"""A script as a user writes it. pyright reports nothing on it, and the types are those asserted.

tests/typing/test_types.py runs pyright on it and on a script with mistakes; it is also executed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxconv
from jaxconv.config import default_config, load_config
from jaxconv.data import Arrays, Source, Target, batches, from_arrays, generator
from jaxconv.feature_maps import FeatureMap
from jaxconv.inspect.inside import activations
from jaxconv.look.opened import OpenedNetwork
from jaxconv.models import Network
from jaxconv.predict import Prediction
from jaxconv.tasks import Figure, Task
from jaxconv.values import Config


class Mean(nn.Module):
    """A network of one's own."""

    num_classes: int
    dtype: Any = jnp.float32
    width: int = 8

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> [N, num_classes]."""
        x = nn.relu(nn.Conv(self.width, (3, 3), dtype=self.dtype)(x))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2))).astype(jnp.float32)


class Brightness(Task):
    """A task of one's own."""

    needs, outputs = ("mean",), 1
    figures = (Figure("error", "error", panel="Error"), Figure("loss", "loss", panel="Loss"))

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> jax.Array:
        """[N]."""
        return jnp.square(outputs[:, 0] - batch["mean"])

    def values(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """[N] each."""
        return {"error": jnp.abs(outputs[:, 0] - batch["mean"])}


class Greys(Source):
    """A source of one's own, whose examples are made as they are read."""

    class_names = ()
    targets = {"mean": Target(dtype="float32")}

    def __init__(self, count: int) -> None:
        self.count = count
        self.element = greys(default_config().data, "train").element

    def __len__(self) -> int:
        return self.count

    def read(self, i: int, key: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """A grey image."""
        grey = i % 256
        return {"image": np.full((8, 8, 1), grey, np.uint8), "mean": np.float32(grey / 255)}

    def name(self, i: int) -> str:
        """Its number."""
        return f"grey {i}"

    def checksum(self) -> int:
        """The same for the same examples."""
        return self.count


def greys(settings: Any, split: str) -> Arrays:
    """A function that returns a source."""
    mean = generator(0, split).random(64).astype(np.float32)
    images = np.repeat(np.uint8(255 * mean), 64).reshape(64, 8, 8, 1)
    return Arrays(images, {"mean": mean})


def get_config() -> Config:
    """An experiment's config."""
    config = default_config()
    assert_type(config, Config)
    config.data.source = "xo"
    config.optimizer.learning_rate = 0.05
    config.model.kwargs.width = 8
    return config


def pretrained() -> tuple[Network, dict[str, Any]]:
    """Networks with the weights that others have trained, which are fetched where it is called."""
    assert_type(jaxconv.create_model("resnet50", pretrained="tv2_in1k")[0], Network)
    assert_type(jaxconv.create_model("resnet50", 10, pretrained=False), Network)
    return jaxconv.create_model("resnet50", 10, pretrained=True)


def look_at_networks() -> None:
    """Networks of the registry, their facts and their feature maps."""
    for name in jaxconv.list_models("resnet*"):
        assert_type(name, str)
    info = jaxconv.model_info("resnet18")
    assert_type(info.errors, tuple[float | None, ...] | None)
    net = jaxconv.create_model("resnet18", 10, dtype=jnp.bfloat16, norm="group")
    assert_type(net, Network)
    images = np.zeros((2, 32, 32, 3), np.float32)
    variables = net.init(jax.random.key(0), images, train=False)
    logits = net.apply(variables, images, train=False)
    _, changed = net.apply(variables, images, train=True, mutable=["batch_stats"])
    print(logits, changed)
    assert_type(jaxconv.features(net, variables, images), dict[str, jax.Array])
    assert_type(jaxconv.feature_info(net, (32, 32, 3)), dict[str, FeatureMap])
    assert_type(activations(net, variables, images), dict[str, jax.Array])
    print(jaxconv.summarize(net, (32, 32, 3)))


def train() -> jaxconv.TrainState:
    """A loop of one's own over the parts of ours."""
    images = np.zeros((16, 8, 8, 1), np.uint8)
    source = from_arrays(images, np.arange(16) % 2)
    net, optimizer = jaxconv.create_model("chain", 2, filters=(4,)), optax.sgd(0.1)
    key = jax.random.key(0)
    state = jaxconv.create_state(net, optimizer, key, jnp.zeros((1, 8, 8, 1)))
    assert_type(state.replace(step=jnp.zeros((), jnp.int32)), jaxconv.TrainState)
    step = jax.jit(jaxconv.make_train_step(net, optimizer))
    one = jaxconv.make_train_step(net, optimizer)
    for batch in batches(source, 8, steps=2):
        batch = {**batch, "image": jnp.asarray(batch["image"], jnp.float32) / 255}
        state, metrics = step(state, batch, key)
        print(float(metrics["loss"]))
        assert_type(one(state, batch, key), tuple[jaxconv.TrainState, dict[str, jax.Array]])
    return state


def run(folder: Path) -> None:
    """An experiment from start to finish, through the functions at the top."""
    config = load_config("jaxconv:xo", ["steps=4"])
    assert_type(jaxconv.train(config, folder), dict[str, Any])
    jaxconv.train("jaxconv:xo", str(folder))
    print(jaxconv.evaluate(folder, split="test"), jaxconv.evaluate([str(folder), folder]))
    opened = jaxconv.open_run(str(folder))
    assert_type(opened, OpenedNetwork)
    assert_type(jaxconv.predict(folder, ["x.png"]), list[Prediction])
    assert_type(jaxconv.predict(folder, np.zeros((1, 12, 12), np.uint8), top=2), list[Prediction])


def main() -> None:
    """All of it."""
    config = get_config()
    assert_type(load_config("experiments/xo.py", ["steps=4"]), Config)
    source = greys(config.data, "train")
    assert_type(source[0], dict[str, Any])
    assert_type(source.targets, dict[str, Target])
    print(len(Greys(4)), len(source), Mean(2))
    look_at_networks()
    train()


if __name__ == "__main__":
    main()
