"""The compared networks in PyTorch, with torchvision's layers, for machines without torchvision;
fcn_resnet50 and deeplabv3_resnet50 are torchvision's own.

`PARAMETERS` has torchvision's parameter counts (for LeNet-5 jaxconv's), which `build` checks.
"""

import torch
from torch import nn

PARAMETERS = {
    "lenet5": 61_706,
    "alexnet_torchvision": 61_100_840,
    "vgg16": 138_357_544,
    "googlenet_torchvision": 6_624_904,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "mobilenet_v2": 3_504_872,
    "convnext_tiny": 28_589_128,
    # With 21 classes; U-Net's is this file's.
    "fcn_resnet50": 35_322_218,
    "deeplabv3_resnet50": 42_004_074,
    "unet": 31_038_933,
}
SEGMENTATION = ("fcn_resnet50", "deeplabv3_resnet50", "unet")
INCEPTIONS = [
    (192, 64, 96, 128, 16, 32, 32),
    (256, 128, 128, 192, 32, 96, 64),
    3,
    (480, 192, 96, 208, 16, 48, 64),
    (512, 160, 112, 224, 24, 64, 64),
    (512, 128, 128, 256, 24, 64, 64),
    (512, 112, 144, 288, 32, 64, 64),
    (528, 256, 160, 320, 32, 128, 128),
    2,
    (832, 256, 160, 320, 32, 128, 128),
    (832, 384, 192, 384, 48, 128, 128),
]


class Residual(nn.Module):
    """act(shortcut(x) + scale * body(x)); `drop` is the probability of dropping an image's body."""

    def __init__(self, body, shortcut=None, act=None, scale=None, drop=0.0):
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut or nn.Identity(), act or nn.Identity()
        self.scale = None if scale is None else nn.Parameter(torch.full((scale, 1, 1), 1e-6))
        self.drop = drop

    def forward(self, x):
        y = self.body(x)
        if self.scale is not None:
            y = y * self.scale
        if self.drop and self.training:
            y = y * torch.empty(len(y), 1, 1, 1, device=y.device, dtype=y.dtype).bernoulli_(
                1 - self.drop
            ).div_(1 - self.drop)
        return self.act(self.shortcut(x) + y)


