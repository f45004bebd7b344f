"""The summary table: the lecture's rows, published multiply-adds, receptive fields, any module."""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxconv
from jaxconv.errors import human_bytes
from jaxconv.models.notation import NotationError
from jaxconv.program import trace
from tests.conftest import assert_one_line_error, command
from tests.models.facts import GMACS


def summary_of(name, input_shape=None, classes=None, **settings):
    shape, usual = jaxconv.models.usual_task(name)
    return jaxconv.summarize(
        jaxconv.create_model(name, classes or usual), input_shape or shape, **settings
    )


def row_of(summary, name):
    return next(row for row in summary.rows if row.name == name)


# The lecture's VGG-16, as printed: volume, values ("3.2M" of them) and weights. `3*3*128` in its
# first CONV3-256 row and 294,912 agree.
VGG16 = [
    ("input", "224x224x3", "150K", 0),
    ("conv1_1", "224x224x64", "3.2M", 1_728),
    ("conv1_2", "224x224x64", "3.2M", 36_864),
    ("pool1", "112x112x64", "800K", 0),
    ("conv2_1", "112x112x128", "1.6M", 73_728),
    ("conv2_2", "112x112x128", "1.6M", 147_456),
    ("pool2", "56x56x128", "400K", 0),
    ("conv3_1", "56x56x256", "800K", 294_912),
    ("conv3_2", "56x56x256", "800K", 589_824),
    ("conv3_3", "56x56x256", "800K", 589_824),
    ("pool3", "28x28x256", "200K", 0),
    ("conv4_1", "28x28x512", "400K", 1_179_648),
    ("conv4_2", "28x28x512", "400K", 2_359_296),
    ("conv4_3", "28x28x512", "400K", 2_359_296),
    ("pool4", "14x14x512", "100K", 0),
    ("conv5_1", "14x14x512", "100K", 2_359_296),
    ("conv5_2", "14x14x512", "100K", 2_359_296),
    ("conv5_3", "14x14x512", "100K", 2_359_296),
    ("pool5", "7x7x512", "25K", 0),
    ("fc6", "4096", "4096", 102_760_448),
    ("fc7", "4096", "4096", 16_777_216),
    ("fc8", "1000", "1000", 4_096_000),
]


def printed(text):
    """2.7K -> 2700, within 3%: the lecture rounds thousands loosely."""
    number, unit = re.fullmatch(r"([\d.]+)([KM]?)", text).groups()
    return float(number) * {"": 1, "K": 1e3, "M": 1e6}[unit]


def test_vgg16_is_the_lectures_table():
    summary = summary_of("vgg16")
    # ReLU and dropout have rows, but no memory and no parameters.
    with_memory = [row for row in summary.rows if row.values]
    assert [row.name for row in with_memory] == [name for name, *_ in VGG16]
    assert {
        row.name.partition("_")[0].rstrip("0123456789") for row in summary.rows if not row.values
    } == {"relu", "dropout"}
    for row, (_, volume, values, weights) in zip(with_memory, VGG16, strict=True):
        assert "x".join(map(str, row.volume)) == volume
        assert row.weights == weights
        assert row.values == pytest.approx(printed(values), rel=0.03)


def test_what_the_lecture_prints_otherwise_for_vgg16():
    summary = summary_of("vgg16")
    # "TOTAL memory: 24M * 4 bytes ~= 93MB / image" is not the sum of its rows; "138M parameters"
    # is, biases or not.
    assert summary.total("values") == 15_237_608 and summary.total("bytes") == 4 * 15_237_608
    assert summary.total("weights") == 138_344_128
    assert summary.parameters == 138_357_544


def test_vgg16_in_the_lecture_itself(lecture):
    rows = [
        re.search(r"\[([\dx]+)\].*params:.*?([\d,]+)\$? *$", line) for line in lecture[2289:2333]
    ]
    rows = [(row[1], int(row[2].replace(",", ""))) for row in rows if row]
    expected = [
        (volume if "x" in volume else f"1x1x{volume}", weights) for _, volume, _, weights in VGG16
    ]
    assert rows == expected


