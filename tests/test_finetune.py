"""Fine-tuning, linear probing and nearest neighbours: what is chosen, and what it does."""

import json
import re
import signal

import flax.traverse_util
import jax
import numpy as np
import pytest
from PIL import Image

from jaxconv.__main__ import main
from jaxconv.errors import UserError
from jaxconv.evaluation.neighbours import vote
from jaxconv.finetune import BODY, FEWEST, finetune_config
from jaxconv.models import abstract_variables, create_model
from jaxconv.train.initial import load_weights, save_weights
from jaxconv.train.restore import restore_run
from jaxconv.train.workdir import saved_config
from jaxconv.weights.preprocessing import MEAN
from tests.conftest import command

NAMES = ("bars", "dots", "rings")


def write_set(folder, classes=NAMES, each=8, size=24):
    """A folder of small images of one colour a class, with noise."""
    random = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for n in range(each):
            image = random.integers(0, 60, (size, size + 4, 3), np.uint8)
            image[..., k] += 150
            Image.fromarray(image).save(folder / name / f"{n}.png")
    return folder


@pytest.fixture(autouse=True)
def same_signals():
    """The commands, which run in this process here, handle SIGTERM until they end."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of images, and weights of resnet20_cifar for ten classes."""
    base = tmp_path_factory.mktemp("finetune")
    write_set(base / "set")
    model = create_model("resnet20_cifar", 10)
    init = jax.jit(lambda key, x: model.init(key, x, train=False))
    variables = init(jax.random.key(3), np.zeros((1, 32, 32, 3), np.float32))
    save_weights(str(base / "weights"), "resnet20_cifar", variables, "random")
    return base


def made(place, *overrides, **settings):
    return finetune_config(
        f"folder:{place / 'set'}", "resnet20_cifar", str(place / "weights"), overrides, **settings
    )


def test_the_recipe(place):
    config, said = made(place)
    assert (config.steps, config.epochs, config.optimizer.schedule.warmup_steps) == (500, 0, 50)
    assert config.steps == FEWEST and config.batch_size == 16  # of 21 training images
    assert config.data.mean == MEAN and config.data.image_size == 32
    assert config.optimizer.groups[BODY].learning_rate == 0.1
    assert config.early_stopping.patience == 5 and config.eval.every == 25
    assert "0.02 for fc, 0.002 for the rest" in said[1] and "BatchNorm tracked" in said[1]
    assert "3 classes" in said[0] and len(said) == 4


def test_keys_of_the_user_stay(place):
    config, _ = made(
        place, "epochs=20", "data.mean=0.5", f"optimizer.groups.{BODY}.learning_rate=0.5",
        "augment.flip=False", "batch_size=8",
    )  # fmt: skip
    assert (config.steps, config.epochs, config.batch_size) == (0, 20, 8)
    assert config.optimizer.schedule.warmup_steps == 5  # a tenth of 20 x 21 / 8
    assert config.data.mean == (0.5,) and config.data.std == (0.229, 0.224, 0.225)
    assert config.optimizer.groups[BODY].learning_rate == 0.5 and not config.augment.flip


def test_the_same_recipe_from_nothing(place):
    """What fine-tuning is compared with: the images are read in the same way."""
    config, _ = made(place, "model.init_from=")
    assert config.model.init_from == "" and config.data.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "densenet121", "mobilenet_v2", "alexnet"])
def test_the_body_is_all_but_the_last_layer(place, name):
    config, _ = made(place, f"model.name={name}")
    model = create_model(name, 3)
    shapes = abstract_variables(model, (1, 224, 224, 3))["params"]
    paths = flax.traverse_util.flatten_dict(shapes, sep="/")
    pattern = config.optimizer.groups[BODY].pattern
    left = {path: leaf.shape for path, leaf in paths.items() if not re.search(pattern, path)}
    assert len(left) == 2 and all(shape[-1] == 3 for shape in left.values()), left