class Beside(nn.Module):
    """Parallel branches, whose feature maps are concatenated."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [N, C, H, W]."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv_norm(seen, filters, size=1, stride=1, groups=1, act=nn.ReLU, epsilon=1e-5):
    layers = [
        nn.Conv2d(seen, filters, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(filters, eps=epsilon),
    ]
    return nn.Sequential(*layers, *([act(inplace=True)] if act else []))


def lenet5(classes):
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, classes),
    )


def classifier(seen, neurons, classes, dropout_first):
    dropped = [[nn.Dropout(), nn.Linear(n, neurons), nn.ReLU(True)] for n in (seen, neurons)]
    layers = sum(dropped if dropout_first else [d[1:] + d[:1] for d in dropped], [])
    return [nn.Flatten(), *layers, nn.Linear(neurons, classes)]


def alexnet(classes):
    layers, seen = [], 3
    rows = (
        (64, 11, 4, 2, True),
        (192, 5, 1, 2, True),
        (384, 3, 1, 1, False),
        (256, 3, 1, 1, False),
        (256, 3, 1, 1, True),
    )
    for filters, size, stride, padding, pool in rows:
        layers += [
            nn.Conv2d(seen, filters, size, stride, padding),
            nn.ReLU(True),
            *([nn.MaxPool2d(3, 2)] if pool else []),
        ]
        seen = filters
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(6), *classifier(256 * 36, 4096, classes, dropout_first=True)
    )


def vgg16(classes):
    layers, seen = [], 3
    for filters, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            layers += [nn.Conv2d(seen, filters, 3, padding=1), nn.ReLU(True)]
            seen = filters
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(7), *classifier(512 * 49, 4096, classes, dropout_first=False)
    )


def googlenet(classes):
    """Without the auxiliary classifiers."""

    def conv(*arguments):
        return conv_norm(*arguments, epsilon=1e-3)

    def pool(size, stride=2):
        return nn.MaxPool2d(size, stride, padding=1 if stride == 1 else 0, ceil_mode=True)

    layers = [conv(3, 64, 7, 2), pool(3), conv(64, 64), conv(64, 192, 3), pool(3)]
    for sizes in INCEPTIONS:
        if isinstance(sizes, int):
            layers.append(pool(sizes))
            continue
        seen, one, three_reduce, three, five_reduce, five, projected = sizes
        layers.append(
            Beside(
                conv(seen, one),
                nn.Sequential(conv(seen, three_reduce), conv(three_reduce, three, 3)),
                nn.Sequential(conv(seen, five_reduce), conv(five_reduce, five, 3)),
                nn.Sequential(pool(3, 1), conv(seen, projected)),
            )
        )
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1024, classes)
    )


def resnet(classes, units, bottleneck=True, groups=1, group_width=64):
    layers, seen = [conv_norm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for stage, count in enumerate(units):
        width, middle = 64 * 2**stage * (4 if bottleneck else 1), groups * group_width * 2**stage
        for unit in range(count):
            stride = 2 if stage and not unit else 1
            if bottleneck:
                body = [
                    conv_norm(seen, middle),
                    conv_norm(middle, middle, 3, stride, groups),
                    conv_norm(middle, width, act=None),
                ]
            else:
                body = [conv_norm(seen, width, 3, stride), conv_norm(width, width, 3, act=None)]
            shortcut = (
                conv_norm(seen, width, 1, stride, act=None) if stride > 1 or seen != width else None
            )
            layers.append(Residual(nn.Sequential(*body), shortcut, nn.ReLU(True)))
            seen = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(seen, classes))


def mobilenet_v2(classes):
    layers, seen = [conv_norm(3, 32, 3, 2, act=nn.ReLU6)], 32
    rows = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, filters, units, first_stride in rows:
        for unit in range(units):
            stride, wide = 1 if unit else first_stride, seen * expansion
            body = [] if expansion == 1 else [conv_norm(seen, wide, act=nn.ReLU6)]
            body += [
                conv_norm(wide, wide, 3, stride, wide, nn.ReLU6),
                conv_norm(wide, filters, act=None),
            ]
            layers.append(
                Residual(nn.Sequential(*body))
                if stride == 1 and seen == filters
                else nn.Sequential(*body)
            )
            seen = filters
    layers.append(conv_norm(seen, 1280, act=nn.ReLU6))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, classes)
    )


def convnext_tiny(classes):
    widths, blocks, done = (96, 192, 384, 768), (3, 3, 9, 3), 0
    layers = [nn.Conv2d(3, 96, 4, 4), ChannelNorm(96, eps=1e-6)]
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        if stage:
            layers += [
                ChannelNorm(widths[stage - 1], eps=1e-6),
                nn.Conv2d(widths[stage - 1], width, 2, 2),
            ]
        for _ in range(count):
            body = nn.Sequential(
                nn.Conv2d(width, width, 7, padding=3, groups=width),
                ChannelNorm(width, eps=1e-6),
                nn.Conv2d(width, 4 * width, 1),
                nn.GELU(),
                nn.Conv2d(4 * width, width, 1),
            )
            layers.append(Residual(body, scale=width, drop=0.1 * done / (sum(blocks) - 1)))
            done += 1
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(1),
        ChannelNorm(768, eps=1e-6),
        nn.Flatten(),
        nn.Linear(768, classes),
    )


class UNet(nn.Module):
    """Ronneberger et al. 2015, Figure 1, with padding and BatchNorm; returns logits alone."""

    def __init__(self, classes, widths=(64, 128, 256, 512, 1024)):
        super().__init__()

        def convs(before, after):
            layers = []
            for channels in (before, after):
                layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False)]
                layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers)

        steps = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList([convs(3, widths[0]), *(convs(a, b) for a, b in steps)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, 2) for a, b in steps])
        self.joined = nn.ModuleList([convs(2 * a, a) for a, _ in steps])
        self.last = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x):
        maps = []
        for n, part in enumerate(self.down):
            x = part(nn.functional.max_pool2d(x, 2) if n else x)
            maps.append(x)
        for n in reversed(range(len(self.up))):
            x = self.joined[n](torch.cat([maps[n], self.up[n](x)], 1))
        return self.last(x)


def of_torchvision(name):
    """A builder of torchvision's segmentation network."""

    def make(classes):
        # A build for another device has these two only declared.
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        from torchvision.models import get_model

        settings = {"weights": None, "weights_backbone": None, "aux_loss": True}
        return get_model(name, num_classes=classes, **settings)

    return make


BUILDERS = {
    "lenet5": lenet5,
    "alexnet_torchvision": alexnet,
    "vgg16": vgg16,
    "googlenet_torchvision": googlenet,
    "resnet18": lambda classes: resnet(classes, (2, 2, 2, 2), bottleneck=False),
    "resnet50": lambda classes: resnet(classes, (3, 4, 6, 3)),
    "resnet152": lambda classes: resnet(classes, (3, 8, 36, 3)),
    "resnext50_32x4d": lambda classes: resnet(classes, (3, 4, 6, 3), groups=32, group_width=4),
    "mobilenet_v2": mobilenet_v2,
    "convnext_tiny": convnext_tiny,
    "fcn_resnet50": of_torchvision("fcn_resnet50"),
    "deeplabv3_resnet50": of_torchvision("deeplabv3_resnet50"),
    "unet": UNet,
}


def build(name: str, classes: int) -> nn.Module:
    """The network with jaxconv's name; RuntimeError if its parameter count is not torchvision's."""
    model = BUILDERS[name](classes)
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != PARAMETERS[name]:
        raise RuntimeError(
            f"{name} has {count:,} parameters here but {PARAMETERS[name]:,} in torchvision"
        )
    return model
