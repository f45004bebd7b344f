"""The story of depth: depths as papers count them, and charts separated by dataset."""

import itertools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import jaxconv
from jaxconv.errors import UserError
from jaxconv.inspect.depth import weighted_depth
from jaxconv.look.filters import find_kernel
from jaxconv.look.story import (
    WINNERS,
    StoryPoint,
    counted,
    counted_depth,
    of_run,
    place_labels,
    published,
    story,
    winners,
)
from jaxconv.run import train
from tests.conftest import tiny_config


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("lenet5", 5),
        ("alexnet_2012", 8),
        ("zfnet", 8),
        ("vgg16", 16),
        ("vgg19", 19),
        ("googlenet", 22),
        ("resnet18", 18),
        ("resnet152_v1", 152),
        ("resnet20_cifar", 20),
        ("se_resnet50", 50),  # the gates are not counted
        ("mobilenet_v1", 28),
    ],
)
def test_depth_as_the_papers_count(name, layers):
    assert counted_depth(name) == layers


class Loop(nn.Module):
    """Three iterations of one layer, next to a shorter path, and weights computed from others."""

    @nn.compact
    def __call__(self, x):
        step = nn.scan(
            lambda cell, x, _: (cell(x), None),
            variable_broadcast="params",
            split_rngs={"params": False},
            length=3,
        )
        looped, _ = step(nn.Conv(2, (3, 3), name="again"), x, None)
        made = self.param("made", nn.initializers.ones, (2, 2)) @ jnp.ones((2, 2))
        return nn.Dense(3)((looped + nn.Conv(2, (1, 1))(x)).mean((1, 2)) @ made)


def test_depth_of_any_module():
    assert weighted_depth(Loop(), (8, 8, 2)) == 3 + 1 + 1
    assert (
        weighted_depth(jaxconv.create_model("chain", 2, filters=(4, 4), neurons=(8,)), (32, 1)) == 4
    )


def test_counts_are_the_summary_s():
    model = jaxconv.create_model("chain", 3, filters=(4, 8), neurons=(6,), batch_norm=True)
    summary = jaxconv.summarize(model, (16, 16, 1))
    assert counted(model, (16, 16, 1)) == (4, summary.parameters, summary.total("multiply_adds"))
    # Without GoogLeNet's two auxiliary classifiers: 7.0 million parameters, as in torchvision.
    assert published("googlenet").weights == 6_998_552 and published("googlenet").errors == (
        None,
        10.07,
    )
    with pytest.raises(ValueError, match="the registry has no published error of chain"):
        published("chain")


POINTS = [
    StoryPoint("shallow", "ImageNet, one crop", (40.0, 20.0), 2012, 8, 60_000_000, 700_000_000),
    StoryPoint("deep", "ImageNet, dense", (None, 6.0), 2015, 152, 60_000_000, 11_000_000_000),
    StoryPoint("silent", "ImageNet, one crop", (30.0, None), 2014, 20, 5_000_000, 500_000_000),
    StoryPoint(
        "run ($x$)", "xo, split test, own run", (1.5, None), 0, 5, 22_000, 680_000, own=True
    ),
]


def test_sets_never_share_a_panel():
    figure = story(POINTS)
    imagenet, own = figure.subfigs
    assert (
        imagenet.get_suptitle() == "ImageNet: top-5 error in % (unknown for silent)"
        and own.get_suptitle() == "xo: top-1 error in %"
    )
    assert [axis.get_title() for axis in imagenet.axes] == [
        "year",
        "layers with weights",
        "parameters",
        "multiply-adds per image",
    ]
    drawn = [
        np.concatenate([marks.get_offsets() for marks in axis.collections])
        for axis in imagenet.axes
    ]
    assert [sorted(map(tuple, points.tolist())) for points in drawn] == [
        [(2012, 20), (2015, 6)],
        [(8, 20), (152, 6)],
        [(6e7, 6), (6e7, 20)],
        [(7e8, 20), (1.1e10, 6)],
    ]
    assert [text.get_text() for text in imagenet.legends[0].get_texts()] == ["one crop", "dense"]
    assert [text.get_text() for text in own.legends[0].get_texts()] == ["split test, own run"]
    # A network without a year is only in the other three panels.
    assert [
        len(np.concatenate([marks.get_offsets() for marks in axis.collections]))
        for axis in own.axes
    ] == [0, 1, 1, 1]
    assert [text.get_text() for text in own.axes[1].texts if text.get_text()] == ["run ($x$)"]


def test_labels_cover_nothing():
    random = np.random.default_rng(0)
    labels = [
        (float(x), float(y), f"network {n}")
        for n, (x, y) in enumerate(random.uniform(size=(14, 2)))
    ]
    labels += [(0.5, 0.5, "twin"), (0.5, 0.5, "other twin"), (0.99, 0.99, "in the corner")]
    figure = Figure(figsize=(6, 5))
    axis = figure.subplots()
    axis.scatter([x for x, _, _ in labels], [y for _, y, _ in labels], s=16)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    place_labels(axis, labels)
    written = [text for text in axis.texts if text.get_text()]
    assert {text.get_text() for text in written} == {text for _, _, text in labels}
    boxes, frame = [text.get_window_extent() for text in written], axis.get_window_extent()
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(
        frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        for box in boxes
    )
    points = axis.transData.transform([(x, y) for x, y, _ in labels])
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_a_run_tells_its_own_error(tmp_path):
    result = train(tiny_config(), str(tmp_path / "run"))
    point = of_run(str(tmp_path / "run"))
    assert point.errors == (pytest.approx(100 * (1 - result["top1"])), None) and point.own
    assert (point.name, point.data, point.year, point.depth) == (
        "run (chain)",
        "xo, split test, own run",
        2016,
        4,
    )
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows if "eval/top1" not in row)
    )
    with pytest.raises(UserError, match="has not been evaluated yet"):
        of_run(str(tmp_path / "run"))


def test_winners():
    (axis,) = winners().axes
    assert [bar.get_height() for bar in axis.patches] == [error for _, _, _, error in WINNERS]
    over = [text.get_text() for text in axis.texts][::2]
    assert over == [
        "shallow",
        "shallow",
        "8 layers",
        "8 layers",
        "19 layers",
        "22 layers",
        "152 layers",
    ]
    assert [label.get_text() for label in axis.get_xticklabels()][-1] == "ResNet\n2015"


def test_nothing_is_computed():
    """No weights of VGG-16 are allocated: 138 million would take a second and half a gigabyte."""
    before = len(jax.live_arrays())
    published("vgg16")
    assert len(jax.live_arrays()) == before


class Bare(nn.Module):
    def __call__(self, x):
        return nn.relu(x).mean((1, 2))


def test_a_module_without_parameters():
    assert counted(Bare(), (4, 4, 2)) == (0, 0, 0)
    with pytest.raises(ValueError, match="Bare has no convolution"):
        find_kernel(Bare(), {}, (4, 4, 2))
