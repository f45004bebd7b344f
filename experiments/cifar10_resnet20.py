"""ResNets for CIFAR-10 (He, Zhang, Ren and Sun 2015, arXiv:1512.03385, section 4.2).

    jaxconv train --config=experiments/cifar10_resnet20.py --config.data.source=folder:DIR \\
        --workdir=/tmp/resnet20
    jaxconv train --config=experiments/cifar10_resnet20.py:resnet56 \\
        --config.data.source=folder:DIR --workdir=/tmp/resnet56
    jaxconv train --config=experiments/cifar10_resnet20.py:small --workdir=/tmp/resnet20_small

There are 20, 32, 44, 56 and 110 layers; `small` takes seconds on a CPU. DIR holds
train/<class>/*.jpg and test/<class>/*.jpg.

The paper   64,000 steps; 4 pixels of padding, random crops, flips, the mean of each pixel
            subtracted; SGD, batches of 128, momentum 0.9, weight decay 1e-4; learning rate 0.1,
            divided by 10 after 32,000 and 48,000 steps; the network of 110 layers starts at 0.01
            until the training error is below 80% (about 400 steps)
Here        the same, but images are normalized by mean and deviation of each channel, the learning
            rate of 110 layers rises to 0.1 over the first 400 steps, and biases and BatchNorm's
            weights do not decay
Error       8.75% (20 layers), 7.51% (32), 7.17% (44), 6.97% (56), 6.43% (110; 6.61% with a
            deviation of 0.16 over five runs), Table 6
Result      error 16.60% after a tenth of the recipe with 20 layers

                --config.steps=6400 --config.optimizer.schedule.boundaries=3200,4800

            95% interval 15.88 to 17.34; one run, seed 0; on CIFAR-10's
            10,000 test images, as JPEG files, on two cores of an AMD EPYC (jax 0.10.2, 190 images a
            second, an hour and a quarter). The errors during training, which up to step 3,128 are
            bit-identical with those of the full recipe:

                step     391   782  1173  1564  1955  2346  2737  3128 | 3519  3910  4301  4692 |
                         5083  5474  5865  6256  6400
                error   53.6  38.3  32.4  30.4  26.9  26.4  24.7  27.1 | 17.7  17.3  17.3  17.0 |
                        16.8  16.6  16.6  16.8  16.6 %

            The full recipe of 64,000 steps takes twelve hours there and was not run to its end: it
            had 27.0% after 3,519 steps, 22.6% after 3,910, 22.7% after 4,301.
"""

from jaxconv import list_models
from jaxconv.config import check_argument, default_config, small


def get_config(argument="resnet20"):
    check_argument(
        argument, "small", *(name.removesuffix("_cifar") for name in list_models("resnet*_cifar"))
    )
    config = default_config()
    config.data.source = "folder:cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.augment.pad_crop = 4
    config.augment.flip = True
    config.model.name = f"{'resnet20' if argument == 'small' else argument}_cifar"
    config.steps = 64_000
    config.batch_size = 128
    config.optimizer.learning_rate = 0.1
    config.optimizer.l2 = 1e-4
    config.optimizer.schedule.name = "step"
    config.optimizer.schedule.boundaries = (32_000, 48_000)
    if argument == "resnet110":
        config.optimizer.schedule.warmup_steps = 400
    return small(config, units=(1, 1), width=4) if argument == "small" else config