ALEXNET = [
    "227x227x3",
    "55x55x96",
    "27x27x96",
    "27x27x96",
    "27x27x256",
    "13x13x256",
    "13x13x256",
    "13x13x384",
    "13x13x384",
    "13x13x256",
    "6x6x256",
    "4096",
    "4096",
    "1000",
]


def test_alexnet_is_the_lectures_table(lecture):
    summary = summary_of("alexnet")
    names = [
        "input",
        "conv1",
        "pool1",
        "norm1",
        "conv2",
        "pool2",
        "norm2",
        "conv3",
        "conv4",
        "conv5",
        "pool3",
        "fc6",
        "fc7",
        "fc8",
    ]
    assert [
        (row.name, "x".join(map(str, row.volume))) for row in summary.rows if row.values
    ] == list(zip(names, ALEXNET, strict=True))
    assert [
        m[1] for m in (re.match(r"\[([\dx]+)\]", line) for line in lecture[2155:2183]) if m
    ] == ALEXNET
    # "each filter 11x11x3": (11 * 11 * 3) * 96 = 35K parameters.
    assert row_of(summary, "conv1").weights == 34_848


# Type, output, params in units of 1,024 and multiply-adds in millions as the lecture's table prints
# them (Szegedy et al. 2014, Table 1).
GOOGLENET = [
    (["conv1"], "112x112x64", 2.7, 34),
    (["conv2_reduce", "conv2"], "56x56x192", 112, 360),
    (["inception3a"], "28x28x256", 159, 128),
    (["inception3b"], "28x28x480", 380, 304),
    (["inception4a"], "14x14x512", 364, 73),
    (["inception4b"], "14x14x512", 437, 88),
    (["inception4c"], "14x14x512", 463, 100),
    (["inception4d"], "14x14x528", 580, 119),
    (["inception4e"], "14x14x832", 840, 170),
    (["inception5a"], "7x7x832", 1072, 54),
    (["inception5b"], "7x7x1024", 1388, 71),
    (["fc"], "1000", 1000, 1),
]


def test_googlenet_is_the_lectures_table_but_for_what_is_misprinted():
    summary = summary_of("googlenet").at_depth(1)
    differing = {}
    for names, volume, params, operations in GOOGLENET:
        rows = [row_of(summary, name) for name in names]
        assert "x".join(map(str, rows[-1].volume)) == volume
        weights, multiply_adds = (
            sum(row.weights for row in rows) / 1024,
            sum(row.multiply_adds for row in rows) / 1e6,
        )
        agrees = params in (math.floor(weights), math.ceil(weights), round(weights, 1))
        if not agrees:
            differing[f"{names[-1]} params"] = (round(weights, 1), params)
        if abs(multiply_adds - operations) > 1.01:
            differing[f"{names[-1]} ops"] = (round(multiply_adds), operations)
    assert differing == {
        "conv1 params": (9.2, 2.7),
        "conv1 ops": (118, 34),
        "inception3b params": (379.0, 380),
        "inception4a params": (366.8, 364),
        "inception4b params": (438.0, 437),
        "inception4c params": (497.5, 463),
        "inception4d params": (590.5, 580),
        "inception4e params": (847.0, 840),
        "inception5a params": (1018.0, 1072),
        "inception5a ops": (51, 54),
        "inception5b params": (1409.0, 1388),
    }
    # "Only 5 million params!": without the two auxiliary classifiers, which the table leaves out,
    # it is seven.
    assert summary.total("weights") == 6_990_272
    assert "of them in parts used only in training" in summary.notes()[0]


def test_the_lectures_connections():
    # Its 8x8 image under one 3x3 filter: 6 * 6 * 9 connections, where a fully connected layer would
    # need 64 * 36.
    row = row_of(jaxconv.summarize(jaxconv.from_text("conv3-1p0"), (8, 8, 1)), "conv1")
    assert (row.multiply_adds, row.dense_multiply_adds) == (324, 2304)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(GMACS))
