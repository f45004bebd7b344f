"""Oxford-IIIT pets cut out by a U-Net: each pixel pet, background or border.

    jaxconv prepare oxford_iiit_pet
    jaxconv train --config=experiments/pets_unet.py --workdir=/tmp/pets
    jaxconv train --config=experiments/pets_unet.py:small --workdir=/tmp/pets_small

`small` takes seconds on a CPU, on scenes of X's and O's.

The paper   Ronneberger et al. 2015, arXiv:1505.04597, half as wide, with BatchNorm; cross entropy
            and Dice (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z)
The data    Parkhi et al. 2012, doi:10.1109/CVPR.2012.6248092: 3,680 images to train on, 3,669 to
            test, resized to 128 pixels on the shorter side
Result      not run here
"""

from jaxconv.config import check_argument, default_config, small


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.task.name = "segmentation"
    config.data.source = "tfds:oxford_iiit_pet"
    config.data.image_size = 128
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.augment.random_resized_crop.scale = (0.5, 1.0)
    config.augment.flip = True
    config.model.name = "unet"
    config.model.kwargs = {"widths": (32, 64, 128, 256, 512)}
    config.epochs = 60.0
    config.batch_size = 64
    config.loss.name = "softmax_dice"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.002
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = 200
    return small(config, widths=(4, 8)) if argument == "small" else config
