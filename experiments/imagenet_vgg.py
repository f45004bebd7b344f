"""VGG on ImageNet (Simonyan and Zisserman 2014, arXiv:1409.1556): 3x3 all the way, with scale
jitter.

    jaxconv train --config=experiments/imagenet_vgg.py --workdir=/tmp/vgg16
    configuration D
    jaxconv train --config=experiments/imagenet_vgg.py:vgg19 --workdir=/tmp/vgg19         vgg11,
    vgg11_lrn, vgg13, vgg16_conv1, vgg16_bn too
    jaxconv train --config=experiments/imagenet_vgg.py:small --workdir=/tmp/vgg_small     a CPU,
    seconds

The paper   74 passes (370,000 steps); the shorter side a random one from 256 to 512, a crop of 224,
            flips, AlexNet's shift of the colours; SGD, batches of 256, momentum 0.9, weight decay
            5e-4, dropout of a half in the first two fully connected layers; rate 0.01, divided by
            10 when the validation accuracy stops improving, three times; deep networks begin with
            the weights of the shallowest
Here        the same with the plateau schedule, without a limit to its divisions, and He's initial
            weights from the beginning (the authors found that Glorot's do as well); biases do not
            decay
Error       25.6% top-1, 8.1% top-5 (D), 25.5%, 8.0% (E) on the validation images, dense evaluation
            at a shorter side of 384 (Table 3): jaxconv evaluate --views=dense --scales=384; while
            training, one crop of 224 in the middle of 256 is evaluated
Result      not run here
"""

from jaxconv import list_models
from jaxconv.config import check_argument, default_config, small, thinner


def get_config(argument="vgg16"):
    check_argument(argument, "small", *list_models("vgg*"))
    config = default_config()
    config.data.source = "tfds:imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.crop_ratio = 0.875
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.augment.scale_jitter = (256, 512)
    config.augment.flip = True
    config.augment.pca_colour = 0.1
    config.model.name = "vgg16" if argument == "small" else argument
    config.epochs = 74.0
    config.batch_size = 256
    config.optimizer.learning_rate = 0.01
    config.optimizer.l2 = 5e-4
    config.optimizer.schedule.name = "plateau"
    if argument == "small":
        from jaxconv.models.text import vgg

        return small(config, image_size=32, text=thinner(vgg("vgg11"), 16))
    return config
