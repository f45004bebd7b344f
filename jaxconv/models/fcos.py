"""FCOS (Tian et al. 2019, arXiv:1904.01355, Figure 2): a detector without anchors.

    part      layers                                             outputs
    pyramid   P_3 to P_5 of C_3 to C_5, P_6, P_7                 256 at strides 8 to 128
    classes   four 3x3 to 256, GroupNorm, ReLU, 3x3 to K         logits, sigmoid
    boxes     four 3x3 to 256, GroupNorm, ReLU, 3x3 to 4, ReLU   codes: distances to the four sides
                                              , 3x3 to 1         centerness, sigmoid

Each position stands for itself; as in torchvision it has one anchor, a square of its level's
stride, whose side is the unit of the distances. The score of a detection is the root of the product
of class and centerness. torchvision has a ReLU after the distances where the paper has an
exponential. Its weights know COCO's 91 categories: ids up to 90, and 0, which none has; their
published box AP is 39.2.
"""

import functools

import flax.linen as nn
import jax

from jaxconv.layers import relu
from jaxconv.models.detector import DATA, Detector, Levels, Output, Tower, of_levels
from jaxconv.models.registry import Entry
from jaxconv.models.retinanet import RARE


class FCOS(Detector):
    """A detector with one stage and one box at each position.

    Attributes:
      filters: of the pyramid and the towers.
      head_convs: 3x3 convolutions of each tower.
    """

    filters: int = 256
    head_convs: int = 4

    @classmethod
    def wanted(cls, strides: tuple[int, ...]) -> tuple[int, ...]:
        """C_3 to C_5."""
        return 8, 16, 32

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> dict[str, Levels]:
        """Images [N, H, W, C] -> `logits`, `codes` and `centerness` [N, h, w, A, 1] of each level,
        see detector.py.
        """
        levels = self.pyramid(x, train, "level", filters=self.filters)
        if not self.num_classes:
            return {"pyramid": levels}
        conv, norm = self.tools(train, norm=self.head_norm)
        conv = functools.partial(conv, use_bias=True)
        tools = self.anchors_per_position(), conv, norm, self.head_convs
        classes = Output("logits", self.num_classes, RARE)
        heads = [
            Tower([classes], *tools, name="classes"),
            Tower([Output("codes", 4), Output("centerness", 1)], *tools, name="boxes"),
        ]
        found = of_levels(heads, levels)
        return found | {"codes": tuple(map(relu, found["codes"]))}


MODELS = {
    "fcos_resnet50_fpn": Entry(
        FCOS,
        {
            "backbone": "resnet50",
            "backbone_kwargs": {},
            "norm": "frozen",
            "head_norm": "group",
            "anchor_sizes": ((8,), (16,), (32,), (64,), (128,)),
            "anchor_ratios": (1.0,),
            "score_threshold": 0.2,
            "nms_threshold": 0.6,
        },
        2019,
        "Tian et al. 2019, arXiv:1904.01355",
        (800, 1088, 3),
        (60.8,),
        DATA,
        91,
    )
}
