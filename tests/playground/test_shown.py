"""What the page is sent: maps that are the network's, and pictures made of drawings, samples and files."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

import jaxconv
from jaxconv.data import xo
from jaxconv.data.augment import make_preprocess
from jaxconv.errors import UserError
from jaxconv.models import create_model
from jaxconv.playground.shown import MOST_POINTS, decoded, drawn, make_shown, sample
from tests.playground.serving import parts, xo_config


def shown_chain(**arguments):
    model, preprocess = create_model("chain", 2, **arguments), make_preprocess(xo_config())
    variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 1), np.float32), train=False)
    return model, variables, make_shown(model, preprocess, variables, (16, 16, 1), xo.CLASS_NAMES)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_an_answer_is_what_the_network_computes(batch_norm):
    model, variables, shown = shown_chain(filters=(5, 20), neurons=(7,), batch_norm=batch_norm)
    image, _ = xo.draw(0, "test", 3, 16, xo.Variation(noise=0.5))
    header, picture, filters, maps = parts(shown.answer(variables, image, {"id": 3}))
    np.testing.assert_array_equal(picture, image)
    inputs = (image[None].astype(np.float32) / 255 - 0.5) / 0.5
    votes = model.apply(variables, inputs)[0]
    np.testing.assert_allclose([vote["vote"] for vote in header["votes"]], votes, atol=1e-4)
    np.testing.assert_allclose([vote["probability"] for vote in header["votes"]], jax.nn.softmax(votes), atol=1e-4)
    assert header["id"] == 3 and header["best"] == xo.CLASS_NAMES[int(np.argmax(votes))]

    noted = jaxconv.features(model, variables, inputs)
    assert [stage["name"] for stage in header["stages"]] == ["conv1_1", "relu1_1", "pool1", "conv2_1", "relu2_1", "pool2", "fc1"]
    for stage, values in zip(header["stages"], maps, strict=True):
        if stage["name"] in noted:
            real = np.asarray(noted[stage["name"]][0]).reshape(*stage["pixels"], -1)
            assert stage["channels"] == real.shape[-1]
            real = real[..., :16]
            assert stage["peak"] == pytest.approx(np.abs(real).max(), rel=1e-5)
            # 254 steps from the least to the greatest.
            np.testing.assert_allclose(values * stage["peak"] / 127, real, atol=stage["peak"] / 253)
        else:
            assert values.min() == 0 < values.max()
    # The pooled stack is of what the ReLU leaves, batch norm or not.
    pooled = maps[1].reshape(8, 2, 8, 2, 5).max((1, 3)) * header["stages"][1]["peak"] / 127
    np.testing.assert_allclose(pooled, noted["pool1"][0], atol=header["stages"][1]["peak"] / 253)
    kernel = variables["params"]["conv1_1"]["kernel"]
    np.testing.assert_allclose(filters * header["filters"]["peak"] / 127, kernel, atol=header["filters"]["peak"] / 253)


def test_large_maps_and_many_stages_are_cut_and_own_networks_work():
    import flax.linen as nn

    class Own(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            for n in range(20):
                x = nn.Conv(3, (3, 3), name=f"layer{n}")(x)
            return nn.Dense(3, name="out")(x.mean((1, 2)))

    model = Own()
    variables = model.init(jax.random.key(0), np.zeros((1, 100, 90, 3), np.float32))
    shown = make_shown(model, make_preprocess(xo_config()), variables, (100, 90, 3), ("a", "b", "c"))
    assert len(shown.stages) == 12
    assert (shown.stages[0].name, shown.stages[-1].name) == ("layer0", "out")
    assert shown.stages[0].pixels == (100, 90) and shown.stages[0].shape == (50, 45, 3)
    header, picture, filters, _ = parts(shown.answer(variables, np.zeros((100, 90, 3), np.uint8), {}))
    assert picture.shape == (100, 90, 3) and filters.shape == (3, 3, 3, 3) and len(header["votes"]) == 3


def test_a_drawing_has_the_picture_s_shape():
    assert drawn([[[0.2, 0.2], [0.8, 0.8]]], (32, 32, 3), 0.0, True).shape == (32, 32, 3)
    assert not drawn([], (32, 32, 1), 0.0, True).any()


@pytest.mark.parametrize(
    ("strokes", "message"),
    [
        ([[[0.1, float("nan")]]], "far outside"),
        ([[[0.1, 9.0]]], "far outside"),
        ([[[0.1, 0.2, 0.3]]], "no list of lines"),
        ([[["a", "b"]]], "no list of lines"),
        ([7], "no list of lines"),
        ([[[0.5, 0.5]] * (MOST_POINTS + 1)], f"has {MOST_POINTS + 1} points; at most {MOST_POINTS}"),
    ],
)
def test_bad_drawings_are_refused(strokes, message):
    with pytest.raises(UserError, match=message):
        drawn(strokes, (32, 32, 1), 0.0, True)


@pytest.mark.parametrize("figure", ["x", "o"])
def test_a_sample_is_the_figure_and_moves_smoothly(figure):
    plain = sample(figure, 0, (32, 32, 1), xo.Variation())
    wanted = next(image for image, label in (xo.draw(0, "train", i) for i in range(40)) if xo.CLASS_NAMES[label] == figure)
    np.testing.assert_array_equal(plain, wanted)
    moved = [sample(figure, 5, (32, 32, 1), xo.Variation(translation=share)).astype(int) for share in np.linspace(0.2, 0.21, 5)]
    for before, after in zip(moved, moved[1:], strict=False):
        assert 0 < np.abs(after - before).mean() < 5  # of 255: the same figure, a little further
    assert np.abs(sample(figure, 6, (32, 32, 1), xo.Variation(translation=0.2)).astype(int) - moved[0]).mean() > 5


def png(image, **save):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", **save)
    return buffer.getvalue()


def test_files_become_pictures():
    config = xo_config().data
    image = np.repeat(np.repeat(xo.draw(0, "train", 0, 32)[0][..., 0], 4, 0), 4, 1)
    picture, note = decoded(png(image), (32, 32, 1), config)
    assert picture.shape == (32, 32, 1) and not note
    # Decoders shrink in ways of their own.
    assert np.mean((picture[..., 0] > 127) == (image[1::4, 1::4] > 127)) > 0.95
    inverted, note = decoded(png(255 - image), (32, 32, 1), config)
    assert note == "light paper was turned dark, as the training pictures have it"
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
        (png(np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8))[:200], "cannot be read"),
        (b"\xff\xd8\xff" + bytes(100), "cannot be read"),
        (png(np.zeros((8000, 6000), bool)), "has 6000x8000 = 48,000,000 pixels; at most 40,000,000 are taken"),
    ],
)
def test_other_files_are_refused(content, message):
    with pytest.raises(UserError, match=message):
        decoded(content, (32, 32, 1), xo_config().data)