def test_multiply_adds_as_published(name):
    summary = summary_of(name)
    assert summary.total("multiply_adds") / 1e9 == pytest.approx(GMACS[name], abs=6e-4)
    assert summary.total("weights") + summary.total("biases") == summary.parameters


def test_receptive_fields_as_known():
    # Araujo et al. 2019, table of common networks: VGG-16's last map 212 at stride 32, ResNet-50
    # (stride on the 1x1) 483 at 32.
    vgg = row_of(summary_of("vgg16"), "pool5")
    assert (vgg.field, vgg.stride) == ((212, 212), (32, 32))
    resnet = jaxconv.feature_info(jaxconv.create_model("resnet50_v1", 0), (224, 224, 3))["conv5"]
    assert (resnet.field, resnet.stride, resnet.channels) == ((483, 483), (32, 32), 2048)
    alexnet = row_of(summary_of("alexnet"), "pool3")
    assert (alexnet.field, alexnet.stride) == ((195, 195), (32, 32))


LAYERS = st.sampled_from(
    [
        "conv3-2",
        "conv2-2p0",
        "conv5-2/2",
        "conv3-2/3p0",
        "conv3-2d2",
        "conv1-2/2",
        "maxpool2",
        "maxpool3/2",
        "maxpool3/2ceil",
        "maxpool3/1p1",
    ]
    + ["avgpool2", "avgpool3/1", "lrn", "relu", "adaptpool5", "conv4-2/2p1"]
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(LAYERS, min_size=1, max_size=4), st.integers(24, 40))
def test_a_value_sees_what_its_receptive_field_says(layers, width):
    model = jaxconv.from_text(" ".join(layers))
    x = jax.ShapeDtypeStruct((1, width, 1), jnp.float32)
    try:
        variables = jaxconv.models.abstract_variables(model, x.shape)
    except (ValueError, ZeroDivisionError):
        return  # the width does not fit the layers
    seen = trace(model, variables, x, train=False).events[-1].seen
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), variables)
    # A NaN in one pixel reaches exactly the values that see it.
    images = jnp.where(jnp.eye(width, dtype=bool), jnp.nan, 1.0)[..., None]
    reached = np.isnan(np.asarray(model.apply(ones, images, train=False)))[..., 0]
    low, high = seen.extents[0]
    jump = seen.axes[1][1] if seen.axes[1] else 0
    for index in range(reached.shape[1]):
        pixels = np.flatnonzero(reached[:, index])
        assert pixels.min() >= jump * index + low and pixels.max() <= jump * index + high
        exact = not any(word in " ".join(layers) for word in ("d2", "/3", "conv1", "adapt", "ceil"))
        if exact and jump * index + low >= 0 and jump * index + high < width:
            assert (pixels.min(), pixels.max()) == (jump * index + low, jump * index + high)


def test_convolution_transposed_and_flattened_keep_their_fields():
    class Foreign(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), padding="VALID", name="first")(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
            x = x.transpose(0, 2, 1, 3)[:, ::2, 1:]
            x = nn.avg_pool(x, (2, 2), (1, 1))
            x = x.reshape(x.shape[0], -1, x.shape[-1])
            return nn.Dense(3, name="votes")(x.mean(axis=1))

    summary = jaxconv.summarize(Foreign(), (18, 18, 1))
    assert [(row.name, row.volume, row.field, row.stride) for row in summary.rows] == [
        ("input", (18, 18, 1), (1, 1), (1, 1)),
        ("first", (16, 16, 4), (3, 3), (1, 1)),
        ("max_pool", (8, 8, 4), (4, 4), (2, 2)),
        ("average_pool", (3, 6, 4), (6, 8), (2, 4)),
        ("votes", (3,), (16, 16), (0, 0)),
    ]


def test_any_linen_module():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic):
            y = nn.remat(nn.Conv)(8, (3, 3), strides=2, name="conv")(x)
            y = nn.Dropout(0.5)(y, deterministic=deterministic)
            mix = self.param("mix", nn.initializers.ones, (8, 8))
            return jnp.einsum("nhwc,cd->nhwd", y, mix) + nn.Conv(
                8, (1, 1), strides=2, use_bias=False, name="shortcut"
            )(x)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic):
            x = Block(name="block")(x, deterministic)
            shared = nn.Dense(8, name="shared")
            return jnp.mean(shared(shared(x)), axis=(1, 2))

    summary = jaxconv.summarize(Net(), (16, 16, 3), batch=4)
    assert (
        summary.parameters
        == sum(row.weights + row.biases for row in summary.rows)
        == 9 * 3 * 8 + 8 + 64 + 24 + 8 * 8 + 8
    )
    assert row_of(summary, "block/conv").multiply_adds == 8 * 8 * 9 * 3 * 8
    assert row_of(summary, "block/matrix_product").multiply_adds == 8 * 8 * 64
    shared = [row for row in summary.rows if row.name == "shared"]
    assert [(row.weights, row.multiply_adds) for row in shared] == [(64, 64 * 64), (0, 64 * 64)]
    assert row_of(summary.at_depth(1), "block").volume == (8, 8, 8)
    assert row_of(summary.at_depth(1), "block").field == (3, 3)


