"""Predictions for files: as in evaluation, from a run and its export; and unreadable files."""

import io
import json
import wave

import jax
import numpy as np
import pytest
from PIL import Image

from jaxconv.data.interface import DamagedError
from jaxconv.data.sources import open_given, open_source, reading_of
from jaxconv.data.wordnet import readable
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_workdir
from jaxconv.predict import GivenRecords, Item, find_items, predict_items
from jaxconv.run import train
from jaxconv.weights.export import export_workdir, load_exported, load_run
from tests.conftest import assert_one_line_error, command, tiny_config, write_images

CLASSES = ("cat", "dog", "hen", "owl", "pig", "rat")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """PNG and JPEG files, trained on at 8 pixels with the middle 3/4 kept; 42 of them in each
    split, more than a batch.
    """
    root = tmp_path_factory.mktemp("photographs")
    write_images(root / "images", classes=CLASSES, count=4, size=(21, 16))
    random = np.random.default_rng(1)
    for split in ("train", "test"):
        for name in CLASSES:
            for n in range(3):
                pixels = np.kron(
                    random.integers(0, 256, (4, 5, 3), np.uint8), np.ones((9, 9, 1), np.uint8)
                )
                Image.fromarray(pixels).save(
                    root / "images" / split / name / f"photo{n}.jpg", quality=90
                )
    config = tiny_config(
        data__source=f"folder:{root}/images",
        data__image_size=8,
        data__crop_ratio=0.75,
        model__kwargs__filters=(4,),
        steps=30,
    )
    train(config, str(root / "run"), devices=jax.devices()[:1])
    export_workdir(str(root / "run"), str(root / "out"), platforms=("cpu",))
    return root


@pytest.fixture(scope="module")
def networks(photographs):
    return load_run(str(photographs / "run")), load_exported(str(photographs / "out"))


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentences")
    config = tiny_config(
        data__source="sentences",
        data__toy__train_examples=24,
        data__toy__test_examples=6,
        data__text__length=48,
        model__name="text:conv1-6 conv5-8 relu globalpool fc",
        steps=3,
    )
    train(config, str(folder / "run"), devices=jax.devices()[:1])
    return folder / "run"


def test_predictions_are_what_evaluation_counts(photographs, networks):
    evaluated = evaluate_workdir(str(photographs / "run"), "train", devices=jax.devices()[:1])
    assert 0 < evaluated["top1"] < 1
    for network in networks:
        items = find_items([str(photographs / "images" / "train")], "image")
        found = list(predict_items(network, items, top=6))
        assert [prediction.item for prediction in found] == items and len(items) == evaluated[
            "examples"
        ] == 42
        true = [prediction.item.file.split("/")[-2] for prediction in found]
        assert np.mean(
            [p.classes[0] == name for p, name in zip(found, true, strict=True)]
        ) == pytest.approx(evaluated["top1"], abs=1e-12)
        of_true = [
            p.probabilities[p.classes.index(name)] for p, name in zip(found, true, strict=True)
        ]
        assert -np.mean(np.log(of_true)) == pytest.approx(evaluated["loss"], rel=1e-5)
        for prediction in found:
            assert (
                set(prediction.classes) == set(CLASSES)
                and list(prediction.probabilities) == sorted(prediction.probabilities)[::-1]
            )
            assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-6)


def test_probabilities_are_the_network_s_on_the_source_s_examples(photographs, networks):
    network, _ = networks
    config = tiny_config(
        data__source=f"folder:{photographs}/images", data__image_size=8, data__crop_ratio=0.75
    )
    source = open_source(config.data, "test")
    images = np.stack([source[i]["image"] for i in range(len(source))])
    expected = network.predict(images)
    found = list(
        predict_items(network, find_items([str(photographs / "images" / "test")], "image"), top=6)
    )
    for row, prediction in zip(expected, found, strict=True):
        ordered = [prediction.probabilities[prediction.classes.index(name)] for name in CLASSES]
        np.testing.assert_allclose(ordered, row, atol=1e-6)


