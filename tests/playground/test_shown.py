"""What the page receives: the network's maps, and pictures from drawings, samples and files."""

import functools
import io

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

import jaxconv
from jaxconv.data import xo
from jaxconv.data.augment import make_preprocess
from jaxconv.errors import UserError
from jaxconv.look.filters import find_kernel
from jaxconv.models import create_model
from jaxconv.playground.rows import MOST, MapRow, chosen
from jaxconv.playground.shown import MOST_POINTS, decoded, drawn, make_view, sample
from tests.playground.serving import parts, xo_config


def shown_chain(**arguments):
    model, preprocess = create_model("chain", 2, **arguments), make_preprocess(xo_config())
    variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 1), np.float32), train=False)
    return model, variables, make_view(model, preprocess, variables, (16, 16, 1), xo.CLASS_NAMES)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_an_answer_is_what_the_network_computes(batch_norm):
    model, variables, shown = shown_chain(filters=(5, 20), neurons=(7,), batch_norm=batch_norm)
    image, _ = xo.draw(0, "test", 3, 16, xo.Variation(noise=0.5))
    header, picture, filters, maps = parts(shown.answer(variables, image, {"id": 3}))
    np.testing.assert_array_equal(picture, image)
    inputs = (image[None].astype(np.float32) / 255 - 0.5) / 0.5
    votes = model.apply(variables, inputs, train=False)[0]
    np.testing.assert_allclose([vote["vote"] for vote in header["votes"]], votes, atol=1e-4)
    np.testing.assert_allclose(
        [vote["probability"] for vote in header["votes"]], jax.nn.softmax(votes), atol=1e-4
    )
    assert header["id"] == 3 and header["best"] == xo.CLASS_NAMES[int(np.argmax(votes))]

    noted = jaxconv.features(model, variables, inputs)
    one, two = (["norm1_1"], ["norm2_1"]) if batch_norm else ([], [])
    names = [stage["name"] for stage in header["stages"]]
    assert names == [
        "conv1_1",
        *one,
        "ReLU",
        "pool1",
        "conv2_1",
        *two,
        "ReLU",
        "pool2",
        "fc1",
        "fc1",
    ] and header["total"] == len(names)
    for n, (stage, values) in enumerate(zip(header["stages"], maps, strict=True)):
        if stage["name"] == "ReLU":
            np.testing.assert_allclose(
                values * stage["peak"],
                np.maximum(maps[n - 1] * header["stages"][n - 1]["peak"], 0),
                atol=stage["peak"],
            )
            assert stage["what"] == f"max(0, {names[n - 1]})"
        elif (
            stage["name"] in noted and n != len(names) - 2
        ):  # the intermediate named fc1 is the output of its ReLU
            real = np.asarray(noted[stage["name"]][0]).reshape(*stage["pixels"], -1)
            assert stage["channels"] == real.shape[-1]
            real = real[..., :16]
            assert stage["peak"] == pytest.approx(np.abs(real).max(), rel=1e-5)
            # 254 steps from the least to the greatest.
            np.testing.assert_allclose(values * stage["peak"] / 127, real, atol=stage["peak"] / 253)
    # The pooled stack is pooled from the ReLU's output, with or without batch norm.
    relu = names.index("ReLU")
    pooled = maps[relu].reshape(8, 2, 8, 2, 5).max((1, 3)) * header["stages"][relu]["peak"] / 127
    np.testing.assert_allclose(pooled, noted["pool1"][0], atol=header["stages"][relu]["peak"] / 253)
    assert header["filters"]["of"] == "conv1_1"
    kernel = variables["params"]["conv1_1"]["kernel"]
    np.testing.assert_allclose(
        filters * header["filters"]["peak"] / 127, kernel, atol=header["filters"]["peak"] / 253
    )


class Own(nn.Module):
    """Forty convolutions, and a parameter that only looks like the first one's filters."""

    @nn.compact
    def __call__(self, x, train=False):
        decoy = self.param("a_decoy", nn.initializers.normal(), (3, 3, 3, 5))
        for n in range(40):
            x = nn.Conv(3, (3, 3), name=f"layer{n}")(x)
        return nn.Dense(3, name="out")(x.mean((1, 2))) + decoy.sum()


def shown_of(model, shape=(32, 32, 3), classes=10):
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), np.zeros((1, *shape), np.float32)
    )
    return variables, make_view(
        model, make_preprocess(xo_config()), variables, shape, tuple("abcdefghij")[:classes]
    )