def test_an_embedding_multiplies_nothing():
    """Its one-hot codes stand for rows of the table; a 1x1 convolution of them is a product."""
    embedded, convolved = (
        jaxconv.summarize(jaxconv.models.from_text(f"{layer} relu fc2", 2), (20, 1000))
        for layer in ("embed8", "conv1-8")
    )
    row = row_of(embedded, "embed")
    assert (row.volume, row.values, row.weights) == ((20, 8), 160, 8_000)
    assert row.multiply_adds == row.dense_multiply_adds == 0
    assert row_of(convolved, "conv1").multiply_adds == 20 * 1000 * 8
    assert embedded.total("multiply_adds") == row_of(embedded, "fc1").multiply_adds == 20 * 8 * 2


def test_loops_are_counted_as_often_as_they_go_round():
    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Conv(4, (3, 3), use_bias=False, name="conv")(x), None

    class Looped(nn.Module):
        @nn.compact
        def __call__(self, x):
            many = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return nn.Dense(2, name="votes")(many(name="many")(x, None)[0].mean(axis=(1, 2)))

    summary = jaxconv.summarize(Looped(), (6, 6, 4))
    assert summary.total("multiply_adds") == 3 * 36 * 9 * 4 * 4 + 4 * 2
    assert (
        summary.parameters
        == summary.total("weights") + summary.total("biases")
        == 3 * 9 * 4 * 4 + 4 * 2 + 2
    )
    assert row_of(summary, "votes").field == (np.inf, np.inf)


def test_results_of_a_loop_keep_their_own_ranks():
    class Looped(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), name="conv")(x)
            first = jnp.sum(x), x.reshape(len(x), -1, 4)
            total, x = jax.lax.while_loop(
                lambda held: held[0] > 0, lambda held: (held[0] - 1, held[1] + held[0]), first
            )
            return nn.Dense(2, name="votes")(x.reshape(len(x), -1)) + total

    summary = jaxconv.summarize(Looped(), (6, 6, 3))
    assert row_of(summary, "votes").field == (np.inf, np.inf)
    assert row_of(summary, "conv").field == (3, 3)