def given(paths, config, source):
    element = source.element
    files = [Item(str(path), path) for path in paths]
    return open_given(
        GivenRecords(files),
        reading_of(config, element.kind, element.shape, {}),
        element.kind,
        element.shape,
    )


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize(("image_size", "crop_ratio"), [(10, 1.0), (9, 0.875), (0, 0.5)])
def test_images_are_the_same_pixels(tmp_path, decoder, image_size, crop_ratio):
    if decoder == "simplejpeg":
        pytest.importorskip("simplejpeg")
        pytest.importorskip("cv2")
    for suffix in ("png", "jpg"):
        write_images(
            tmp_path / suffix, size=(24, 24) if not image_size else (37, 29), count=2, suffix=suffix
        )
        config = tiny_config(
            data__source=f"folder:{tmp_path / suffix}",
            data__decoder=decoder,
            data__image_size=image_size,
            data__crop_ratio=crop_ratio,
        ).data
        source = open_source(config, "test")
        found = given(sorted((tmp_path / suffix / "test").rglob("*.*")), config, source)
        for i in range(4):
            np.testing.assert_array_equal(found[i]["image"], source[i]["image"])
            assert found[i]["image"].dtype == np.uint8


def test_images_of_another_size(tmp_path):
    """They are brought to a square of the set's own size, and refused by a network for oblong
    ones.
    """
    write_images(tmp_path / "square", size=(8, 8), count=2)
    write_images(tmp_path / "oblong", size=(12, 8), count=2)
    picture = np.repeat(np.array([[[10]], [[200]]], np.uint8), [32, 32], axis=0) * np.ones(
        (64, 96, 3), np.uint8
    )
    Image.fromarray(picture).save(tmp_path / "large.png")
    for name in ("square", "oblong"):
        config = tiny_config(data__source=f"folder:{tmp_path / name}").data
        found = given([tmp_path / "large.png"], config, open_source(config, "test"))
        if name == "square":
            pixels = found[0]["image"]
            assert (
                pixels.shape == (8, 8, 3) and (pixels[:3] == 10).all() and (pixels[5:] == 200).all()
            )
        else:
            with pytest.raises(
                DamagedError, match="is 96x64 pixels, but the network takes 12x8 pixels"
            ):
                found[0]


def wav(samples, rate=8_000):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, "<i2").tobytes())
    return buffer.getvalue()


def test_sounds_and_volumes_are_the_same_numbers(tmp_path):
    random = np.random.default_rng(0)
    for kind in ("sounds", "volumes", "grey"):
        for name in ("high", "low"):
            for split in ("train", "test"):
                (tmp_path / kind / split / name).mkdir(parents=True)
                place = tmp_path / kind / split / name
                if kind == "sounds":
                    (place / "a.wav").write_bytes(wav(random.integers(-9999, 9999, 420)))
                else:
                    volume = random.integers(0, 256, (3, 4, 5))
                    np.save(
                        place / "a.npy",
                        volume.astype(np.uint8) if kind == "grey" else volume.astype(np.float32),
                    )
        config = tiny_config(
            data__source=f"folder:{tmp_path / kind}",
            data__audio__rate=8000,
            data__audio__seconds=0.05,
            data__audio__mels=8,
        ).data
        source = open_source(config, "test")
        found = given(sorted((tmp_path / kind / "test").rglob("*.*")), config, source)
        for i in range(2):
            assert found[i]["image"].dtype == np.float32
            scale = 255 if kind == "grey" else 1
            np.testing.assert_allclose(
                found[i]["image"], source[i]["image"] / np.float32(scale), rtol=1e-6
            )
    with pytest.raises(DamagedError, match="is 3 x 8 x 1, but the network takes 3 x 4 x 5 x 1"):
        given([tmp_path / "sounds" / "test" / "low" / "a.wav"], config, source)[0]
    with pytest.raises(DamagedError, match="is 3 x 4 x 4 x 1, but the network takes 3 x 4 x 5 x 1"):
        np.save(tmp_path / "other.npy", np.zeros((3, 4, 4)))
        given([tmp_path / "other.npy"], config, source)[0]


