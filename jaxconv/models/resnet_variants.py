"""ResNets (resnet.py) with other stems, shortcuts and attention, under timm's names.

ResNet-D ("Bag of Tricks", He et al. 2018, arXiv:1812.01187, Figure 2 and Table 5) changes the
layers that throw values away:

    stem       3x3/2 32, 3x3 32, 3x3 64 instead of the 7x7/2
    unit       stride on the 3x3, not on the 1x1 before it (as our version 1.5 has it)
    shortcut   2x2 average pooling with stride 2, then 1x1, instead of 1x1 with stride 2

    ResNet-50  A, as published: 75.87 top-1; B, with the unit's change: 76.66; C, with the stem's:
               76.87; D, with all: 77.16

ResNet-RS (Bello et al. 2021, arXiv:2103.07579) is ResNet-D with squeeze-and-excitation by 4, and a
3x3/2 convolution instead of the max pooling; its larger networks have up to 420 layers.

ECA-ResNet-D (Wang et al. 2020, arXiv:1910.03151) has efficient channel attention; names with `t` a
stem of 24, 32 and 64 filters. SK-ResNet (Li et al. 2019, arXiv:1903.06586) has selective kernels;
but for `skresnext50_32x4d`, which is the paper's SKNet-50, each kernel sees half of the maps.
"""

from jaxconv.models.registry import Entry
from jaxconv.models.resnet import ResNet, of_depth

_D = {"deep_stem": (32, 32), "shortcut": "pool"}
_T = {"deep_stem": (24, 32), "shortcut": "pool"}
_RS = {**_D, "strided_stem": True, "squeeze": 4, "bottleneck": True}
_PAPERS = {
    "D": (2018, "He et al. 2018, arXiv:1812.01187"),
    "RS": (2021, "Bello et al. 2021, arXiv:2103.07579"),
    "ECA": (2019, "Wang et al. 2020, arXiv:1910.03151"),
    "SK": (2019, "Li et al. 2019, arXiv:1903.06586"),
}
# units of ResNet-RS's stages, and the image size of the published weights
RS = {
    50: ((3, 4, 6, 3), 160),
    101: ((3, 4, 23, 3), 192),
    152: ((3, 8, 36, 3), 256),
    200: ((3, 24, 36, 3), 256),
    270: ((4, 29, 53, 4), 256),
    350: ((4, 36, 72, 4), 288),
    420: ((4, 44, 87, 4), 320),
}
# name -> arguments; errors are not published for these networks, but for resnet50d's.
ECA = {
    "ecaresnet26t": of_depth(26, **_T),
    "ecaresnet50t": of_depth(50, **_T),
    "ecaresnet50d": of_depth(50, **_D),
    "ecaresnet101d": of_depth(101, **_D),
    "ecaresnet200d": of_depth(200, **_D),
    "ecaresnetlight": {"units": (1, 1, 11, 3), "bottleneck": True, "shortcut": "pool"},
}
SK = {
    "skresnet18": of_depth(18, selective=(8, 16, True)),
    "skresnet34": of_depth(34, selective=(8, 16, True)),
    "skresnet50": of_depth(50, selective=(16, 8, True)),
    "skresnet50d": of_depth(50, selective=(16, 8, True), **_D),
    "skresnext50_32x4d": of_depth(50, selective=(16, 32, False), groups=32, group_width=4),
}
MODELS = {
    **{
        f"resnet{d}d": Entry(
            ResNet, of_depth(d, **_D), *_PAPERS["D"], errors=(22.84, 6.48) if d == 50 else None
        )
        for d in (18, 26, 34, 50, 101, 152, 200)
    },
    **{
        f"resnetrs{d}": Entry(
            ResNet, {**_RS, "units": units}, *_PAPERS["RS"], input_size=(size, size, 3)
        )
        for d, (units, size) in RS.items()
    },
    **{n: Entry(ResNet, {**a, "eca": True}, *_PAPERS["ECA"]) for n, a in ECA.items()},
    **{n: Entry(ResNet, a, *_PAPERS["SK"]) for n, a in SK.items()},
}
