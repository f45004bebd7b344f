"""CamVid's street scenes: 11 classes, by a U-Net on EfficientNet-Lite0 (or from nothing).

    jaxconv convert efficientnet_lite0.npz --model=efficientnet_lite0 --out=/tmp/lite0
    jaxconv train --config=experiments/camvid.py --workdir=/tmp/camvid \\
        --config.data.source=masks:/data/camvid --config.model.init_from=/tmp/lite0
    jaxconv train --config=experiments/camvid.py:scratch --workdir=/tmp/camvid_scratch \\
        --config.data.source=masks:/data/camvid
    jaxconv train --config=experiments/camvid.py:small --workdir=/tmp/camvid_small

The backbone starts from ImageNet's weights; with `:scratch` everything starts from nothing, and the
way down is the U-Net's own. The last takes seconds.

Data      SegNet's version (Badrinarayanan et al. 2015, arXiv:1511.00561), 367 images to train and
          233 to test, here shrunk to 320x240
Machine   2 cores of an AMD EPYC, jax 0.10.2
Time      75 minutes while other programs ran, 43 of the two cores' time
Result    mean IoU 60.4% of the 233 test images (seed 0), 61.2% [59.6, 62.6] with --views=flip;
          `:scratch` with --config.epochs=16: 39.2%
"""

from jaxconv.config import check_argument, default_config, group, small


def get_config(argument=""):
    check_argument(argument, "scratch", "small")
    config = default_config()
    config.task.name = "segmentation"
    config.data.source = "masks:camvid"
    # What the backbone was trained with: minus 127, over 128.
    config.data.mean, config.data.std = (127 / 255,), (128 / 255,)
    config.augment.random_resized_crop.scale = (0.25, 1.0)
    config.augment.random_resized_crop.ratio = (1.0, 1.78)
    config.augment.flip = True
    jitter = config.augment.colour_jitter
    jitter.brightness = jitter.contrast = jitter.saturation = 0.3
    config.model.name = "unet"
    if argument == "scratch":
        config.model.kwargs = {"widths": (16, 32, 64, 128, 256)}
    else:
        config.model.kwargs = {
            "backbone": "efficientnet_lite0",
            "maps": ("stage2", "stage3", "stage4", "stage6", "stage8"),
            "widths": (32, 48, 64, 128),
        }
        config.optimizer.groups.backbone = group("^backbone/", learning_rate=0.3)
    config.batch_size = 8
    config.epochs = 40.0
    config.loss.name = "softmax_dice"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.002
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = 100
    config.ema.decay = 0.99
    config.eval.every = 460
    config.eval.batch_size = 8
    if argument == "small":
        return small(config, widths=(8, 8, 8, 8))
    return config