def test_texts_are_the_same_codes(tmp_path, sentences):
    (tmp_path / "train.tsv").write_text(
        "good\tfine\nbad\tpoor ñ\r\ngood\tlonger than twelve bytes\n", encoding="utf-8"
    )
    config = tiny_config(data__source=f"text:{tmp_path}", data__text__length=12).data
    source = open_source(config, "train")
    (tmp_path / "lines.txt").write_bytes("fine\n\npoor ñ\r\nlonger than twelve bytes".encode())
    items = find_items([str(tmp_path / "lines.txt")], "text")
    assert [str(item) for item in items] == [f"{tmp_path}/lines.txt, line {n}" for n in (1, 3, 4)]
    found = open_given(GivenRecords(items), reading_of(config, "text", (12,), {}), "text", (12,))
    for i in range(3):
        np.testing.assert_array_equal(found[i]["image"], source[i]["image"])
    network = load_run(str(sentences))
    for prediction, text in zip(
        predict_items(network, items), ("fine", "poor ñ", "longer than twelve bytes"), strict=True
    ):
        codes = np.frombuffer(text.encode().ljust(48, b"\0"), np.uint8)
        assert prediction.probabilities[0] == pytest.approx(
            network.predict(codes[None]).max(), abs=1e-6
        )


def test_volumes_are_predicted_as_they_are_evaluated(tmp_path):
    """From .npy files, of a run on volumes in bfloat16; by the run, and by what was exported of
    it.
    """
    config = tiny_config(
        data__source="solids",
        data__toy__size=8,
        data__toy__train_examples=24,
        data__toy__test_examples=9,
        model__name="text:conv3-4 relu globalpool fc",
        model__dtype="bfloat16",
        steps=3,
    )
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    evaluated = train(config, run, devices=jax.devices()[:1])
    export_workdir(run, out)
    source = open_source(config.data, "test")
    for i in range(9):
        np.save(tmp_path / f"{i}.npy", source[i]["image"][..., 0])
    for network in (load_run(run), load_exported(out)):
        found = list(
            predict_items(
                network, find_items([str(tmp_path / f"{i}.npy") for i in range(9)], "signal")
            )
        )
        of_true = [
            p.probabilities[p.classes.index(source.class_names[source[i]["label"]])]
            for i, p in enumerate(found)
        ]
        # bfloat16 has 8 bits.
        assert -np.mean(np.log(of_true)) == pytest.approx(evaluated["loss"], rel=1e-2)
        volumes = np.stack([source[i]["image"] for i in range(9)])
        np.testing.assert_allclose(
            network.predict(volumes), network.predict(volumes / 255), atol=1e-2
        )


