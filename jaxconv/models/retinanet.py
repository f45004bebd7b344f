"""RetinaNet (Lin et al. 2017, arXiv:1708.02002, Figure 3): two towers on every level of a pyramid.

    part      layers                                   outputs
    pyramid   P_3 to P_5 of C_3 to C_5, P_6, P_7       256 at strides 8 to 128
    classes   four 3x3 to 256, ReLU, 3x3 to A x K      logits, sigmoid
    boxes     four 3x3 to 256, ReLU, 3x3 to A x 4      codes
    anchors   of 32 to 512 pixels, times 1, 2^(1/3), 2^(2/3), ratios 1/2, 1, 2: A = 9

The two towers are shared by the levels. The bias of the logits is such that each class has a
probability of 0.01 at first. Version 2 is torchvision's (pull request 5756): BatchNorm that is
trained, P_6 from C_5, GroupNorm in the towers, and the loss of boxes is GIoU.

torchvision's weights know COCO's 91 categories: ids up to 90, and 0, which none has. Their
published box AP: 36.4; version 2: 41.5.
"""

import math

import flax.linen as nn
import jax

from jaxconv.errors import nearest
from jaxconv.models.detector import DATA, Detector, Levels, Output, Tower, of_levels
from jaxconv.models.fpn import EXTRA
from jaxconv.models.registry import Entry

# So that the first probability of a class is 0.01.
RARE = -math.log((1 - 0.01) / 0.01)


class RetinaNet(Detector):
    """A detector with one stage.

    Attributes:
      extra: what P_6 is made of, `level` P_5 or `map` C_5; see `fpn.EXTRA`.
      box_loss: `l1` of the codes or `giou` of the boxes.
      filters: of the pyramid and the towers.
      head_convs: 3x3 convolutions of each tower.
    """

    extra: str = "level"
    box_loss: str = "l1"
    filters: int = 256
    head_convs: int = 4

    @classmethod
    def wanted(cls, strides: tuple[int, ...]) -> tuple[int, ...]:
        """C_3 to C_5."""
        return 8, 16, 32

    def check(self) -> None:
        """Raise ValueError for settings that are impossible or would do nothing."""
        super().check()
        for name, known in (("extra", EXTRA[1:]), ("box_loss", ("l1", "giou"))):
            if (value := getattr(self, name)) not in known:
                raise ValueError(
                    f"{name} is {value!r}{nearest(value, known)}; it must be one of "
                    f"{', '.join(known)}"
                )

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> dict[str, Levels]:
        """Images [N, H, W, C] -> `logits` and `codes` of each level, see detector.py."""
        levels = self.pyramid(x, train, self.extra, filters=self.filters)
        if not self.num_classes:
            return {"pyramid": levels}
        tools = (*self.tools(train, norm=self.head_norm), self.head_convs)
        anchors = self.anchors_per_position()
        classes = Output("logits", self.num_classes, RARE)
        heads = [
            Tower([classes], anchors, *tools, name="classes"),
            Tower([Output("codes", 4)], anchors, *tools, name="boxes"),
        ]
        return of_levels(heads, levels)


PAPER = "Lin et al. 2017, arXiv:1708.02002"
# Whole numbers of pixels, as torchvision has them.
SIZES = tuple(
    (size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in (32, 64, 128, 256, 512)
)
_ARGUMENTS = {
    "backbone": "resnet50",
    "backbone_kwargs": {},
    "anchor_sizes": SIZES,
    "detections": 300,
}
MODELS = {
    "retinanet_resnet50_fpn": Entry(
        RetinaNet,
        {**_ARGUMENTS, "norm": "frozen"},
        2017,
        PAPER,
        (800, 1088, 3),
        (63.6,),
        DATA,
        91,
    ),
    "retinanet_resnet50_fpn_v2": Entry(
        RetinaNet,
        {**_ARGUMENTS, "head_norm": "group", "extra": "map", "box_loss": "giou"},
        2022,
        PAPER,
        (800, 1088, 3),
        (58.5,),
        DATA,
        91,
    ),
}
