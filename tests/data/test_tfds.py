"""TensorFlow Datasets sets: prepared by TFDS's own builders, read without TensorFlow."""

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from jaxconv.config import default_config
from jaxconv.data.loading import Reader
from jaxconv.data.prepare import check_imagenet
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from tests.conftest import (
    ROOT,
    assert_one_line_error,
    assert_same_result,
    command,
    command_line,
    process_settings,
)

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="tensorflow is not installed"
)
# Three classes of ImageNet 2012: the first, a middle one and the last.
SYNSETS = ("n01440764", "n02690373", "n15075141")

BUILDERS = """
import sys
import numpy as np
import tensorflow_datasets as tfds

FEATURES = {
    "sounds": tfds.features.Audio(file_format="wav", sample_rate=16000),
    "texts": tfds.features.Text(),
    "unlabelled": tfds.features.Text(),
    "pictures": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
}

def value(kind, i):
    random = np.random.default_rng(i)
    return {
        "sounds": (1000 * np.sin(np.arange(100 + i))).astype(np.int64),
        "texts": f"text {i}",
        "unlabelled": f"text {i}",
        "pictures": random.integers(0, 256, (8, 6 + i, 3), np.uint8),
    }[kind]

class Set(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    name = KIND
    def _info(self):
        answer = tfds.features.ClassLabel(names=["no", "yes"])
        features = tfds.features.FeaturesDict({"input": FEATURES[KIND], "answer": answer})
        keys = ("input", "answer")
        return self.dataset_info_from_configs(features=features, supervised_keys=keys)
    def _split_generators(self, manager):
        return {"train": self._generate_examples(10), "test": self._generate_examples(4)}
    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"input": value(KIND, i), "answer": -1 if KIND == "unlabelled" else i % 2}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data_dir with small sets of every kind, and one in a format without random access."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    root = tmp_path_factory.mktemp("tfds")
    (root / "code").mkdir()
    script = "import sys; sys.path.insert(0, sys.argv[1])\n"
    for kind in ("sounds", "texts", "pictures", "unlabelled"):
        folder = root / "code" / kind
        folder.mkdir()
        (folder / f"{kind}_dataset_builder.py").write_text(f"KIND = {kind!r}\n" + BUILDERS)
        script += f"from {kind}.{kind}_dataset_builder import Set as {kind}\n"
        script += (
            f"{kind}(data_dir=sys.argv[2], file_format='array_record').download_and_prepare()\n"
        )
    script += "texts(data_dir=sys.argv[3], file_format='tfrecord').download_and_prepare()\n"
    arguments = [root / "code", root / "data", root / "tfrecord"]
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return root


def settings(folder, name, **changes):
    config = default_config().data
    config.source, config.tfds.data_dir = f"tfds:{name}", str(folder)
    for key, value in changes.items():
        config[key] = value
    return config


def test_pictures(prepared):
    source = open_source(settings(prepared / "data", "pictures", image_size=8), "train")
    assert (
        source.class_names == ("no", "yes")
        and source.images.shape == (10, 8, 8, 3)
        and sorted(source.labels) == [0] * 5 + [1] * 5
    )
    streamed = open_source(
        settings(prepared / "data", "pictures", image_size=8, resident_limit=0), "train"
    )
    for i in range(10):
        np.testing.assert_array_equal(streamed[i]["image"], source.images[i])
    some = open_source(
        settings(prepared / "data", "pictures:1.2.0", image_size=8), "train[:30%]+train[90%:]"
    )
    np.testing.assert_array_equal(some.images, source.images[[0, 1, 2, 9]])
    assert "pictures/1.2.0 train, example 3" in streamed.name(3)
    assert (
        streamed.checksum()
        != open_source(
            settings(prepared / "data", "pictures", image_size=8, resident_limit=0), "test"
        ).checksum()
    )


def test_texts_and_sounds(prepared):
    texts = open_source(settings(prepared / "data", "texts"), "test")
    assert texts.image_shape == (256, 256) and sorted(
        bytes(codes).strip(b"\0") for codes in texts.images
    ) == [b"text %d" % i for i in range(4)]
    config = settings(prepared / "data", "sounds")
    config.audio.form, config.audio.seconds = "waveform", 0.05
    sounds = open_source(config, "test")
    assert sounds.images.shape == (4, 800, 1) and np.abs(sounds.images).max() <= 1000 / 32768
    config.audio.rate = 8_000
    with pytest.raises(
        UserError, match="has 16000 samples per second; set --config.data.audio.rate=16000"
    ):
        open_source(config, "test")


def test_examples_without_a_label(prepared):
    """TFDS gives them the label -1, as in the test split of imagenet2012."""
    with pytest.raises(
        UserError,
        match="unlabelled/1.2.0 test, example 0: has the label -1, but the classes are 0 to 1",
    ):
        open_source(settings(prepared / "data", "unlabelled"), "test")


def test_damaged_records(prepared, tmp_path):
    """A corrupted file: an error that names an example."""
    shutil.copytree(prepared / "data" / "pictures", tmp_path / "pictures")
    (file,) = (tmp_path / "pictures/1.2.0").glob("*train*")
    content = bytearray(file.read_bytes())
    places = np.flatnonzero(np.frombuffer(content, np.uint8))
    for place in places[len(places) // 2 : len(places) // 2 + 50]:
        content[place] ^= 0xFF
    file.write_bytes(content)
    for resident_limit in (10**9, 0):
        with pytest.raises(UserError, match=r"pictures/1.2.0 train, example \d: cannot be read"):
            source = open_source(
                settings(tmp_path, "pictures", image_size=8, resident_limit=resident_limit), "train"
            )
            assert source.checksum()
            list(Reader(source, damaged_share=0.0).train_batches(0, 0, 5, 2))


def test_reading_does_not_import_tensorflow(prepared):
    script = f"""
