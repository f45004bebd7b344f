"""AlexNet on ImageNet (Krizhevsky, Sutskever and Hinton 2012, NeurIPS 25).

    jaxconv train --config=experiments/imagenet_alexnet.py --workdir=/tmp/alexnet
    jaxconv train --config=experiments/imagenet_alexnet.py:small --workdir=/tmp/alexnet_small

The second takes seconds on a CPU. The network has "60 million parameters" and two groups, which in
the paper are on two GPUs.

The paper   about 90 epochs; images rescaled to a shorter side of 256, random crops and flips, a
            shift of the colors along their principal components (deviation 0.1); SGD, batches of
            128, momentum 0.9, weight decay 5e-4; learning rate 0.01, divided by 10 by hand "when
            the validation error rate stopped improving", three times; dropout of 0.5 in the first
            two fully connected layers
Here        the same, but: crops of 227, which the layers' sizes require, from the whole image,
            where the paper first cuts out the middle 256x256; the plateau schedule, without a limit
            on its reductions; He's initial weights, where the paper has a deviation of 0.01 and
            biases of 1; normalization by mean and deviation of each channel, not the mean of each
            pixel; biases do not decay
Error       40.7% top-1, 18.2% top-5 on the validation images, mean of ten crops (Table 2), as by
            jaxconv evaluate --views=10-crop; during training, one center crop is evaluated
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
