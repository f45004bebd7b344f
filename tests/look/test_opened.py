"""An opened run has the same network, examples and probabilities as evaluation and prediction."""

import numpy as np
import pytest
from PIL import Image

from jaxconv.data.signals import decode_text, encode_text
from jaxconv.errors import UserError
from jaxconv.look.opened import element_of, open_model, open_run
from jaxconv.run import train
from jaxconv.train.initial import save_weights
from jaxconv.weights.export import load_run
from tests.conftest import tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("opened") / "run"
    return workdir, train(tiny_config(), str(workdir))


def test_a_run_predicts_as_it_was_evaluated(run):
    workdir, result = run
    looked = open_run(str(workdir))
    assert (
        looked.title == "run: chain, step 10"
        and looked.input_shape == (16, 16, 1)
        and looked.class_names == ("o", "x")
    )
    labels = looked.source().labels_of_all()
    probabilities = np.concatenate(
        [looked.probabilities(elements) for elements in looked.elements(batch_size=7)]
    )
    assert (probabilities.argmax(axis=1) == labels).mean() == pytest.approx(result["top1"])
    assert -np.log(probabilities[np.arange(30), labels]).mean() == pytest.approx(
        result["loss"], rel=1e-4
    )
    element, label = element_of(looked, example=4)
    assert label == labels[4]
    np.testing.assert_allclose(
        load_run(str(workdir)).predict(element[None])[0], probabilities[4], rtol=1e-4
    )


def test_a_file_is_read_as_the_examples_are(run, tmp_path):
    looked = open_run(str(run[0]))
    element, _ = element_of(looked, example=2)
    Image.fromarray(element[..., 0]).save(tmp_path / "two.png")
    read, label = element_of(looked, file=str(tmp_path / "two.png"))
    np.testing.assert_array_equal(read, element)
    assert label == -1
    for file, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "three.png", "cannot be read"),
        (run[0] / "config.json", "cannot be read as an image"),
    ):
        with pytest.raises(UserError, match=words):
            element_of(looked, file=str(file))
    with pytest.raises(UserError, match="--example=30: the split has 30 examples, 0 to 29"):
        element_of(looked, example=30)
    with pytest.raises(UserError, match="--member=1: the run has one network"):
        open_run(str(run[0]), member=1)


def test_a_member_of_an_ensemble(tmp_path):
    result = train(tiny_config(ensemble__size=2, steps=6), str(tmp_path / "two"))
    for member, expected in enumerate(result["members"]):
        looked = open_run(str(tmp_path / "two"), member=member)
        (elements,) = looked.elements(batch_size=30)
        right = (
            looked.probabilities(elements).argmax(axis=1) == looked.source().labels_of_all()
        ).sum()
        assert right / 30 == pytest.approx(expected["top1"]) and f"seed {member}" in looked.title
    with pytest.raises(UserError, match="--member=2: the ensemble has 2 members, 0 to 1"):
        open_run(str(tmp_path / "two"), member=2)


def test_a_network_without_a_run(tmp_path):
    looked = open_model("lenet5")
    assert looked.title == "lenet5, random weights" and looked.class_names[9] == "class 9"
    assert looked.probabilities(np.zeros((2, 32, 32, 1), np.uint8)).shape == (2, 10)
    save_weights(str(tmp_path / "weights"), "lenet5", looked.variables, "a test")
    again = open_model("lenet5", str(tmp_path / "weights"))
    image = np.arange(1024, dtype=np.uint8).reshape(1, 32, 32, 1)
    np.testing.assert_allclose(again.probabilities(image), looked.probabilities(image), rtol=1e-5)
    assert again.title == "lenet5, weights of weights"
    with pytest.raises(UserError, match=r"holds weights of lenet5 .*, which do not fit all_cnn"):
        open_model("all_cnn_c", str(tmp_path / "weights"))
    with pytest.raises(UserError, match="has no examples; give --image=FILE"):
        looked.example(0)
    with pytest.raises(UserError, match="did you mean 'lenet5'"):
        open_model("lenet6")


@pytest.mark.parametrize("alphabet", ["", "abc d"])
def test_texts_come_back(alphabet):
    assert decode_text(encode_text("bad cab", 12, alphabet), alphabet) == "bad cab"
    assert decode_text(encode_text("bad cab", 3, alphabet), alphabet) == "bad"
    assert decode_text(encode_text("", 3, alphabet), alphabet) == ""
