"""Texts as words: the vocabulary, the embedding, and a run from training to export."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.config import default_config
from jaxconv.data.interface import describe
from jaxconv.data.lines import Lines
from jaxconv.data.signals import (
    decode_text,
    encode_text,
    letters_of,
    split_words,
    vocabulary_of,
)
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.look.opened import open_run
from jaxconv.models.text import from_text
from jaxconv.run import train
from jaxconv.train.workdir import saved_data
from jaxconv.weights.export import export_workdir, load_exported, load_run
from tests.conftest import SHARED

KIM = "text:embed8 {conv3-4p2 relu globalmaxpool | conv4-4p3 relu globalmaxpool} dropout0.5 fc"


def test_words_and_codes():
    assert split_words("It's Ünique, isn't 1st?") == [
        *("it", "'s", "ünique", ",", "isn", "'t", "1st", "?")
    ]
    words = vocabulary_of(["b a b", "c a b"], 2)
    assert words == ("b", "a")
    codes = encode_text("A b, c!", 8, words)
    assert codes.dtype == np.uint16 and codes.tolist() == [3, 2, 1, 1, 1, 0, 0, 0]
    assert letters_of(codes, words) == ["a", "b", *["\ufffd"] * 3]
    assert decode_text(encode_text("b a b", 2, words), words) == "b a"


def test_an_embedding_is_a_convolution_of_one_hot_codes():
    """By looking up and by product, with their gradients; padding is 0."""
    model = from_text("embed4 conv3-5 relu globalmaxpool fc", 3)
    codes = jnp.array([[3, 5, 1, 0], [2, 0, 0, 0]])
    hot = jax.nn.one_hot(codes, 7)
    variables = model.init(jax.random.key(0), hot, train=False)
    table = variables["params"]["embed"]["embedding"]
    assert table.shape == (7, 4) and 0.2 < float(jnp.abs(table).max()) <= 0.25

    def loss(variables, x):
        return jnp.sum(jnp.sin(model.apply(variables, x, train=False)))

    by_codes, by_hot = (jax.value_and_grad(loss)(variables, x) for x in (codes, hot))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), by_codes, by_hot)
    assert not by_codes[1]["params"]["embed"]["embedding"][0].any()
    maps = model.apply(variables, codes, train=False, features=["embed"])["embed"]
    assert not maps[0, 3].any() and np.array_equal(maps[0, 1], table[5])
    with pytest.raises(ValueError, match=r"embed: initialise it with one-hot codes \[N, L, V\]"):
        model.init(jax.random.key(0), codes, train=False)
    with pytest.raises(ValueError, match="put it at the beginning"):
        from_text("conv1-4 embed4 fc", 3).init(jax.random.key(0), hot, train=False)


def settings(folder, **changes):
    (folder / "train.tsv").write_text("a\tgood day sun\nb\tbad night moon\n" * 20)
    (folder / "test.tsv").write_text("a\tgood comet sun\nb\tbad moon\n" * 3)
    config = default_config()
    config.data.source, config.data.text.length, config.data.text.words = f"text:{folder}", 6, 100
    config.model.name, config.batch_size, config.steps, config.eval.batch_size = KIM, 8, 12, 6
    config.optimizer.name, config.optimizer.learning_rate = "adamw", 0.05
    config.log.progress = config.log.report = config.log.tensorboard = False
    config.checkpoint.every, config.eval.every = 6, 6
    config.update(changes)
    return config


def test_the_vocabulary_is_the_training_split_s(tmp_path):
    data = settings(tmp_path).data
    rest = open_source(data, "train")
    assert rest.words == ("bad", "day", "good", "moon", "night", "sun")
    assert rest.image_shape == (6, 8) and rest[0]["image"].tolist() == [4, 3, 7, 0, 0, 0]
    (tmp_path / "folded.tsv").write_text("".join(f"{'ab'[n % 2]}\tword{n}\n" for n in range(20)))
    data.folds, data.fold = 4, 2
    rest = open_source(data, "folded[!fold]")
    fold = open_source(data, "folded[fold]", like=describe(rest))
    assert len(rest.words) == 15 and fold.words == rest.words
    assert all((example["image"] <= 1).all() for example in fold)  # its words are unknown


@pytest.mark.slow
def test_a_run_from_training_to_export(tmp_path, one_device):
    """Resumed, evaluated, predicted, explained and exported with the vocabulary of its training."""
    config = settings(tmp_path)
    found = train(config, str(tmp_path / "run"), devices=one_device)
    assert found["top1"] == 1.0
    config.steps = 16
    resumed = train(config, str(tmp_path / "run"), devices=one_device)
    whole = train(config, str(tmp_path / "whole"), devices=one_device)
    assert resumed["loss"] == whole["loss"]
    data = saved_data(tmp_path / "run")
    assert data["words"] == ["bad", "day", "good", "moon", "night", "sun"]
    said = jaxconv.predict(tmp_path / "run", ["a GOOD one", "bad bad moon"])
    assert [one.classes[0] for one in said] == ["a", "b"]
    served = load_run(tmp_path / "run").serve(np.array([[4, 1, 0, 0, 0, 0]], np.uint16))
    export_workdir(str(tmp_path / "run"), str(tmp_path / "out"), platforms=("cpu",))
    exported = load_exported(str(tmp_path / "out"))
    again = exported.serve(np.array([[4, 1, 0, 0, 0, 0]], np.uint16))
    np.testing.assert_allclose(served["probabilities"], again["probabilities"], atol=1e-6)
    told = json.loads((tmp_path / "out" / "model.json").read_text())
    assert told["dtype"] == "uint16" and told["reading"]["words"] == data["words"]
    looked = open_run(tmp_path / "run")
    element, _ = looked.example(0)
    assert looked.shown(element) == "good \ufffd sun" and looked.inputs(element[None]).ndim == 3
    # Another training split has another vocabulary.
    (tmp_path / "train.tsv").write_text("a\tother words\nb\tbad night moon\n" * 20)
    with pytest.raises(UserError, match="data has changed since the run began: "):
        train(config, str(tmp_path / "run"), devices=one_device)


@pytest.mark.slow
def test_a_teacher_has_the_same_words(tmp_path, one_device):
    config = settings(tmp_path)
    train(config, str(tmp_path / "teacher"), devices=one_device)
    config.distill.teacher, config.distill.alpha = str(tmp_path / "teacher"), 1.0
    config.model.name = "text:embed4 conv3-4 relu globalmaxpool fc"
    assert train(config, str(tmp_path / "student"), devices=one_device)["top1"] == 1.0
    (tmp_path / "train.tsv").write_text("a\tgood day\nb\tbad night\n" * 20)
    with pytest.raises(UserError, match="its texts have another vocabulary than the student's"):
        train(config, str(tmp_path / "other"), devices=one_device)


def test_a_network_that_does_not_embed(tmp_path, one_device):
    config = settings(tmp_path)
    config.model.name = "text:conv1-8 relu globalpool fc"
    with pytest.raises(UserError, match="cannot take codes of words .*begin with embedN"):
        train(config, str(tmp_path / "run"), devices=one_device)


FILES = {
    "TREC.train.all": "0 How did it go ?\n1 Who was he ?\n0 Why ?\n",
    "TREC.test.all": "1 Who ?\n",
    "train_5500.label": "DESC:manner How did it go ?\nHUM:ind Who was he ?\n",
    "TREC_10.label": "HUM:desc Who ?\n",
    "rt.pos": "nice caf\xe9 \nfine film\n",
    "rt.neg": "dull\n",
}


@pytest.fixture
def sets(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    return tmp_path


def test_files_as_they_are(sets):
    trec = Lines(f"{sets}/TREC.{{split}}.all", "train", ())
    assert trec.class_names == ("0", "1") and trec[1] == ("Who was he ?", 1)
    assert trec.name(2).endswith("TREC.train.all, line 3")
    assert Lines(f"{sets}/TREC.{{split}}.all", "test", ("0", "1")).labels_of_all().tolist() == [1]
    fine = Lines(f"{sets}/{{split}}.label", "train_5500", ())
    assert fine.class_names == ("DESC:manner", "HUM:ind")
    coarse = Lines(f"{sets}/{{split}}.label", "train_5500", (), coarse=True)
    assert coarse.class_names == ("DESC", "HUM")
    test = Lines(f"{sets}/{{split}}.label", "TREC_10", coarse.class_names, coarse=True)
    assert test[0] == ("Who ?", 1)
    films = Lines(f"{sets}/rt.{{class}}", "train", ())
    assert films.class_names == ("neg", "pos") and len(films) == 3
    assert ("nice caf\xe9", 1) in [films[n] for n in range(3)]  # Latin-1
    one = Lines(f"{sets}/TREC.train.all", "train", ())
    assert len(one) == 3 and one.checksum() == trec.checksum()


@pytest.mark.parametrize(
    ("path", "split", "message"),
    [
        ("TREC.{split}.all", "tst", "no split 'tst', did you mean 'test'.*it has test, train"),
        ("TREC.train.all", "test", r"the split train alone; cut it with .*'train\[!fold\]'"),
        ("rt.{class}", "test", "the split train alone"),
        ("{split}.label", "TREC_10", "has 1 classes"),
        ("x.{class}", "train", "no file in .* is named x.{class}"),
    ],
)
def test_files_that_do_not_fit(sets, path, split, message):
    with pytest.raises(UserError, match=message):
        Lines(f"{sets}/{path}", split, ())


def test_real_sentences(tmp_path):
    import tarfile

    with tarfile.open(SHARED / "data" / "sentences.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "sentences"
    train = Lines(f"{folder}/TREC.{{split}}.all", "train", ())
    test = Lines(f"{folder}/TREC.{{split}}.all", "test", train.class_names)
    films = Lines(f"{folder}/rt-polarity.all", "train", ())
    assert (len(train), len(test), len(films)) == (5_452, 500, 10_662)
    assert np.bincount(films.labels_of_all()).tolist() == [5_331, 5_331]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("words", 70_000, "text.words is 70000; it must be at most 65,534"),
        ("words", -1, "text.words is -1; it must be at least 0"),
    ],
)
def test_settings(tmp_path, key, value, message):
    from jaxconv.checks import check_config

    config = settings(tmp_path)
    config.data.text[key] = value
    with pytest.raises(UserError, match=message):
        check_config(config)
