"""The notation: its meaning, its error messages, and that parsing and printing are inverse."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxconv
from jaxconv.models import abstract_variables
from jaxconv.models.notation import Layer, NotationError, Repeat, expand, parse, show
from jaxconv.models.text import from_text, name_layers, outputs_of

counts = st.integers(1, 512)
sizes = st.integers(1, 11)
roundings = st.sampled_from(["floor", "exact", "ceil"])
windows = st.lists(sizes, min_size=1, max_size=3).map(tuple)
optional = lambda values: st.none() | values  # noqa: E731
layers = st.one_of(
    st.builds(
        Layer,
        st.just("conv"),
        windows,
        optional(counts),
        stride=optional(sizes),
        padding=optional(st.integers(0, 5)),
        groups=sizes,
        dilation=sizes,
        rounding=roundings,
        bias=st.booleans(),
    ),
    st.builds(
        Layer,
        st.sampled_from(["maxpool", "avgpool"]),
        windows,
        stride=optional(sizes),
        padding=optional(sizes),
        rounding=roundings,
    ),
    st.builds(
        Layer, st.sampled_from(["globalpool", "bn", "relu", "tanh", "sigmoid", "gelu", "silu"])
    ),
    st.builds(Layer, st.sampled_from(["lrn", "fc"]), count=optional(counts)),
    st.builds(Layer, st.just("adaptpool"), count=counts),
    st.builds(Layer, st.just("dropout"), share=st.floats(0, 0.99)),
)
texts = st.recursive(
    st.lists(layers, min_size=1, max_size=4).map(tuple),
    lambda inner: st.lists(
        layers | st.builds(Repeat, inner, st.integers(1, 5)), min_size=1, max_size=4
    ).map(tuple),
    max_leaves=8,
)


@given(texts)
def test_reading_and_printing_are_inverse(items):
    assert parse(show(items)) == items
    assert show(parse(show(items))) == show(items)


@given(st.text("conv3-64 relu()[]*2/pmaxl05.xfg", max_size=30))
def test_any_text_is_read_or_refused(text):
    try:
        assert parse(show(parse(text))) == parse(text)
    except NotationError as error:
        assert 0 <= error.position <= len(text) and f"character {error.position + 1} of" in str(
            error
        )


def test_the_lecture_s_example():
    text = "[(conv3-64 relu)*2 maxpool2]*2 fc128 relu dropout0.5 fc10"
    kinds = [layer.kind for layer in expand(parse(text))]
    assert kinds == ["conv", "relu", "conv", "relu", "maxpool"] * 2 + [
        "fc",
        "relu",
        "dropout",
        "fc",
    ]
    params = abstract_variables(jaxconv.from_text(text), (1, 32, 32, 3))["params"]
    assert {name: leaf["kernel"].shape for name, leaf in params.items()} == {
        "conv1": (3, 3, 3, 64),
        "conv2": (3, 3, 64, 64),
        "conv3": (3, 3, 64, 64),
        "conv4": (3, 3, 64, 64),
        "fc5": (8 * 8 * 64, 128),
        "fc6": (128, 10),
    }


def test_settings_of_a_layer():
    (layer,) = parse("conv5x3-96/2p1g4d2nobiasceil")
    assert layer == Layer(
        "conv", (5, 3), 96, stride=2, padding=1, groups=4, dilation=2, bias=False, rounding="ceil"
    )
    assert parse("maxpool3/2ceil") == (Layer("maxpool", (3,), stride=2, rounding="ceil"),)
    assert parse("relu*3") == (Repeat((Layer("relu"),), 3),)


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("conv3-64 relu maxpol2", 14, "no layer is called 'maxpol2', did you mean 'maxpool'?"),
        ("conv3-64 reluu", 13, "expected a space after 'relu'"),
        (
            "conv3_64",
            5,
            "expected -K, /S, pN, gN, dN, nobias, floor, exact or ceil, or a space after 'conv3'",
        ),
        ("relu conv-64", 9, "expected the window's size, such as 3 after 'conv'"),
        ("[conv3-64 relu", 14, "expected ']' to close a bracket"),
        ("(conv3-64]", 9, "expected ')', not ']'"),
        ("conv3-64) relu", 8, "')' has no opening bracket"),
        ("relu *2", 5, "no layer is called '*'"),
        ("(relu)*0", 7, "expected a number of times, such as *2"),
        ("conv3-64/0", 9, "the stride is 0; it must be at least 1"),
        ("conv3-64p1p1", 10, "the padding is given twice"),
        ("dropout1.5", 7, "the share to drop is 1.5"),
        ("fc10 softmax", 5, "the softmax is part of the loss; leave it out"),
        ("", 0, "expected a layer"),
        ("[]", 1, "expected a layer in the brackets"),
    ],
)
def test_mistakes_are_pointed_at(text, position, message):
    with pytest.raises(NotationError) as error:
        parse(text)
    assert error.value.position == position and message in str(error.value)


def test_names():
    def names(text, **settings):
        return [name for name, _ in name_layers(parse(text), **settings)]

    text = "conv3-8 bn relu conv3-8 relu maxpool2 lrn conv3-8 relu maxpool2 fc4 tanh dropout0.5 fc"
    expected = (
        "conv1 norm1 relu1 conv2 relu2 pool1 norm1_again1 conv3 relu3 pool2 fc4 tanh_fc4 "
        "dropout_fc4 fc5"
    )
    assert names(text) == expected.split()
    assert names(text, by_stage=True)[:6] == [
        "conv1_1",
        "norm1_1",
        "relu1_1",
        "conv1_2",
        "relu1_2",
        "pool1",
    ]


@pytest.mark.parametrize("shape", [(2, 40, 1), (2, 20, 24, 3), (2, 12, 10, 8, 1)])
def test_same_text_takes_a_waveform_an_image_a_volume(shape):
    model = jaxconv.from_text(
        "conv3-4 bn relu maxpool2 conv3-8/2 lrn relu avgpool2ceil globalpool fc", 3
    )
    logits, variables = model.init_with_output(jax.random.key(0), jnp.ones(shape), train=False)
    assert logits.shape == (2, 3)
    assert variables["params"]["conv1"]["kernel"].shape == (3,) * (len(shape) - 2) + (shape[-1], 4)


def test_number_of_classes():
    assert jaxconv.from_text("fc10").num_classes == 10
    with pytest.raises(ValueError, match="leaves the number of classes open; give num_classes"):
        jaxconv.from_text("fc")
    with pytest.raises(
        ValueError, match="ends in 10 logits, and there are 3 classes; end it in fc"
    ):
        jaxconv.from_text("fc10", 3)
    with pytest.raises(ValueError, match=r"conv1: padding \(F - 1\)/2 = \(2 - 1\)/2 = 0.5"):
        abstract_variables(jaxconv.from_text("conv2-3 fc2"), (1, 8, 8, 1))


def test_paths_side_by_side():
    text = "conv3-4 {conv1-2 | [conv3-3 relu]*2 | maxpool3/1p1} fc"
    items = parse(text)
    assert show(items) == text and show(parse(show(items))) == text
    model = from_text(text, 5)
    variables = model.init(jax.random.key(0), jnp.ones((1, 6, 6, 1)), train=False)
    maps = model.apply(variables, jnp.ones((1, 6, 6, 1)), train=False, features="*")
    assert maps["concat"].shape == (1, 6, 6, 2 + 3 + 4)
    first, second = maps["conv1"], maps["relu4"]
    np.testing.assert_array_equal(maps["concat"][..., 2:5], second)
    kernel = variables["params"]["conv2"]["kernel"]
    np.testing.assert_allclose(maps["concat"][..., :2], first @ kernel[0, 0], rtol=1e-5, atol=1e-6)
    assert outputs_of("{conv1-2 | [conv3-3]*2}*2") == 5 and outputs_of("{fc | fc3}") is None
    with pytest.raises(ValueError, match="the maps of its paths differ in size: 3x3 and 6x6"):
        from_text("{conv1-2 | conv1-2/2} fc", 5).init(
            jax.random.key(0), jnp.ones((1, 6, 6, 1)), train=False
        )
    with pytest.raises(ValueError, match="the text has { | }, of which"):
        from_text("{conv1-2/2 | conv1-2/2} fc", 5, output_stride=1).init(
            jax.random.key(0), jnp.ones((1, 6, 6, 1)), train=False
        )


@pytest.mark.parametrize(
    ("text", "at", "message"),
    [
        ("{conv3-1 | }", 12, "expected a layer in the brackets"),
        ("{conv3-1", 9, "expected '}' to close"),
        ("conv3-1 | fc", 9, "'|' is for { text | text }"),
        ("[conv3-1 | fc]", 10, "expected ']', not '|'"),
        ("{conv3-1]", 9, "expected '}', not ']'"),
        ("fc}", 3, "'}' has no opening bracket"),
        ("embed fc", 6, "the numbers for each code"),
    ],
)
def test_mistakes_in_braces(text, at, message):
    with pytest.raises(NotationError, match=re.escape(message)) as found:
        parse(text)
    assert f"character {at} " in str(found.value)
