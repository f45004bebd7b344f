"""GoogLeNet on ImageNet (Szegedy et al. 2014, arXiv:1409.4842).

    jaxconv train --config=experiments/imagenet_googlenet.py --workdir=/tmp/googlenet
    jaxconv train --config=experiments/imagenet_googlenet.py:small --workdir=/tmp/googlenet_small

The second takes seconds on a CPU. The network has inception modules and two auxiliary classifiers.

The paper   crops of 8% to 100% of the area, aspect ratio from 3/4 to 4/3, photometric distortions;
            asynchronous SGD with momentum 0.9 on many machines; the learning rate falls by 4% every
            8 epochs; auxiliary losses weigh 0.3; the final network has averaged weights. Batch
            size, initial learning rate, weight decay and length are not given
Here        batches of 256, initial learning rate 0.02, weight decay 2e-4, 250 epochs; color jitter
            of 0.4 as the distortions; weights averaged with a decay of 0.9999
Error       10.07% top-5 on the validation images, one network, one crop (Table 3)
Result      not run here
"""

from jaxconv.config import check_argument, default_config, small

PASS = 1_281_167 / 256


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.data.source = "tfds:imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.crop_ratio = 0.875
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.augment.random_resized_crop.scale = (0.08, 1.0)
    config.augment.flip = True
    config.augment.colour_jitter.update({"brightness": 0.4, "contrast": 0.4, "saturation": 0.4})
    config.model.name = "googlenet"
    config.epochs = 250.0
    config.batch_size = 256
    config.ema.decay = 0.9999
    config.optimizer.learning_rate = 0.02
    config.optimizer.l2 = 2e-4
    config.optimizer.schedule.name = "step"
    config.optimizer.schedule.factor = 0.96
    config.optimizer.schedule.boundaries = tuple(round(n * 8 * PASS) for n in range(1, 32))
    return small(config, image_size=80, modules="3a 4a 4d") if argument == "small" else config
