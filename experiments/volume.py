"""Ball, cube or cross? A 3-D network, in the text notation, on synthetic solids in noise.

    jaxconv train --config=experiments/volume.py --workdir=/tmp/volume
    jaxconv train --config=experiments/volume.py:small --workdir=/tmp/volume_small

The second takes seconds, with fewer and smaller examples.

Your own volumes, DIR/<split>/<class>/*.npy, are [D, H, W] or [D, H, W, C], uint8 or float32, all of
one size:

    jaxconv train --config=experiments/volume.py --config.data.source=folder:DIR \\
        --workdir=/tmp/scans

Machine   2 cores of an AMD EPYC, shared; jax 0.10.2
Time      1 min 33 s from start to finish, including compilation
Result    100% of 600 test solids (seed 0); 5,547 parameters
"""

from jaxconv.config import check_argument, default_config


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.data.source = "solids"
    config.data.mean, config.data.std = (0.34,), (0.24,)
    config.model.name = "text:[conv3-8 bn relu maxpool2]*2 conv3-16 bn relu globalpool fc"
    config.epochs = 2.0
    config.batch_size = 50
    config.optimizer.learning_rate = 0.05
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = 20
    if argument == "small":
        (
            config.data.toy.size,
            config.data.toy.train_examples,
            config.data.toy.test_examples,
            config.epochs,
        ) = 12, 300, 150, 8.0
    return config
