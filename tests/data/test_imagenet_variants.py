"""Evaluation beyond the test set: on made-up TFDS sets laid out as ImageNet V2, A, C and ReaL, and
on corrupted images.
"""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxconv.__main__ import main
from jaxconv.config import default_config
from jaxconv.data.corruptions import CORRUPTIONS
from jaxconv.data.interface import SEVERAL
from jaxconv.data.sources import open_source
from jaxconv.data.wordnet import synsets
from jaxconv.errors import UserError
from jaxconv.evaluation.corrupted import Corrupted, evaluate_corrupted, mce
from jaxconv.evaluation.evaluation import evaluate_run
from jaxconv.evaluation.several import evaluate_runs
from jaxconv.run import train
from jaxconv.tasks.labels import LabelMeasure, best_label
from tests.data.test_corruptions import save_textures

# Four classes of ImageNet, each a colour here.
SYNSETS = ("n01440764", "n01443537", "n02690373", "n15075141")
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30))

# The features and keys of TFDS's own builders.
BUILDERS = """
import sys
import numpy as np
import tensorflow_datasets as tfds

NAMES, COLOURS = {names!r}, {colours!r}

def picture(k, i):
    noise = np.random.default_rng(i).integers(0, 30, (20, 24 + i % 3, 3))
    return (np.array(COLOURS[k]) + noise).clip(0, 255).astype(np.uint8)

class Config(tfds.core.BuilderConfig):
    pass

class Set(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    name = NAME
    BUILDER_CONFIGS = [Config(name=CONFIG)] if CONFIG else []
    def _info(self):
        label, image = tfds.features.ClassLabel(names=NAMES), tfds.features.Image()
        several = {{"original_label": label, "real_label": tfds.features.Sequence(label)}}
        features = several if REAL else {{"label": label}}
        features |= {{"image": image, "file_name": tfds.features.Text()}}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "real_label" if REAL else "label"),
        )
    def _split_generators(self, manager):
        return {{SPLIT: self._generate_examples()}}
    def _generate_examples(self):
        for i, (colour, labels) in enumerate(EXAMPLES):
            own = {{"original_label": labels[0] if labels else 0, "real_label": labels}}
            record = own if REAL else {{"label": labels[0]}}
            yield i, record | {{"image": picture(colour, i), "file_name": f"{{i}}.JPEG"}}
"""
# Each image's colour, and its labels. In `a`, whose classes are 0 and 2, an image of class 0 has a
# colour of class 1, which is absent. In ReaL an image may have several labels, or none.
SETS = {
    "imagenet_v2": ("matched-frequency", "test", [(k, [k]) for k in (0, 1, 2, 3)]),
    "imagenet_a": ("", "test", [(0, [0]), (1, [0]), (2, [2])]),
    "imagenet2012_corrupted": ("gaussian_noise_3", "validation", [(k, [k]) for k in (3, 1)]),
    "imagenet2012_real": (
        "", "validation", [(0, [1, 0]), (1, []), (2, [3]), (3, [3]), (1, [0, 1, 2])]
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run on a folder of the four classes, and the sets."""
    root = tmp_path_factory.mktemp("variants")
    for k, synset in enumerate(SYNSETS):
        for split, count in (("train", 12), ("test", 4)):
            (root / "set" / split / synset).mkdir(parents=True)
            for n in range(count):
                noise = np.random.default_rng(n).integers(0, 30, (20, 24, 3))
                image = np.uint8(np.clip(np.array(COLOURS[k]) + noise, 0, 255))
                Image.fromarray(image).save(root / "set" / split / synset / f"{n}.png")
    config = default_config()
    config.data.source, config.data.image_size = f"folder:{root / 'set'}", 16
    config.model.kwargs = {"filters": (8,), "batch_norm": True, "global_pool": True}
    config.steps, config.batch_size, config.eval.batch_size = 40, 16, 8
    config.log.report, config.log.tensorboard = False, False
    assert train(config, root / "run")["top1"] == 1
    return root


@pytest.fixture(scope="module")
def prepared(place):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    script = "import sys; sys.path.insert(0, sys.argv[1])\n"
    for name, (config, split, examples) in SETS.items():
        (place / "code" / name).mkdir(parents=True)
        head = f"NAME, CONFIG, SPLIT = {name!r}, {config!r}, {split!r}\n"
        head += f"EXAMPLES, REAL = {examples!r}, {name.endswith('real')!r}\n"
        code = head + BUILDERS.format(names=list(SYNSETS), colours=COLOURS)
        (place / "code" / name / f"{name}_dataset_builder.py").write_text(code)
        script += f"from {name}.{name}_dataset_builder import Set as {name}\n"
        script += (
            f"{name}(data_dir=sys.argv[2], file_format='array_record').download_and_prepare()\n"
        )
    process = subprocess.run(
        [sys.executable, "-c", script, str(place / "code"), str(place / "data")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return place


def measured(place, name, split, **settings):
    overrides = {"data.source": f"tfds:{name}", "data.eval_split": split}
    overrides["data.tfds.data_dir"] = str(place / "data")
    return evaluate_run(str(place / "run"), overrides=overrides, **settings)


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [("imagenet_v2/matched-frequency", "test", 4),
     ("imagenet2012_corrupted/gaussian_noise_3", "validation", 2)],
)  # fmt: skip
def test_sets_with_all_classes(prepared, name, split, count):
    result = measured(prepared, name, split).result
    assert (result["examples"], result["top1"]) == (count, 1)


def test_predictions_among_the_classes_of_the_set(prepared):
    found = measured(prepared, "imagenet_a", "test")
    assert found.result["top1"] == pytest.approx(2 / 3)  # the second is taken for class 1
    among = measured(prepared, "imagenet_a", "test", only_present=True)
    assert set(among.outcomes.predicted) <= {0, 2} and among.result["classes"] == 2
    logits = found.outcomes.logits[:, [0, 2]]
    labels = found.outcomes.labels
    right = np.array([0, 2])[logits.argmax(axis=1)] == labels
    assert among.result["top1"] == pytest.approx(right.mean())
    expected = -jax.nn.log_softmax(logits)[np.arange(3), labels // 2].mean()
    assert among.result["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_several_labels(prepared):
    config = default_config().data
    config.source, config.image_size = "tfds:imagenet2012_real", 16
    config.tfds.data_dir = str(prepared / "data")
    source = open_source(config, "validation")
    assert len(source) == 4 and source.targets[SEVERAL].shape == (3,)  # one has no label
    found = measured(prepared, "imagenet2012_real", "validation")
    # Of the colours 0, 2, 3, 1 with labels (1, 0), (3), (3), (0, 1, 2) only the second is wrong.
    assert (found.result["examples"], found.result["top1"]) == (4, 0.75)
    assert (found.outcomes.ranks > 0).sum() == 1


def test_the_best_of_several_labels():
    logits = jnp.array([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [5.0, 0.0, 0.0]])
    batch = {"label": jnp.array([0, 1, 1]), SEVERAL: jnp.array([[0, 2], [1, -1], [1, 2]])}
    np.testing.assert_array_equal(best_label(logits, batch), [2, 1, 1])
    np.testing.assert_array_equal(LabelMeasure().measured(logits, batch)["top1"], [0, 1, 0])
    np.testing.assert_array_equal(best_label(logits, {"label": batch["label"]}), batch["label"])


def test_only_present_is_for_one_network_with_classes(place, tmp_path):
    config = default_config()
    config.data.scenes.train_examples, config.data.scenes.test_examples = 8, 4
    config.data.scenes.size, config.task.name, config.data.source = 32, "localization", "xo_boxes"
    config.model.kwargs, config.steps, config.batch_size = {"filters": (4,)}, 1, 4
    config.log.report, config.eval.batch_size = False, 4
    train(config, tmp_path / "boxes")
    with pytest.raises(UserError, match="cannot leave out classes"):
        evaluate_runs([str(tmp_path / "boxes")], only_present=True)
    with pytest.raises(UserError, match="cannot be measured on corrupted"):
        evaluate_corrupted(str(tmp_path / "boxes"), [("fog", 1)])


def test_corrupted_images(place, capsys):
    arguments = ["evaluate", f"--workdir={place / 'run'}"]
    assert main([*arguments, "--corruptions=contrast:1,contrast:5,gaussian_noise"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("clean") and lines[1].endswith(" 0.00")
    record = json.loads(lines[-1])
    assert [*record["errors"]["gaussian_noise"]] == list("12345")
    assert record["error"] == 0 and record["examples"] == 16 and "mce" not in record
    means = [np.mean([*of.values()]) for of in record["errors"].values()]
    assert record["mean_error"] == pytest.approx(np.mean(means))


def test_corruptions_are_the_same_on_any_devices(place, tmp_path, capsys):
    kinds = [("impulse_noise", 5), ("elastic_transform", 3), ("frost", 5)]
    save_textures(tmp_path / "frost")
    run, frost = str(place / "run"), tmp_path / "frost"
    found = [
        evaluate_corrupted(run, kinds, devices=jax.devices()[:n], frost=frost).errors
        for n in (1, 4)
    ]
    assert found[0] == found[1]
    arguments = ["evaluate", f"--workdir={run}", f"--frost={frost}"]
    assert main([*arguments, "--corruptions=frost:5"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["errors"]["frost"]["5"] == found[0]["frost"][5]
    for more, message in (([], "is for --corruptions"), (["--corruptions=fog"], "does nothing")):
        assert main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err


def test_the_output_says_that_frost_is_left_out():
    errors = {kind: dict.fromkeys(range(1, 6), 0.5) for kind in CORRUPTIONS}
    whole = Corrupted("test", 0, 4, 0.25, errors, 0.6)
    assert whole.lines()[-1] == "mCE 60.00 % of AlexNet's" and "left_out" not in whole.record()
    errors = {kind: of for kind, of in errors.items() if kind != "frost"}
    without = Corrupted("test", 0, 4, 0.25, errors, 0.6)
    assert without.lines()[-2:] == [
        "mCE 60.00 % of AlexNet's, without frost",
        "frost is left out: --frost=DIR gives its photographs",
    ]
    assert without.record()["left_out"] == ["frost"]


def test_mce_is_of_imagenet_alone():
    names = [f"{n}" for n in range(1000)]
    errors = {
        kind: dict.fromkeys(range(1, 6), found.alexnet) for kind, found in CORRUPTIONS.items()
    }
    assert mce(errors, names) is None and mce(errors, SYNSETS) is None
    imagenet = [name for name, synset in synsets().items() if synset.label >= 0]
    assert mce(errors, imagenet) == pytest.approx(1)  # AlexNet's own
    assert mce({"fog": {3: 0.5}}, imagenet) is None  # not all severities


@pytest.mark.parametrize(
    ("option", "message"),
    [("--corruptions=fgo", "did you mean 'fog'"), ("--corruptions=fog --per_class", "--per_class")],
)
def test_bad_corruptions_are_one_line(place, capsys, option, message):
    assert main(["evaluate", f"--workdir={place / 'run'}", *option.split()]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
