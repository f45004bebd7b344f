"""Anchors against torchvision's generators."""

import numpy as np
import pytest

from jaxconv.models import model_arguments
from jaxconv.tasks.detection import anchors as ours
from tests.tasks.detection.given import TURNED

RCNN_SIZES, RETINANET_SIZES, FCOS_SIZES = (
    model_arguments(f"{name}_resnet50_fpn")["anchor_sizes"]
    for name in ("fasterrcnn", "retinanet", "fcos")
)
IMAGE = (320, 416)
MAPS = [(80, 104), (40, 52), (20, 26), (10, 13), (5, 7)]


def theirs(generator, image, maps):
    """All anchors of torchvision's generator as (top, left, bottom, right)."""
    import torch
    from torchvision.models.detection.image_list import ImageList

    images = ImageList(torch.zeros(1, 3, *image), [image])
    return generator(images, [torch.zeros(1, 1, *size) for size in maps])[0].numpy()[:, TURNED]


@pytest.mark.parametrize(
    ("sizes", "ratios"),
    [
        (RCNN_SIZES, ours.RATIOS),
        (RETINANET_SIZES, ours.RATIOS),
        (FCOS_SIZES, (1.0,)),
        (((32, 64, 128, 256, 512),) * 5, ours.RATIOS),  # Faster R-CNN's on MobileNetV3
    ],
)
def test_anchors_of_a_pyramid(torchvision, sizes, ratios):
    generator = torchvision.models.detection.anchor_utils.AnchorGenerator(
        sizes, (ratios,) * len(sizes)
    )
    found = ours.level_anchors(IMAGE, MAPS, sizes, ratios)
    per_place = generator.num_anchors_per_location()
    assert [len(a) for a in found] == [h * w * n for (h, w), n in zip(MAPS, per_place, strict=True)]
    assert all(a.dtype == np.float32 for a in found)
    np.testing.assert_array_equal(np.concatenate(found), theirs(generator, IMAGE, MAPS))
    each = ours.level_anchors(IMAGE, MAPS, sizes, (ratios,) * len(sizes))
    np.testing.assert_array_equal(np.concatenate(each), np.concatenate(found))


def test_the_sizes_are_torchvision_s(torchvision):
    from torchvision.models.detection.retinanet import _default_anchorgen

    assert _default_anchorgen().sizes == RETINANET_SIZES


SSD300 = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
SSD_MAPS = [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]
SSD_RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]


@pytest.mark.parametrize("steps", [(), (8, 16, 32, 64, 100, 300)])
@pytest.mark.parametrize("image", [(300, 300), (256, 340)])
def test_default_boxes_of_ssd(torchvision, image, steps):
    generator = torchvision.models.detection.anchor_utils.DefaultBoxGenerator(
        SSD_RATIOS, scales=list(SSD300), steps=list(steps) or None
    )
    found = np.concatenate(ours.default_boxes(image, SSD_MAPS, SSD_RATIOS, SSD300, steps))
    wanted = theirs(generator, image, SSD_MAPS)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
    assert len(found) == 8732  # the paper's number


def test_default_boxes_of_ssdlite(torchvision):
    maps = [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    generator = torchvision.models.detection.anchor_utils.DefaultBoxGenerator(
        [[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95
    )
    scales = ours.default_scales(6, 0.2, 0.95)
    np.testing.assert_allclose(scales, generator.scales)
    found = ours.default_boxes((320, 320), maps, [[2, 3]] * 6, scales)
    np.testing.assert_allclose(
        np.concatenate(found), theirs(generator, (320, 320), maps), rtol=1e-5, atol=1e-4
    )
    one = torchvision.models.detection.anchor_utils.DefaultBoxGenerator([[2]])
    assert ours.default_scales(1) == tuple(one.scales)


def test_numbers_that_do_not_fit_are_said():
    with pytest.raises(ValueError, match="5 maps, sizes for 1 and ratios for 5"):
        ours.level_anchors(IMAGE, MAPS, ((32,),))
    with pytest.raises(ValueError, match="6 maps need as many ratios, one more scale"):
        ours.default_boxes((300, 300), SSD_MAPS, SSD_RATIOS, SSD300[:-1])