import sys
from jaxconv.data.sources import open_source
from tests.data.test_tfds import settings
for name in ("texts", "sounds", "pictures"):
    source = open_source(settings({str(prepared / "data")!r}, name, image_size=8), "train")
    print(len(source), "tensorflow" in sys.modules)
"""
    process = subprocess.run(
        [sys.executable, "-c", script], **process_settings(), capture_output=True
    )
    assert process.stdout.split() == ["10", "False"] * 3, process.stderr


def test_errors_give_the_command(prepared):
    for folder, name, split, words in (
        (
            prepared,
            "cifar10",
            "train",
            r"is not prepared in .*: pip install 'jaxconv.prepare.' && jaxconv prepare cifar10 "
            rf"--data_dir={prepared}",
        ),
        (prepared, "imagenet2012", "train", "jaxconv prepare imagenet2012 --manual_dir=DIR"),
        (prepared / "data", "texts:3.0.0", "train", "is not prepared"),
        (
            prepared / "tfrecord",
            "texts",
            "train",
            "prepared as tfrecord, .*tfds convert_format --dataset_version_dir=.*texts/1.2.0 "
            "--out_file",
        ),
        (prepared / "data", "texts", "val", "cannot give the split 'val' .*it has t"),
        (prepared / "data", "texts", "train[:3", "cannot give the split"),
        (prepared / "data", "texts", "train[:0]", "is empty|cannot give the split"),
        (prepared / "data", "texts", "train[5:2]", "is empty|cannot give the split"),
    ):
        with pytest.raises(UserError, match=words):
            open_source(settings(folder, name), split)
    config = settings(prepared / "data", "texts")
    config.tfds.label = "input"
    with pytest.raises(
        UserError, match="the feature 'input' is not a class label; set --config.data.tfds.label"
    ):
        open_source(config, "train")
    config.tfds.label = "answers"
    with pytest.raises(
        UserError, match="has no feature 'answers' to use as the label; it has .*answer"
    ):
        open_source(config, "train")


def photograph(seed, height, width):
    """A JPEG of soft blobs and grain, about as large as a photograph's."""
    random = np.random.default_rng(seed)
    blobs = Image.fromarray(
        random.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    ).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.clip(np.asarray(blobs) + random.normal(0, 6, (height, width, 1)), 0, 255).astype(
        np.uint8
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def make_imagenet(folder, synsets=SYNSETS, images=12, validation=10, size=(60, 80)):
    """ImageNet's two tars in their real layout: a tar of tars of JPEGs, and a tar of JPEGs."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as tar:
        for number, synset in enumerate(synsets):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as members:
                for i in range(images):
                    add(
                        members,
                        f"{synset}_{i + 1}.JPEG",
                        photograph(1000 * number + i, size[0] + i % 3, size[1] + i % 5),
                    )
            add(tar, f"{synset}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for i in range(validation):
            add(tar, f"ILSVRC2012_val_{i + 1:08}.JPEG", photograph(-i - 1 + 10**6, *size))
    return folder


def trained_and_resumed(root, data, **settings):
    """Train on the prepared set in one run and in two, with the same result; then evaluate."""
    flags = [
        "--config=experiments/xo.py",
        "--config.data.source=tfds:imagenet2012",
        f"--config.data.tfds.data_dir={data}",
        "--config.data.train_split=train[:90%]",
        "--config.data.eval_split=validation",
        "--config.model.kwargs.filters=4,8",
        "--config.augment.random_resized_crop.scale=0.2,1",
        "--config.augment.flip=True",
        "--config.data.crop_ratio=0.875",
        "--config.data.resident_limit=0",
        "--config.optimizer.schedule.name=constant",
        "--config.optimizer.schedule.warmup_steps=0",
        "--config.epochs=0",
        "--config.log.tensorboard=False",
        "--config.log.report=False",
        *(f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()),
    ]
    results = {}
    for run, lengths in (("whole", (6,)), ("parts", (3, 6))):
        for steps in lengths:
            process = command("train", f"--workdir={root / run}", *flags, f"--config.steps={steps}")
            assert process.returncode == 0, process.stderr
        results[run] = process.stdout.splitlines()[-1]
    assert results["whole"] == results["parts"]
    evaluated = command("evaluate", f"--workdir={root / 'parts'}")
    assert_same_result(evaluated, process)
    return json.loads(results["whole"])


@pytest.mark.slow
@needs_tensorflow
def test_made_up_imagenet(tmp_path):
    """Prepare with TFDS's own builder from tars of the real layout, after a first try is killed."""
    tars = make_imagenet(tmp_path / "tars")
    arguments = (
        "prepare",
        "imagenet2012",
        f"--manual_dir={tars}",
        f"--data_dir={tmp_path / 'data'}",
    )
    assert_one_line_error(
        command(*arguments),
        1,
        "holds 3 classes, but ImageNet has 1,000; download it again, or accept it with --partial",
    )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command_line(*arguments, "--partial"), **process_settings(), **quiet)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "data").glob("imagenet2012/incomplete.*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match="is not prepared"):
        open_source(settings(tmp_path / "data", "imagenet2012"), "train")
    again = command(*arguments, "--partial")
    assert again.returncode == 0, again.stderr
    assert (
        "a preparation was interrupted: removing its leftovers" in again.stderr
        and "starting again" in again.stderr
    )
    assert (
        again.stdout.splitlines()[-1] == str(tmp_path / "data/imagenet2012/5.1.0")
        and "train 36, validation 10" in again.stderr
    )
    assert not list((tmp_path / "data").glob("imagenet2012/incomplete.*"))
    third = command(*arguments, "--partial")
    assert third.returncode == 0 and "is already prepared" in third.stderr
    source = open_source(settings(tmp_path / "data", "imagenet2012", image_size=16), "train")
    counts = np.bincount(source.labels, minlength=1000)
    assert {source.class_names[i]: counts[i] for i in np.flatnonzero(counts)} == dict.fromkeys(
        SYNSETS, 12
    )
    result = trained_and_resumed(
        tmp_path, tmp_path / "data", batch_size=8, data__image_size=32, eval__batch_size=4
    )
    assert result["examples"] == 10
    for view in ("10-crop", "dense --scales=32,40"):
        seen = command("evaluate", f"--workdir={tmp_path / 'parts'}", *f"--views={view}".split())
        assert seen.returncode == 0, seen.stderr
        record = json.loads(seen.stdout.splitlines()[-1])
        assert (
            record["examples"] == 10
            and record["view"].startswith(view.split()[0])
            and record["loss"] != result["loss"]
        )
        assert (
            0 <= record["intervals"]["height"][0] <= record["height"]
            and "lowest common ancestor" in seen.stdout
        )


@pytest.mark.full
@needs_tensorflow
def test_made_up_imagenet_of_natural_size(tmp_path):
    """3,000 JPEGs of about 500x375 pixels."""
    tars = make_imagenet(tmp_path / "tars", images=900, validation=300, size=(375, 500))
    process = command(
        "prepare",
        "imagenet2012",
        f"--manual_dir={tars}",
        f"--data_dir={tmp_path / 'data'}",
        "--partial",
        timeout=900,
    )
    assert process.returncode == 0, process.stderr
    assert "train 2,700, validation 300" in process.stderr
    assert (
        trained_and_resumed(tmp_path, tmp_path / "data", batch_size=128, data__image_size=224)[
            "examples"
        ]
        == 300
    )


def test_imagenet_s_tars_are_checked(tmp_path):
    with pytest.raises(UserError, match="set their folder with --manual_dir=DIR"):
        check_imagenet("")
    with pytest.raises(
        UserError, match="ILSVRC2012_img_train.tar not found; found: the folder does not exist"
    ):
        check_imagenet(str(tmp_path / "nowhere"))
    good = make_imagenet(tmp_path / "good")
    check_imagenet(str(good), partial=True)
    with pytest.raises(UserError, match="img_train.tar: holds 3 classes, but ImageNet has 1,000"):
        check_imagenet(str(good))
    whole = (good / "ILSVRC2012_img_val.tar").read_bytes()
    for content, words in (
        (whole[: len(whole) // 2], "img_val.tar: is damaged .unexpected end of data."),
        (b"no tar", "img_val.tar: is damaged"),
    ):
        (good / "ILSVRC2012_img_val.tar").write_bytes(content)
        with pytest.raises(UserError, match=words):
            check_imagenet(str(good), partial=True)
    strange = make_imagenet(tmp_path / "strange", synsets=("n01440764", "n99999999"))
    with pytest.raises(
        UserError, match="holds 'n99999999.tar', which is not a class of ImageNet 2012"
    ):
        check_imagenet(str(strange), partial=True)
    with tarfile.open(good / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in (1, 3):
            add(tar, f"ILSVRC2012_val_{number:08}.JPEG", photograph(number, 40, 40))
    with pytest.raises(
        UserError,
        match="holds 'ILSVRC2012_val_00000003.JPEG' in place of ILSVRC2012_val_00000002.JPEG",
    ):
        check_imagenet(str(good), partial=True)
    with tarfile.open(good / "ILSVRC2012_img_val.tar", "w") as tar:
        add(tar, "ILSVRC2012_val_00000001.JPEG", b"no image")
    with pytest.raises(UserError, match="ILSVRC2012_val_00000001.JPEG: cannot be read as an image"):
        check_imagenet(str(good), partial=True)


@needs_tensorflow
def test_preparing_names_the_nearest_set(tmp_path):
    process = command("prepare", "imagnette", f"--data_dir={tmp_path}")
    assert_one_line_error(
        process, 1, "not found in TensorFlow Datasets, did you mean 'imagenette'?"
    )


def test_preparing_needs_tensorflow(tmp_path):
    """The message if TensorFlow is not installed."""
    script = (
        "import importlib.util as u; u.find_spec = lambda name: None; from jaxconv.__main__ import "
        "main; raise SystemExit(main())"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, "prepare", "mnist", f"--data_dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert_one_line_error(
        process, 1, "needs tensorflow, which is not installed", "pip install 'jaxconv[prepare]'"
    )
