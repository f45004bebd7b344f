"""The lecture's toy example as a network: its nine-by-nine X, three features and numbers."""

from typing import Any

import flax.linen as nn
import numpy as np
from matplotlib.figure import Figure

from jaxconv.data import xo
from jaxconv.inspect.stages import stages
from jaxconv.look.walk import walk
from jaxconv.models import from_text

# The lecture's three features; below, its layers: filtering, ReLU, pooling, pooling and votes.
FEATURES = np.array(
    [
        [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]],
        [[1, -1, 1], [-1, 1, -1], [1, -1, 1]],
        [[-1, -1, 1], [-1, 1, -1], [1, -1, -1]],
    ]
)
_LECTURE = "conv3-3p0nobias relu maxpool2ceil maxpool2 fc2"


def lecture_network() -> tuple[nn.Module, dict[str, Any], np.ndarray]:
    """The lecture's toy ConvNet: module, variables, and its X as an image [9, 9, 1] of -1 and 1.

    Filters, responses and pooled maps are the lecture's. The voting weights, which its slides only
    draw as lines, are ours: the values that are highest for an X vote for X and all others for O,
    each group with equal weights.
    """
    module = from_text(_LECTURE)
    image = xo.draw_split("test", size=9, test_examples=20)
    x = (
        next(
            image.images[n].astype(np.float32)
            for n in range(len(image))
            if image.labels[n] == xo.CLASS_NAMES.index("x")
        )
        / 127.5
        - 1
    )
    kernel = FEATURES.astype(np.float32).transpose(1, 2, 0)[:, :, None] / 9
    variables = {
        "params": {
            "conv1": {"kernel": kernel},
            "fc2": {"kernel": np.zeros((12, 2), np.float32), "bias": np.zeros(2, np.float32)},
        }
    }
    _, pooled = stages(module, variables, x)[-1].weighing()
    for_x = pooled > 0.99
    variables["params"]["fc2"]["kernel"] = np.stack(
        [~for_x / (~for_x).sum(), for_x / for_x.sum()], axis=1
    ).astype(np.float32)
    return module, variables, x


def lecture_walk() -> Figure:
    """A figure of the lecture's example: X, features, responses, ReLU, pooled stacks and votes.

    The numbers are those of the slides.
    """
    module, variables, x = lecture_network()
    return walk(module, variables, x, class_names=xo.CLASS_NAMES, title="the lecture's X")
