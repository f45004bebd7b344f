"""One X or O somewhere in an image: what it is, and the box around it.

    jaxconv train --config=experiments/xo_localization.py --workdir=/tmp/xo_localization
    jaxconv train --config=experiments/xo_localization.py:small --workdir=/tmp/xo_localization_small

The second takes seconds.

Machine   2 cores of an AMD EPYC, jax 0.10.2
Time      36 s from start to finish, including compilation
Result    1.4% of 500 test images are wrong: another letter, or a box with an IoU below 0.5 (seed 0)
"""

from jaxconv.config import check_argument, default_config, small


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.task.name = "localization"
    config.data.source = "xo_boxes"
    config.data.scenes.train_examples = 4_000
    config.augment.flip = True
    config.model.name = "text:conv3-16/2 bn relu conv3-32 bn relu maxpool2 conv3-64 bn relu "
    config.model.name += "maxpool2 conv3-64 bn relu maxpool2 fc128 relu fc"
    config.epochs = 12.0
    config.batch_size = 64
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.003
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = 50
    return small(config) if argument == "small" else config