def test_large_maps_are_thinned_and_own_networks_work():
    variables, shown = shown_of(Own(), (100, 90, 3), 3)
    assert (len(shown.stages), shown.total) == (
        MOST,
        41,
    )  # with the unnamed mean, and without the votes
    assert (shown.stages[0].name, shown.stages[-2].name, shown.stages[-1].what) == (
        "layer0",
        "layer39",
        "each map pooled to one value",
    )
    assert shown.stages[0].pixels == (100, 90) and shown.stages[0].shape == (50, 45, 3)
    header, picture, filters, _ = parts(
        shown.answer(variables, np.zeros((100, 90, 3), np.uint8), {})
    )
    assert (
        picture.shape == (100, 90, 3)
        and filters.shape == (3, 3, 3, 3)
        and len(header["votes"]) == 3
    )
    assert (header["total"], len(header["stages"])) == (41, MOST)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Own, (32, 32, 3)),
        (lambda: create_model("chain", 10, filters=(20, 8)), (32, 32, 1)),
        (lambda: create_model("resnet20_cifar", 10), (32, 32, 3)),
    ],
)
def test_the_first_filters_are_those_that_look_filters_draws(make, shape):
    model = make()
    variables, shown = shown_of(model, shape)
    header, _, filters, _ = parts(shown.answer(variables, np.zeros(shape, np.uint8), {}))
    name, kernel = find_kernel(model, variables, shape)
    assert header["filters"]["of"] == name
    peak = np.abs(kernel[..., :16]).max()
    np.testing.assert_allclose(
        filters * header["filters"]["peak"] / 127, kernel[..., :16], atol=peak / 253
    )


class Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(10, name="out")(nn.relu(nn.Dense(4, name="hidden")(x.reshape(1, -1))))


def test_a_network_without_convolutions_has_no_filters():
    variables, shown = shown_of(Perceptron(), (8, 8, 1))
    header, _, filters, maps = parts(shown.answer(variables, np.full((8, 8, 1), 9, np.uint8), {}))
    assert filters.size == 0 and header["filters"]["of"] == ""
    assert [(stage["name"], stage["shape"]) for stage in header["stages"]] == [
        ("hidden", [1, 1, 4]),
        ("ReLU", [1, 1, 4]),
    ]
    assert min(values.min() for values in maps) < 0 <= maps[1].min()


def test_few_stages_are_all_shown_norms_too():
    model = create_model("chain", 10, filters=(8, 8, 8, 8), batch_norm=True, global_pool=True)
    _, shown = shown_of(model)
    stage = [name for m in range(1, 5) for name in (f"conv{m}_1", f"norm{m}_1", "ReLU", f"pool{m}")]
    assert [row.name for row in shown.stages] == [*stage, "global_pool"] and shown.total == 17


def test_norms_and_what_is_inside_of_blocks_are_left_out_first():
    _, shown = shown_of(create_model("resnet20_cifar", 10))
    # The outputs of the stem and of each of 9 blocks, and the mean; not the 19 norms, nor what is
    # inside blocks.
    blocks = [f"conv{stage}_{n}" for stage in (2, 3, 4) for n in (1, 2, 3)]
    assert [row.name for row in shown.stages] == ["conv1", *blocks, "pool"] and shown.total == 58


@pytest.mark.parametrize("batch_norm", [False, True])
def test_of_many_convolutions_some_are_shown_with_their_relu_and_pooling(batch_norm):
    model = create_model("chain", 10, filters=(4, 4, 4, 4), convs=6, batch_norm=batch_norm)
    _, shown = shown_of(model)
    names = [row.name for row in shown.stages]
    assert shown.total == 4 * (6 * (2 + batch_norm) + 1) and MOST - 3 <= len(names) <= MOST
    assert names[0] == "conv1_1" and names[-3:] == ["conv4_6", "ReLU", "pool4"]
    for n, row in enumerate(shown.stages):
        if row.name.startswith("conv"):
            norm = row.name.replace("conv", "norm") if batch_norm else row.name
            assert (shown.stages[n + 1].name, shown.stages[n + 1].what) == (
                "ReLU",
                f"max(0, {norm})",
            )
            assert names[n + 2].startswith("pool") is row.name.endswith("_6")


