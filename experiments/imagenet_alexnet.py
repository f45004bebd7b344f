"""AlexNet on ImageNet (Krizhevsky, Sutskever and Hinton 2012, NeurIPS 25): "60 million parameters",
two groups as on two GPUs.

    jaxconv train --config=experiments/imagenet_alexnet.py --workdir=/tmp/alexnet
    jaxconv train --config=experiments/imagenet_alexnet.py:small --workdir=/tmp/alexnet_small      a
    CPU, seconds

The paper   about 90 passes; images rescaled to a shorter side of 256, random crops and flips, a
            shift of the colours along their principal components (deviation 0.1); SGD, batches of
            128, momentum 0.9, weight decay 5e-4; rate 0.01, divided by 10 by hand "when the
            validation error rate stopped improving", three times; dropout of a half in the first
            two fully connected layers
Here        the same with crops of 227, which the layers' sizes ask for, out of the whole rectangle,
            where the paper cuts out the middle 256x256 first; the plateau schedule for the hand,
            without a limit to its divisions; He's initial weights for a deviation of 0.01 and
            biases of 1; mean and deviation of each channel for the mean of each pixel; biases do
            not decay
Error       40.7% top-1, 18.2% top-5 on the validation images, mean of ten crops (Table 2): jaxconv
            evaluate --views=10-crop; while training, one crop in the middle is evaluated
Result      not run here
"""

from jaxconv.config import check_argument, default_config, small, thinner


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.data.source = "tfds:imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 227
    config.data.crop_ratio = 227 / 256
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.augment.scale_jitter = (256, 256)
    config.augment.flip = True
    config.augment.pca_colour = 0.1
    config.model.name = "alexnet_2012"
    config.epochs = 90.0
    config.batch_size = 128
    config.optimizer.learning_rate = 0.01
    config.optimizer.l2 = 5e-4
    config.optimizer.schedule.name = "plateau"
    if argument == "small":
        from jaxconv.models.text import ALEXNET_2012

        return small(config, image_size=67, text=thinner(ALEXNET_2012, 16))
    return config
