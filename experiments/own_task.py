"""A custom task in one file: regression of the angle by which an X is rotated.

    jaxconv train --config=experiments/own_task.py --workdir=/tmp/angle
    jaxconv train --config=experiments/own_task.py:small --workdir=/tmp/angle_small

jaxconv/tasks/task.py documents what else a task can have, such as sums of any shape and figures.

Time      half a minute from start to finish, on two CPU cores
Result    a mean error of 1.4 degrees
"""

import jax.numpy as jnp
import numpy as np

from jaxconv.config import check_argument, default_config, small
from jaxconv.data import Arrays, generator, xo
from jaxconv.tasks import Figure, Task

LARGEST = 40.0  # degrees each way; an X has a symmetry of 90 degrees
BAR = np.linspace(-0.35, 0.35, 2)


def draw(settings, split):
    """X's rotated by random angles: 32x32 images, and the target `angle`, [] float32 each."""
    random, count = generator(settings.toy.seed, split), settings.toy[f"{split}_examples"]
    angles = random.uniform(-LARGEST, LARGEST, count)
    images = []
    for angle in np.deg2rad(angles):
        turns = (angle + np.pi / 4, angle - np.pi / 4)
        strokes = [0.5 + np.outer(BAR, (np.cos(turn), np.sin(turn))) for turn in turns]
        images.append(xo.draw_strokes(strokes))
    return Arrays(np.stack(images), {"angle": angles.astype(np.float32)})


class Angle(Task):
    """The angle in degrees; the network's single output is the angle divided by LARGEST."""

    needs = ("angle",)
    figures = (
        Figure("error", "mean error", unit="degrees", panel="Error"),
        Figure("loss", "loss", panel="Loss"),
    )
    training = ("error",)
    outputs = 1

    def loss(self, outputs, batch):
        return jnp.square(outputs[:, 0] - batch["angle"] / LARGEST)

    def values(self, outputs, batch):
        return {"error": jnp.abs(LARGEST * outputs[:, 0] - batch["angle"])}

    def serve(self, outputs):
        return {"angle": LARGEST * outputs[:, 0]}


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.task.name, config.data.source = f"{__file__}:Angle", f"{__file__}:draw"
    config.epochs, config.optimizer.schedule.name = 10.0, "cosine"
    config.optimizer.name, config.optimizer.learning_rate = "adamw", 2e-3
    return small(config, channels=1, filters=(4, 8)) if argument == "small" else config
