"""The walk: the lecture's example with the numbers of its slides, and other networks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.drawing.sheet import as_printed, printed
from jaxconv.inspect.stages import stages
from jaxconv.look.lecture import FEATURES, lecture_network, lecture_walk
from jaxconv.look.walk import choose_rows, chosen_votes, walk, words
from tests.test_lecture import FEATURES as PRINTED_FEATURES
from tests.test_lecture import POOLED, RESPONSES, X

NUMBER = re.compile(r"-?\d+(\.\d\d)?")


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def cells(figure, image):
    """The texts inside an image of a figure as a table, with None for an empty cell."""
    left, right, bottom, top = image.get_extent()
    height, width = np.asarray(image.get_array()).shape[:2]
    found = np.full((height, width), None)
    for text in figure.axes[0].texts:
        x, y = text.get_position()
        if (
            left < x < right
            and top < y < bottom
            and text.get_ha() == "center"
            and text.get_va() == "center"
        ):
            found[
                int((y - top) / (bottom - top) * height), int((x - left) / (right - left) * width)
            ] = text.get_text()
    return found


def as_lecture(values):
    """A table as the lecture prints it: 0 without decimals, other values with two."""
    return np.vectorize(lambda value: "0" if value == 0 else f"{value:.2f}", otypes=[object])(
        values
    )


@pytest.fixture(scope="module")
def lecture():
    return lecture_walk()


def test_the_lecture_s_numbers_stand_in_the_cells(lecture):
    shown = [cells(lecture, image) for image in lecture.axes[0].images]
    image, *rest = shown
    np.testing.assert_array_equal(
        image, np.vectorize(lambda value: f"{value:.0f}", otypes=[object])(X)
    )
    for n, name in enumerate(RESPONSES):
        kernel, responses, rectified, pooled = (
            rest[2 * n],
            rest[2 * n + 1],
            rest[6 + n],
            rest[9 + n],
        )
        np.testing.assert_array_equal(
            kernel,
            np.vectorize(lambda value: f"{value:.0f}", otypes=[object])(PRINTED_FEATURES[name]),
        )
        np.testing.assert_array_equal(responses, as_lecture(RESPONSES[name]))
        np.testing.assert_array_equal(rectified, as_lecture(np.maximum(RESPONSES[name], 0)))
        np.testing.assert_array_equal(pooled, as_lecture(POOLED[name]))
    # Pooled once more: the values that vote.
    np.testing.assert_array_equal(rest[12], [["1.00", "0.55"], ["0.55", "1.00"]])
    np.testing.assert_array_equal(rest[13], [["1.00", "0.55"], ["0.55", "0.55"]])
    np.testing.assert_array_equal(rest[14], [["0.55", "1.00"], ["1.00", "0.55"]])


def test_the_lecture_s_votes(lecture):
    written = texts(lecture)
    assert written[written.index("x") + 1] == "1.00" and written[written.index("o") + 1] == "0.55"
    # Five equal weights for X and seven for O, and no line where a weight is 0.
    lines = [line for line in lecture.axes[0].lines if line.get_linewidth() > 0.1]
    assert (
        sorted(round(line.get_linewidth(), 3) for line in lines)
        == [round(4 * 5 / 7, 3)] * 7 + [4.0] * 5
    )
    module, variables, x = lecture_network()
    assert np.array_equal(x[..., 0], X) and np.array_equal(
        FEATURES, list(PRINTED_FEATURES.values())
    )
    votes = module.apply(variables, x[None], train=False)[0]
    np.testing.assert_allclose(votes, [5 / 9, 1], rtol=1e-5)


def test_rows_in_words(lecture):
    written = texts(lecture)
    assert [
        text for text in written if text in ("image", "conv1", "relu1", "pool1", "pool2", "votes")
    ] == ["image", "conv1", "relu1", "pool1", "pool2", "votes"]
    assert "3 filters of 3x3x1\n3 maps of 7x7" in written and "pooling\n3 maps of 2x2" in written


@pytest.fixture(scope="module")
def network():
    model = jaxconv.create_model("chain", 10, filters=(12, 16, 20), batch_norm=True)
    x = np.random.default_rng(0).normal(size=(32, 32, 3)).astype(np.float32)
    variables = jax.jit(lambda key: model.init(key, jnp.asarray(x[None]), train=False))(
        jax.random.key(0)
    )
    return model, variables, x


def test_a_vote_is_the_sum_of_its_shares(network):
    model, variables, x = network
    last = stages(model, variables, x)[-1]
    bias = variables["params"]["votes"]["bias"]
    places, classes, shares = chosen_votes(last, most=len(last.given), classes=4)
    np.testing.assert_array_equal(places, np.arange(320))
    np.testing.assert_allclose(
        shares.sum(axis=0) + bias[classes], last.value[classes], rtol=1e-4, atol=1e-4
    )
    assert set(classes) == set(np.argsort(-last.value)[:4])
    few, _, said = chosen_votes(last, most=5, classes=4)
    everything = np.abs(last.given[:, None] * last.weights[:, classes]).max(axis=1)
    assert set(few) == set(np.argsort(-everything)[:5]) and said.shape == (5, 4)


def test_long_networks_have_a_row_for_each_size(network):
    model, variables, x = network
    found = stages(model, variables, x)
    assert len(choose_rows(found, 20)) == len(found) - 1
    short = choose_rows(found, 6)
    assert [(row.kind, row.value.shape[:-1]) for row in short] == [
        ("input", (32, 32)),
        ("convolution", (32, 32)),
        ("ReLU", (32, 32)),
        ("ReLU", (16, 16)),
        ("ReLU", (8, 8)),
        ("pooling", (4, 4)),
    ]
    assert words(short[2], "norm1_1") == ["ReLU", "after norm1_1", "12 maps of 32x32"]
    written = texts(
        walk(
            model,
            variables,
            x,
            most_rows=6,
            class_names=[f"$c_{k}$" for k in range(10)],
            title="a title",
        )
    )
    assert (
        written[0] == "a title: 13 stages, the last of each size"
        and sum(text.startswith("$c_") for text in written) == 5
    )


def test_maps_are_the_strongest_and_stay_in_their_columns(network):
    model, variables, x = network
    figure = walk(model, variables, x, most_maps=3)
    found = stages(model, variables, x)
    strongest = np.sort(np.argsort(-found[4].value.reshape(-1, 12).max(axis=0))[:3])
    images = [
        image for image in figure.axes[0].images if np.asarray(image.get_array()).shape == (32, 32)
    ]
    for image, (stage, k) in zip(
        images, [(stage, k) for stage in found[1:4] for k in strongest], strict=True
    ):
        np.testing.assert_array_equal(image.get_array(), stage.value[..., k])


def test_maps_are_chosen_anew_after_weights_that_have_no_row():
    model = jaxconv.from_text("[conv3-9 relu]*3 maxpool2 fc2")
    x = np.random.default_rng(0).normal(size=(16, 16, 1)).astype(np.float32)
    variables = model.init(jax.random.key(1), x[None], train=False)
    figure, found = walk(model, variables, x, most_maps=2, most_rows=4), stages(model, variables, x)
    maps = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    # Rows: the image, the first convolution with its filters, the last ReLU, the pooling. The last
    # row before weights decides which maps are shown.
    for place, decides, drawn in ((1, 1, maps[2:6:2]), (6, 7, maps[5:7]), (7, 7, maps[7:9])):
        strongest = np.sort(
            np.argsort(-np.abs(found[decides].value).reshape(-1, 9).max(axis=0))[:2]
        )
        for image, k in zip(drawn, strongest, strict=True):
            np.testing.assert_array_equal(image, found[place].value[..., k])


@pytest.mark.parametrize("shape", [(40, 1), (6, 6, 6, 1)])
def test_waves_and_volumes_walk_too(shape):
    model = jaxconv.create_model("chain", 2, filters=(3,))
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    variables = jax.jit(lambda key: model.init(key, jnp.asarray(x[None]), train=False))(
        jax.random.key(0)
    )
    written = texts(walk(model, variables, x))
    assert (
        written[0] == "4 stages"
        and "class 1" in written
        and "3 maps of " + "x".join(map(str, shape[:-1])) in " ".join(written)
    )


def test_numbers_as_the_lecture_prints_them():
    assert [
        printed(value) for value in (7 / 9, -1 / 9, 1 / 3 * 3, 0.0, 0.001, -0.001, 123.456)
    ] == ["0.77", "-0.11", "1.00", "0", "0.00", "0.00", "123"]
    assert as_printed(np.array([[1.0, -1.0]])).tolist() == [["1", "-1"]] and as_printed(
        np.array([1.0, 0.5])
    ).tolist() == ["1.00", "0.50"]