def test_what_a_run_was_trained_with(place, tmp_path):
    config, _ = made(place, "steps=2", "data.mean=0.3", "data.image_size=24", "eval.every=2")
    arguments = ["finetune", f"folder:{place / 'set'}", "--model=resnet20_cifar"]
    overrides = ["steps=2", "data.mean=0.3", "data.image_size=24", "log.report=False"]
    given = [f"--config.{one}" for one in overrides]
    weights = f"--pretrained={place / 'weights'}"
    assert main([*arguments, weights, f"--workdir={tmp_path / 'a'}", *given]) == 0
    again, _ = finetune_config(f"folder:{place / 'set'}", "resnet20_cifar", str(tmp_path / "a"))
    assert again.data.mean == (0.3,) and again.data.image_size == 24
    assert config.data.mean == again.data.mean


def test_a_probe_changes_the_last_layer_alone(place, tmp_path, capsys):
    arguments = ["finetune", f"folder:{place / 'set'}", "--model=resnet20_cifar", "--probe=linear"]
    arguments += [f"--pretrained={place / 'weights'}", f"--workdir={tmp_path / 'run'}"]
    arguments += [
        "--config.steps=60",
        "--config.optimizer.learning_rate=0.3",
        "--config.log.report=False",
        "--config.augment.flip=False",
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "the rest frozen" in printed and "BatchNorm frozen" in printed
    assert json.loads(printed.splitlines()[-1])["top1"] == 1.0  # colours are easy
    assert saved_config(tmp_path / "run").model.kwargs.frozen_norm
    state, _ = restore_run(tmp_path / "run")
    before, _ = load_weights(place / "weights")
    flat = flax.traverse_util.flatten_dict(before, sep="/")
    for path, value in flax.traverse_util.flatten_dict(state.variables, sep="/").items():
        if not path.startswith("params/fc/"):
            np.testing.assert_array_equal(value, flat[path], err_msg=path)
    assert main(["neighbours", f"--workdir={tmp_path / 'run'}", "--k=3"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["features"] == 64 and found["train_examples"] + found["examples"] == 24


def test_neighbours_of_weights(place, capsys):
    arguments = ["neighbours", f"folder:{place / 'set'}", "--model=resnet20_cifar", "--k=5"]
    assert main([*arguments, f"--pretrained={place / 'weights'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "5 nearest neighbours by 64 features" in lines[0]
    assert json.loads(lines[-1])["top1"] == 1.0


def test_votes():
    random = np.random.default_rng(0)
    known, labels = random.normal(size=(40, 6)), random.integers(0, 3, 40)
    asked = random.normal(size=(7, 6))
    cosine = asked @ known.T
    cosine /= np.linalg.norm(asked, axis=1)[:, None] * np.linalg.norm(known, axis=1)
    expected = []
    for row in cosine:
        nearest = np.argsort(-row)[:5]
        votes = [np.exp(row[nearest][labels[nearest] == c] / 0.07).sum() for c in range(3)]
        expected.append(int(np.argmax(votes)))
    np.testing.assert_array_equal(vote(known, labels, asked, 5, 3), expected)
    np.testing.assert_array_equal(vote(known, labels, known, 1, 3), labels)  # its own nearest


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        ((), {"probe": "linaer"}, "did you mean 'linear'"),
        ((), {"norm": "off"}, "must be one of tracked, frozen"),
        (("task.name=detection",), {}, "is for classification"),
        (("augment.flipp=1",), {}, "no such key"),
        (("model.name=vgg11",), {"norm": "frozen"}, "has no BatchNorm"),
    ],
)
def test_what_cannot_be(place, overrides, settings, message):
    with pytest.raises(UserError, match=message):
        made(place, *overrides, **settings)


def test_bad_commands_are_one_line(place):
    for arguments, words in (
        (["neighbours", "--k=3"], "give --workdir, or --model and --pretrained"),
        (["neighbours", "--model=resnet20_cifar", "--pretrained=x"], "give a SOURCE"),
        (
            ["neighbours", f"folder:{place / 'set'}", "--model=resnet20_cifar", "--k=30",
             f"--pretrained={place / 'weights'}"],
            "only 21 training examples",
        ),
    ):  # fmt: skip
        done = command(*arguments)
        assert done.returncode and words in done.stderr and len(done.stderr.splitlines()) == 1
