"""torchvision's detectors for tests: with random weights that detect something, and whatever of
their operators this build of torchvision lacks.
"""

import importlib

import numpy as np
import pytest

from tests.weights.test_torchvision import random_torch_model

# torchvision has (x1, y1, x2, y2).
TURNED = [1, 0, 3, 2]


def greedy_nms(boxes, scores, threshold):
    """torchvision's `nms` by its definition: the indices that stay, the best first."""
    import torch

    corners, order = boxes.detach().double().numpy(), torch.argsort(-scores, stable=True).numpy()
    areas = np.prod(np.maximum(corners[:, 2:] - corners[:, :2], 0), axis=1)
    kept = []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        low = np.maximum(corners[first, :2], corners[order, :2])
        high = np.minimum(corners[first, 2:], corners[order, 2:])
        common = np.prod(np.maximum(high - low, 0), axis=1)
        union = areas[first] + areas[order] - common
        order = order[~(common > threshold * union)]
    return torch.tensor(kept, dtype=torch.int64)


def weights_along(start, side, cells, bins, samples):
    """How much each bin of each box takes of each cell along one axis: [K, bins, cells]."""
    import torch

    place = (torch.arange(bins * samples) + 0.5) / samples
    at = start[:, None] + side[:, None] / bins * place
    inside = (at >= -1) & (at <= cells)
    at = at.clamp(0, cells - 1)
    hat = (1 - (at[..., None] - torch.arange(cells)).abs()).clamp(min=0) * inside[..., None]
    return hat.reshape(len(start), bins, samples, cells).mean(dim=2)


def reference_roi_align(features, rois, scale, height, width, samples, aligned):
    """What torchvision's operator computes, which its own Python does not for points outside."""
    import torch

    if samples < 1:  # of masks, whose boxes have sides from 28 to 56 pixels here
        samples = 2
    start = rois[:, 1:3] * scale - 0.5 * aligned
    side = rois[:, 3:] * scale - 0.5 * aligned - start
    side = side if aligned else side.clamp(min=1)
    over_x = weights_along(start[:, 0], side[:, 0], features.shape[3], width, samples)
    over_y = weights_along(start[:, 1], side[:, 1], features.shape[2], height, samples)
    result = torch.zeros(len(rois), features.shape[1], height, width)
    for n, of_image in enumerate(features):
        own = rois[:, 0] == n
        found = torch.einsum("kph,chw,kqw->kcpq", over_y[own], of_image, over_x[own])
        result[own] = found
    return result


@pytest.fixture
def detectors(torchvision, monkeypatch):
    """torchvision, in which whole detectors run."""
    if not torchvision.extension._has_ops():
        monkeypatch.setattr("torchvision.ops.boxes.nms", greedy_nms)
        module = importlib.import_module("torchvision.ops.roi_align")
        monkeypatch.setattr(module, "_roi_align", reference_roi_align)
    return torchvision


def random_detector(torchvision, name, size, classes=7, **settings):
    """One of torchvision's detectors in inference mode, for images [N, H, W, 3] of this size that
    it takes as they are.

    Weights of the last layers are such that scores differ, and boxes are not far from anchors.
    """
    import torch

    plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if not name.startswith("ssd"):
        plain |= {"min_size": min(size), "max_size": max(size)}
    model = random_torch_model(
        torchvision, name, weights_backbone=None, num_classes=classes, **plain | settings
    )
    for key, value in model.named_parameters():
        if key.endswith("bn3.weight"):  # so that maps do not grow from unit to unit
            torch.nn.init.uniform_(value, 0.1, 0.3)
    last = ("cls_logits", "objectness", "bbox_ctrness", "cls_score", "module_list")
    for key, value in model.named_parameters():
        if key.startswith("backbone.") and not name.startswith("ssdlite"):
            continue  # that of SSDlite starts so small that positions hardly differ
        if value.ndim > 1:
            fan_in = value[0].numel()
            gain = 2.0 if any(part in key for part in last) else 0.5 if "bbox" in key else 1.5
            if key.startswith("backbone."):
                gain = 0.75
            if key == "rpn.head.cls_logits.weight":  # or many scores are exactly 1
                gain = 0.5
            torch.nn.init.normal_(value, std=gain / fan_in**0.5)
        elif key.endswith("bias"):
            torch.nn.init.normal_(value, std=0.1)
    return model


def as_torch(images):
    """[N, H, W, C] -> a tensor [N, C, H, W]."""
    import torch

    return torch.from_numpy(np.array(images).transpose(0, 3, 1, 2))


def flat(levels):
    """[N, h, w, A, values] of each level -> [N, anchors, values]."""
    shape = (len(levels[0]), -1, levels[0].shape[-1])
    return np.concatenate([np.asarray(level).reshape(shape) for level in levels], axis=1)