def test_a_module_that_is_a_layer_itself_and_one_that_returns_nothing():
    row = jaxconv.summarize(nn.Dense(3), (5,)).rows[-1]
    assert (row.name, row.volume, row.weights, row.biases, row.multiply_adds) == (
        "module",
        (3,),
        15,
        3,
        15,
    )

    class Silent(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("intermediates", "mean", x.mean())

    class Net(jaxconv.models.Network):
        @nn.compact
        def __call__(self, x, train=False):
            Silent(name="silent")(x)
            matrix = self.param("matrix", nn.initializers.ones, (4, 2))
            return self.note("votes", nn.Conv(4, (3, 3), name="conv")(x).mean(axis=(1, 2)) @ matrix)

    summary = jaxconv.summarize(Net(2), (6, 6, 1))
    assert [row.name for row in summary.rows if row.multiply_adds] == ["conv", "matrix_product"]
    assert summary.total("multiply_adds") == 36 * 9 * 4 + 8
    assert summary.parameters == summary.total("weights") + summary.total("biases") == 36 + 4 + 8
    assert "only training" not in summary.notes()[0]


def test_squeeze_and_excite_sees_everything():
    info = jaxconv.feature_info(
        jaxconv.create_model("se_resnet50", 10, units=(1, 1, 1, 1)), (64, 64, 3)
    )
    assert info["conv2"].field == (np.inf, np.inf) and info["conv2"].stride == (4, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["chain", "googlenet", "resnet18", "mobilenet_v2", "densenet121", "convnext_tiny"]
)
def test_feature_info_is_of_the_features(name):
    model, shape = jaxconv.create_model(name, 10), (97, 97, 3)
    variables = jaxconv.models.abstract_variables(model, (1, *shape))
    maps = jax.eval_shape(
        lambda v, x: jaxconv.features(model, v, x),
        variables,
        jax.ShapeDtypeStruct((1, *shape), jnp.float32),
    )
    info = jaxconv.feature_info(model, shape)
    assert {name: (1, *feature.shape) for name, feature in info.items()} == {
        name: value.shape for name, value in maps.items()
    }
    assert all(feature.channels == feature.shape[-1] for feature in info.values())


def test_no_weight_is_allocated_and_types_count():
    before = {id(array) for array in jax.live_arrays()}
    full, half = summary_of("vgg19", batch=2), summary_of("vgg19", batch=2, dtype=jnp.bfloat16)
    assert sum(array.nbytes for array in jax.live_arrays() if id(array) not in before) < 1e6
    conv = row_of(full, "conv1_1")
    assert conv.bytes == 4 * conv.values
    # The network computes in float32 unless it is built with another dtype; its input alone is
    # smaller.
    assert row_of(half, "input").bytes == 2 * row_of(half, "input").values
    assert full.training["gradients"] == full.training["optimizer state"] == 4 * full.parameters


def test_training_memory_grows_with_the_batch():
    small, large = (
        summary_of("resnet20_cifar", batch=batch).training["activations"] for batch in (2, 8)
    )
    assert 3.9 * small < large < 4.1 * small


def test_compiled_figures():
    compiled = summary_of("lenet5", batch=4, compile_step=True).compiled
    # Parameters, momentum and the batch go in.
    assert compiled["arguments"] >= 2 * 4 * 61_706 + 4 * 32 * 32 * 4
    assert compiled["temporary"] > 0 and compiled["seconds"] > 0


def test_human_bytes():
    assert [
        human_bytes(n) for n in (0, 999, 1000, 99_949, 99_960, 999_499, 999_501, 5e9, 3e12)
    ] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "99.9 kB",
        "100 kB",
        "999 kB",
        "1.0 MB",
        "5.0 GB",
        "3000 GB",
    ]


def test_errors():
    with pytest.raises(NotationError):
        summary_of("text:conv3-4 maxpol2")
    with pytest.raises(ValueError, match="pool2"):
        summary_of("alexnet", (30, 30, 3))


@pytest.mark.slow
def test_the_command():
    process = command("summary", "vgg16", "--batch=2", "--markdown")
    assert process.returncode == 0, process.stderr
    assert "| conv1_2 | 224x224x64 | 12.8 MB | 36,864 | 64 | 1,849,688,064 |" in process.stdout
    process = command(
        "summary", "text:conv3-4/2 relu globalpool fc3", "--input=100,2", "--dtype=bfloat16"
    )
    assert process.returncode == 0 and "50x4" in process.stdout and "bfloat16" in process.stdout
    assert_one_line_error(command("summary", "resnet5"), 2, "did you mean", "resnet50")
    assert_one_line_error(
        command("summary", "alexnet", "--input=30,30,3"), 2, "(2 - 3)/2 + 1 = 0.50"
    )
    assert_one_line_error(command("summary", "alexnet", "--input=227"), 2, "--input=227")
