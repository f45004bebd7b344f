"""X's and O's with a custom network, loss, metric and augmentation, all in this file.

    jaxconv train --config=experiments/own_pieces.py --workdir=/tmp/own
    jaxconv train --config=experiments/own_pieces.py:small --workdir=/tmp/own_small

The names in the config are FILE.py:NAME, or package.module.NAME for anything that can be imported;
jaxconv/own.py documents the signatures.

Result    a demonstration, not tuned
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.config import check_argument, default_config
from jaxconv.config import small as shrink


class Net(nn.Module):
    """Two convolutions, the mean of each feature map, logits."""

    num_classes: int
    filters: int = 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        for n in (1, 2):
            x = nn.relu(
                nn.Conv(self.filters, (5, 5), strides=2, dtype=self.dtype, name=f"conv{n}")(x)
            )
        return nn.Dense(self.num_classes, name="votes")(x.mean(axis=(1, 2))).astype(jnp.float32)


def focal(logits, target):
    """The focal loss with gamma 2 (Lin et al. 2017, arXiv:1708.02002): easy examples count less."""
    log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], axis=-1)[
        :, 0
    ]
    return -((1 - jnp.exp(log_probability)) ** 2) * log_probability


def confidence(logits, label):
    """The probability of the predicted class, right or wrong."""
    return jax.nn.softmax(logits).max(axis=-1)


def dim(key, batch):
    """Darken each image by a random factor from 0.5 to 1."""
    factor = jax.random.uniform(key, (len(batch["image"]), 1, 1, 1), minval=0.5, maxval=1)
    return batch | {"image": batch["image"] * factor}


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.epochs = 4.0
    config.model.name = f"{__file__}:Net"
    config.model.kwargs.filters = 12
    config.loss.name = f"{__file__}:focal"
    config.eval.metrics = f"{__file__}:confidence"
    config.augment.own = f"{__file__}:dim"
    return shrink(config, channels=1) if argument == "small" else config