def test_blocks_are_not_left_out_where_too_little_would_be_left():
    def row(name, kind):
        return MapRow(name, "", np.zeros((1, 1, 1)), kind, name.count("/"))

    rows = [
        row("stem", "convolution"),
        *(
            row(f"body/{kind[0]}{n}", kind)
            for n in range(30)
            for kind in ("convolution", "ReLU", "norm")
        ),
    ]
    found = chosen(rows)
    assert (
        MOST - 1 <= len(found) <= MOST and found[0].name == "stem" and found[-1].name == "body/R29"
    )
    assert [row.kind for row in found[1:]] == ["convolution", "ReLU"] * (len(found) // 2)
    assert chosen(rows[:MOST]) == rows[:MOST]


def test_a_drawing_has_the_picture_s_shape():
    assert drawn([[[0.2, 0.2], [0.8, 0.8]]], (32, 32, 3), 0.0, True).shape == (32, 32, 3)
    assert not drawn([], (32, 32, 1), 0.0, True).any()


@pytest.mark.parametrize(
    ("strokes", "message"),
    [
        ([[[0.1, float("nan")]]], "far outside"),
        ([[[0.1, 9.0]]], "far outside"),
        ([[[0.1, 0.2, 0.3]]], "not a list of lines"),
        ([[["a", "b"]]], "not a list of lines"),
        ([7], "not a list of lines"),
        (
            [[[0.5, 0.5]] * (MOST_POINTS + 1)],
            f"has {MOST_POINTS + 1} points; at most {MOST_POINTS}",
        ),
    ],
)
def test_bad_drawings_are_refused(strokes, message):
    with pytest.raises(UserError, match=message):
        drawn(strokes, (32, 32, 1), 0.0, True)


@pytest.mark.parametrize("figure", ["x", "o"])
def test_a_sample_is_the_figure_and_moves_smoothly(figure):
    plain = sample(figure, 0, (32, 32, 1), xo.Variation())
    wanted = next(
        image
        for image, label in (xo.draw(0, "train", i) for i in range(40))
        if xo.CLASS_NAMES[label] == figure
    )
    np.testing.assert_array_equal(plain, wanted)
    moved = [
        sample(figure, 5, (32, 32, 1), xo.Variation(translation=share)).astype(int)
        for share in np.linspace(0.2, 0.21, 5)
    ]
    for before, after in zip(moved, moved[1:], strict=False):
        assert 0 < np.abs(after - before).mean() < 5  # of 255: the same figure, moved a little
    assert (
        np.abs(
            sample(figure, 6, (32, 32, 1), xo.Variation(translation=0.2)).astype(int) - moved[0]
        ).mean()
        > 5
    )


def png(image, **save):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", **save)
    return buffer.getvalue()


def test_files_become_pictures():
    config = xo_config().data
    image = np.repeat(np.repeat(xo.draw(0, "train", 0, 32)[0][..., 0], 4, 0), 4, 1)
    picture, note = decoded(png(image), (32, 32, 1), config)
    assert picture.shape == (32, 32, 1) and not note
    # Decoders differ in how they shrink.
    assert np.mean((picture[..., 0] > 127) == (image[1::4, 1::4] > 127)) > 0.95
    inverted, note = decoded(png(255 - image), (32, 32, 1), config)
    assert note == "the light background was made dark, as in the training pictures"
    np.testing.assert_allclose(inverted.astype(int), picture, atol=2)
    config.source = "folder:x"
    photo = np.random.default_rng(0).integers(128, 256, (50, 40, 3), np.uint8)
    picture, note = decoded(png(photo), (32, 32, 3), config)
    assert picture.shape == (32, 32, 3) and picture.min() > 100 and not note


def gif():
    buffer = io.BytesIO()
    Image.new("L", (20, 20)).save(buffer, "GIF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a JPEG nor a PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "neither a JPEG nor a PNG"),
        (gif(), "neither a JPEG nor a PNG"),
        (
            png(np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8))[:200],
            "cannot be read",
        ),
        (b"\xff\xd8\xff" + bytes(100), "cannot be read"),
        (
            png(np.zeros((8000, 6000), bool)),
            "has 6000x8000 = 48,000,000 pixels; at most 40,000,000 are accepted",
        ),
    ],
)
def test_other_files_are_refused(content, message):
    with pytest.raises(UserError, match=message):
        decoded(content, (32, 32, 1), xo_config().data)
