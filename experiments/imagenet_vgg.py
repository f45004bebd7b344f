"""VGG on ImageNet with scale jitter (Simonyan and Zisserman 2014, arXiv:1409.1556).

    jaxconv train --config=experiments/imagenet_vgg.py --workdir=/tmp/vgg16
    jaxconv train --config=experiments/imagenet_vgg.py:vgg19 --workdir=/tmp/vgg19
    jaxconv train --config=experiments/imagenet_vgg.py:small --workdir=/tmp/vgg_small

The first is configuration D, VGG-16. vgg11, vgg11_lrn, vgg13, vgg16_conv1 and vgg16_bn work like
vgg19. `small` takes seconds on a CPU.

The paper   74 epochs (370,000 steps); a random shorter side from 256 to 512, a crop of 224, flips,
            AlexNet's color shift; SGD, batches of 256, momentum 0.9, weight decay 5e-4, dropout of
            0.5 in the first two fully connected layers; learning rate 0.01, divided by 10 when the
            validation accuracy stops improving, three times; deep networks start with the weights
            of the shallowest
Here        the same, but: the plateau schedule, without a limit on its reductions; He's initial
            weights (the authors found that Glorot's work as well); biases do not decay
Error       25.6% top-1, 8.1% top-5 (D), 25.5%, 8.0% (E) on the validation images, dense evaluation
            at a shorter side of 384 (Table 3), as by jaxconv evaluate --views=dense --scales=384;
            during training, one center crop of 224 from 256 is evaluated
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
