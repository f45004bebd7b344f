"""ResNet-50 with recipe A3 of "ResNet strikes back" (100 epochs).

Wightman, Touvron and Jegou 2021, arXiv:2110.00476, Table 2.

    jaxconv train --config=experiments/imagenet_resnet50_a3.py --workdir=/tmp/a3
    jaxconv train --config=experiments/imagenet_resnet50_a3.py:small --workdir=/tmp/a3_small

The second takes seconds on a CPU.

The paper   100 epochs at 160 pixels, batches of 2,048; LAMB, learning rate 8e-3, weight decay
            0.02, cosine schedule after 5 epochs of warm-up; binary cross entropy, a class being
            present if its share exceeds 0.2; random resized crops, flips, RandAugment 6/0.5, mixup
            0.1, cutmix 1; evaluation at 224 pixels and a crop ratio of 0.95
Here        the same, but: gradients clipped to a norm of 1, timm's default for LAMB; bilinear
            interpolation, where timm chooses bilinear or bicubic at random; the cosine starts after
            the warm-up, where timm's includes it; the last BatchNorm scale of each unit starts at
            1, where timm's starts at 0
Error       21.9% top-1 on the validation images, one crop of 224 (78.1% accuracy)
Result      not run here
"""

from jaxconv.config import check_argument, default_config, small


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.data.source = "tfds:imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 160
    config.data.eval_image_size = 224
    config.data.crop_ratio = 0.95
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.augment.random_resized_crop.scale = (0.08, 1.0)
    config.augment.flip = True
    config.augment.randaugment.update(
        {"layers": 2, "level": 0.6, "deviation": 0.05, "probability": 0.5, "space": "timm"}
    )
    config.augment.interpolation = "bilinear"
    config.augment.mixup = 0.1
    config.augment.cutmix = 1.0
    config.model.name = "resnet50"
    config.model.dtype = "bfloat16"
    config.epochs = 100.0
    config.batch_size = 2048
    config.loss.name = "binary"
    config.loss.threshold = 0.2
    config.optimizer.name = "lamb"
    config.optimizer.learning_rate = 8e-3
    config.optimizer.weight_decay = 0.02
    config.optimizer.epsilon = 1e-6
    config.optimizer.clip_norm = 1.0
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = round(5 * 1_281_167 / 2048)
    return small(config, image_size=32, units=(1, 1), width=8) if argument == "small" else config
