"""ZFNet on ImageNet (Zeiler and Fergus 2013, arXiv:1311.2901).

    jaxconv train --config=experiments/imagenet_zfnet.py --workdir=/tmp/zfnet
    jaxconv train --config=experiments/imagenet_zfnet.py:small --workdir=/tmp/zfnet_small

The second takes seconds on a CPU. The network is AlexNet, visualized and improved: its first layer
has 7x7 filters at stride 2.

The paper   70 epochs; images rescaled to a shorter side of 256, crops of 224 from corners and
            middle, flips; SGD, batches of 128, momentum 0.9, learning rate 0.01 annealed by hand
            when the validation error plateaus; dropout of 0.5 in the fully connected layers;
            filters whose root mean square exceeds 0.1 are rescaled to it; weights start with a
            deviation of 0.01, biases at 0; the mean of each pixel is subtracted
Here        the same, but: random crops from the whole image, where the paper first cuts out the
            middle 256x256; the plateau schedule; weight decay 5e-4 as AlexNet's, not on biases;
            He's initial weights, and no rescaling of filters; normalization by mean and deviation
            of each channel, not the mean of each pixel
Error       37.5% top-1, 16.0% top-5 on the validation images (Table 2, the single network with 512,
            1024, 512 maps)
Result      not run here
"""

from jaxconv.config import check_argument, default_config, small, thinner


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.data.source = "tfds:imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.crop_ratio = 0.875
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.augment.scale_jitter = (256, 256)
    config.augment.flip = True
    config.model.name = "zfnet"
    config.epochs = 70.0
    config.batch_size = 128
    config.optimizer.learning_rate = 0.01
    config.optimizer.l2 = 5e-4
    config.optimizer.schedule.name = "plateau"
    if argument == "small":
        from jaxconv.models.text import HEAD, ZFNET

        return small(config, image_size=96, text=thinner(ZFNET.format(512, 1024, 512, HEAD), 16))
    return config
