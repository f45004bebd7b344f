"""A fast residual network for CIFAR-10: few wide units, a short cosine schedule, averaged weights.

    jaxconv train --config=experiments/cifar10_fast.py --config.data.source=folder:DIR \\
        --workdir=/tmp/fast
    jaxconv train --config=experiments/cifar10_fast.py:small --workdir=/tmp/fast_small

The second takes seconds on a CPU. DIR holds train/<class>/*.jpg and test/<class>/*.jpg.

Three stages of one unit with 64, 128 and 256 filters, 1.2 million parameters; 15 epochs with random
crops (padding 4), flips and random erasing; SGD with Nesterov momentum, label smoothing 0.1,
weights averaged with a decay of 0.995. It is in the spirit of DAWNBench's ResNet-9 (Page 2018, "How
to train your ResNet", 94% in 24 epochs), but not a copy.

Result      not run here at full length
"""

from jaxconv.config import check_argument, default_config, small


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.data.source = "folder:cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.augment.pad_crop = 4
    config.augment.flip = True
    config.augment.erasing.probability = 0.5
    config.augment.erasing.area = (0.03, 0.1)
    config.model.name = "resnet18"
    config.model.kwargs = {"units": (1, 1, 1), "small_images": True}
    config.epochs = 15.0
    config.batch_size = 256
    config.ema.decay = 0.995
    config.loss.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.2
    config.optimizer.nesterov = True
    config.optimizer.l2 = 5e-4
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = 400
    return small(config, units=(1, 1), width=8) if argument == "small" else config