def test_what_a_folder_stands_for(tmp_path):
    for name in (
        "b.JPG",
        "a.png",
        "z/c.jpeg",
        "z/.hidden.png",
        ".git/d.png",
        "notes.txt",
        "sound.wav",
        "numbers.npy",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x\ny")
    (tmp_path / "empty").mkdir()

    def found(kind, *names):
        return [
            str(item).removeprefix(f"{tmp_path}/")
            for item in find_items([str(tmp_path / name) for name in names], kind)
        ]

    assert found("image", "") == ["a.png", "b.JPG", "z/c.jpeg"]
    assert found("signal", "") == ["numbers.npy", "sound.wav"]
    assert found("text", "") == ["notes.txt, line 1", "notes.txt, line 2"]
    assert found("image", "z", "notes.txt", "a.png", "nowhere") == [
        "z/c.jpeg",
        "notes.txt",
        "a.png",
        "nowhere",
    ]
    with pytest.raises(
        UserError,
        match="empty: has no .jpg, .jpeg, .*.pbm file; the network takes images from such files",
    ):
        found("image", "a.png", "empty")


def test_names_of_classes():
    assert readable("n02109961") == "n02109961 Eskimo dog, husky"
    assert readable("cat") == "cat" and readable("n00000001") == "n00000001"


@pytest.mark.slow
def test_the_command(photographs, networks, tmp_path):
    image = photographs / "images" / "test" / "cat" / "000.png"
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"no image")
    (tmp_path / "cut.jpg").write_bytes(
        (photographs / "images" / "test" / "owl" / "photo0.jpg").read_bytes()[:60]
    )
    run = command("predict", image, f"--workdir={photographs / 'run'}")
    assert run.returncode == 0 and run.stderr == "", run.stderr
    expected = next(iter(predict_items(networks[0], [Item(str(image), image)])))
    assert run.stdout == expected.rows() + "\n"
    assert len(run.stdout.splitlines()) == 6 and run.stdout.splitlines()[0] == str(image)
    exported = command(
        "predict",
        "--json",
        "--top=2",
        f"--exported={photographs / 'out'}",
        tmp_path,
        image,
        tmp_path / "none.png",
        image,
    )
    assert exported.returncode == 1 and "Traceback" not in exported.stderr
    lines = [json.loads(line) for line in exported.stdout.splitlines()]
    assert [line["file"] for line in lines] == [str(image)] * 2
    assert [row["class"] for row in lines[0]["top"]] == list(expected.classes[:2])
    assert [row["probability"] for row in lines[0]["top"]] == pytest.approx(
        expected.probabilities[:2], abs=1e-5
    )
    for name, why in (
        ("empty.png", "the file is empty"),
        ("text.jpg", "cannot be read as an image (cannot identify image file)"),
        ("cut.jpg", "cannot be read"), ("none.png", "No such file"),
    ):  # fmt: skip
        (line,) = [line for line in exported.stderr.splitlines() if f"{tmp_path}/{name}" in line]
        assert why in line
    assert len(exported.stderr.splitlines()) == 4


@pytest.mark.slow
def test_standard_input(photographs, sentences, networks):
    image = photographs / "images" / "test" / "dog" / "photo1.jpg"
    with open(image, "rb") as file:
        process = command("predict", "-", "--json", f"--exported={photographs / 'out'}", stdin=file)
    assert process.returncode == 0, process.stderr
    expected = next(iter(predict_items(networks[1], [Item("-", image)]))).as_dict()
    assert json.loads(process.stdout) == expected | {
        "top": [row | {"probability": pytest.approx(row["probability"])} for row in expected["top"]]
    }
    lines = command(
        "predict", "-", f"--workdir={sentences}", input="a horse\n\nbread and onion\n", stdin=None
    )
    assert lines.returncode == 0, lines.stderr
    rows = lines.stdout.splitlines()
    assert (
        rows[0] == "-, line 1" and rows[4] == "-, line 3" and len(rows) == 8
    )  # three classes each
    assert all(row.endswith(("animals", "kitchen", "weather")) for row in rows[1:4])
    nothing = command("predict", "-", f"--exported={photographs / 'out'}")
    assert nothing.returncode == 1 and nothing.stdout == "" and "-: is empty" in nothing.stderr


@pytest.mark.slow
def test_wrong_commands(photographs, tmp_path):
    run, out = f"--workdir={photographs / 'run'}", f"--exported={photographs / 'out'}"
    assert_one_line_error(command("predict", "x.png"), 2, "give --workdir, --exported, or --model")
    assert_one_line_error(command("predict", "x.png", run, out), 2, "not allowed with")
    assert_one_line_error(command("predict", run), 2, "FILE")
    assert_one_line_error(
        command("predict", "x.png", out, "--checkpoint=best"), 2, "use it with --workdir"
    )
    assert_one_line_error(command("predict", "x.png", f"--workdir={tmp_path}"), 2, "holds no run")
    assert_one_line_error(
        command("predict", "x.png", run, "--top=0"), 2, "whole number of at least 1"
    )
