"""Sounds, texts and volumes: the network's input, the files, and a small training run on each."""

import io
import re
import wave

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.checks import check_config
from jaxconv.config import default_config, load_config
from jaxconv.data.interface import DamagedError, describe
from jaxconv.data.signals import (
    encode_text,
    fit_length,
    log_mel,
    mel_filters,
    read_volume,
    read_wav,
)
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.run import train
from jaxconv.train.transforms import make_transforms
from tests.conftest import ROOT, rarely, tiny_config


def wav(samples, rate=8_000, channels=1, width=2):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(
            np.asarray(samples).astype({1: np.uint8, 2: "<i2", 4: "<i4"}[width]).tobytes()
        )
    return buffer.getvalue()


def test_wav_files_with_the_extensible_header():
    """WAVE_FORMAT_EXTENSIBLE with the subformat PCM (Microsoft, "Multiple Channel Audio Data and
    WAVE Files").
    """
    plain = wav([0, 16384, -32768])
    guid = bytes.fromhex("0100000000001000800000aa00389b71")
    header = (
        b"\xfe\xff"
        + plain[22:36]
        + (22).to_bytes(2, "little")
        + (16).to_bytes(2, "little")
        + (4).to_bytes(4, "little")
        + guid
    )
    size = (len(plain) - 8 + 24).to_bytes(4, "little")
    extensible = plain[:4] + size + plain[8:16] + (40).to_bytes(4, "little") + header + plain[36:]
    np.testing.assert_allclose(read_wav(extensible, 8_000), [0, 0.5, -1])
    with pytest.raises(DamagedError, match="cannot be read as a WAV file"):
        read_wav(extensible.replace(guid, b"\x03" + guid[1:]), 8_000)


def test_wav_files():
    samples = read_wav(wav([0, 16384, -32768, 32767]), 8_000)
    np.testing.assert_allclose(samples, [0, 0.5, -1, 32767 / 32768])
    np.testing.assert_allclose(
        read_wav(wav([0, 16384, -16384, 16384], channels=2), 8_000), [0.25, 0]
    )
    for data, words in (
        (wav([1], width=4), "has 32 bits per sample; save it with 16"),
        (wav([1], rate=44_100), "44100 samples per second, but config.data.audio.rate is 8000"),
        (wav([]), "holds no samples"),
        (b"no sound", "cannot be read as a WAV file"),
        (b"", "cannot be read as a WAV file"),
        (wav([1])[:20], "cannot be read as a WAV file"),
        (
            wav([1]).replace(b"\x01\x00\x01\x00", b"\x03\x00\x01\x00", 1),
            "cannot be read as a WAV file",
        ),  # floating point
    ):
        with pytest.raises(DamagedError, match=words):
            read_wav(data, 8_000)


def test_length():
    np.testing.assert_array_equal(fit_length(np.arange(10), 4), [3, 4, 5, 6])
    np.testing.assert_array_equal(fit_length(np.array([1, 2, 3]), 6), [0, 1, 2, 3, 0, 0])


@pytest.mark.parametrize("frequency", [200, 1_000, 3_000])
def test_a_tone_lights_up_its_mel_filter(frequency):
    rate, mels = 16_000, 40
    tone = np.sin(2 * np.pi * frequency * np.arange(rate) / rate).astype(np.float32)
    spectrogram = log_mel(tone, rate, mels)
    assert (
        spectrogram.shape == (98, mels) and spectrogram.dtype == np.float32
    )  # 1 + (16000 - 400)/160 = 98.5
    centres = 700 * (
        10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), mels + 2)[1:-1] / 2595) - 1
    )
    assert abs(spectrogram.mean(axis=0).argmax() - np.abs(centres - frequency).argmin()) <= 1
    # By hand: one frame's power.
    frame = tone[:400] * np.hanning(400)
    power = np.abs(np.fft.rfft(frame, 512)) ** 2 / 400
    np.testing.assert_allclose(
        spectrogram[0], np.log(power @ mel_filters(512, rate, mels) + 1e-6), rtol=1e-3, atol=1e-3
    )


def test_mel_filters_cover_the_middle_evenly():
    """Neighbouring triangles add up to one between the first and the last corner."""
    filters = mel_filters(4_096, 16_000, 20)
    inner = slice(filters[:, 0].argmax(), filters[:, -1].argmax())
    np.testing.assert_allclose(filters[inner].sum(axis=1), 1, rtol=1e-5)


def test_codes_of_texts():
    assert encode_text("añ", 5, "").tolist() == [97, 195, 177, 0, 0]
    assert encode_text("abcabc", 4, "cb").tolist() == [0, 2, 1, 0]
    config = tiny_config(data__source="sentences", data__text__alphabet="abc", data__text__length=8)
    source = open_source(config.data, "train")
    assert source.image_shape == (8, 4) and source.images.shape == (3_000, 8)
    augment, preprocess = make_transforms(config, describe(source))
    batch = preprocess({"image": jnp.array(source.images[:2])})
    np.testing.assert_array_equal(batch["image"].argmax(axis=-1), source.images[:2])
    assert batch["image"].shape == (2, 8, 4) and batch["image"].dtype == jnp.float32
    np.testing.assert_array_equal(
        augment(jax.random.key(0), {"image": jnp.array(source.images[:2])})["image"], batch["image"]
    )


def test_signals_are_normalised_as_they_are():
    config = tiny_config(
        data__source="tones", data__mean=(-4.0,), data__std=(2.0,), data__toy__train_examples=3
    )
    source = open_source(config.data, "train")
    _, preprocess = make_transforms(config, describe(source))
    np.testing.assert_allclose(
        preprocess({"image": jnp.array(source.images)})["image"],
        (source.images + 4) / 2,
        rtol=1e-5,
        atol=1e-5,
    )
    config = tiny_config(
        data__source="solids", data__mean=(0.5,), data__std=(0.5,), data__toy__train_examples=3
    )
    source = open_source(config.data, "train")
    _, preprocess = make_transforms(config, describe(source))
    assert source.images.dtype == np.uint8 and source.images.shape == (3, 16, 16, 16, 1)
    np.testing.assert_allclose(
        preprocess({"image": jnp.array(source.images)})["image"],
        source.images / 127.5 - 1,
        rtol=1e-5,
        atol=1e-5,
    )
    with pytest.raises(
        UserError,
        match="config.augment.erasing.probability is 0.5, but it is only for images and solids "
        r"holds signals \(volumes have pad_crop, padding, flip, own\)",
    ):
        config = tiny_config(data__source="solids", augment__erasing__probability=0.5)
        make_transforms(config, describe(source))


def test_volume_files(tmp_path):
    def npy(array):
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    assert read_volume(npy(np.zeros((2, 3, 4), np.uint8))).shape == (2, 3, 4, 1)
    assert read_volume(npy(np.zeros((2, 3, 4, 5), np.float64))).dtype == np.float32
    for data, words in (
        (npy(np.full((2, 3, 4), np.nan)), "infinite or NaN"),
        (npy(np.zeros((2, 3))), re.escape("has shape (2, 3); a volume is [D, H, W]")),
        (npy(np.zeros((2, 3, 4), np.int32)), "numbers of type int32; save it as uint8 or float32"),
        (npy(np.zeros((2, 3, 4)))[:-9], "cannot be read as a .npy file"),
        (npy(np.array([{}] * 2)), "cannot be read as a .npy file"),
        (b"", "cannot be read as a .npy file"),
        (b"PK\x03\x04 cut off", "cannot be read as a .npy file"),  # a .npz file under another name
        (npy(np.zeros((2, 3, 4))).replace(b")", b"("), "cannot be read as a .npy file"),
    ):
        with pytest.raises(DamagedError, match=words):
            read_volume(data)


@pytest.fixture
def folder(tmp_path):
    """WAV files and volumes, two classes each."""
    for split in ("train", "test"):
        for name in ("high", "low"):
            for kind in ("sounds", "volumes"):
                (tmp_path / kind / split / name).mkdir(parents=True)
            for n in range(3):
                (tmp_path / "sounds" / split / name / f"{n}.wav").write_bytes(
                    wav(np.arange(400 + n))
                )
                np.save(
                    tmp_path / "volumes" / split / name / f"{n}.npy",
                    np.full((4, 5, 6), n, np.float32),
                )
    return tmp_path


def settings(source, **changes):
    config = default_config().data
    config.source = source
    config.audio.rate, config.audio.seconds, config.audio.mels = 8_000, 0.05, 8
    for key, value in changes.items():
        config[key] = value
    return config


def test_folders_of_sounds_and_volumes(folder):
    config = settings(f"folder:{folder / 'sounds'}")
    source = open_source(config, "train")
    assert (
        source.class_names == ("high", "low")
        and source.image_shape == (3, 8, 1)
        and source.element.kind == "signal"
    )
    config.audio.form = "waveform"
    assert open_source(config, "train").images.shape == (6, 400, 1)
    volumes = open_source(settings(f"folder:{folder / 'volumes'}"), "train")
    assert (
        volumes.image_shape == (4, 5, 6, 1)
        and volumes.images[:, 0, 0, 0, 0].tolist() == [0, 1, 2] * 2
    )
    with pytest.raises(
        UserError,
        match="the image shape of split 'test' are .*, but the network was trained with",
    ):
        open_source(settings(f"folder:{folder / 'volumes'}"), "test", like=describe(source))
    np.save(folder / "volumes/train/low/9.npy", np.zeros((4, 5, 7)))
    with pytest.raises(
        UserError, match=r"9.npy: is 4 x 5 x 7 x 1, but .*high/0.npy is 4 x 5 x 6 x 1"
    ):
        open_source(settings(f"folder:{folder / 'volumes'}"), "train")
    np.save(folder / "volumes/train/low/9.npy", np.zeros((4, 5, 6), np.uint8))
    with pytest.raises(
        UserError,
        match="9.npy: has numbers of type uint8, but .*high/0.npy has float32; save all as one "
        "type",
    ):
        open_source(settings(f"folder:{folder / 'volumes'}"), "train")
    (folder / "volumes/train/low/0.wav").write_bytes(wav([1]))
    with pytest.raises(
        UserError,
        match="holds files of several kinds, such as .*wav .sound. and .*npy .volume.; keep one",
    ):
        open_source(settings(f"folder:{folder / 'volumes'}"), "train")
    (folder / "sounds/train/low/9.wav").write_bytes(wav([1], rate=44_100))
    with pytest.raises(
        UserError,
        match="9.wav: has 44100 samples per second, but config.data.audio.rate is 8000; fix or "
        "remove it",
    ):
        open_source(config, "train")


def test_lines_of_text(tmp_path):
    # Spreadsheets begin a file with a byte order mark, which is not part of the first class.
    (tmp_path / "train.tsv").write_text(
        "\ufeffgood\tfine\nbad \tpoor\twith a tab\n\ngood\tñ\r\n", encoding="utf-8"
    )
    (tmp_path / "test.tsv").write_text("bad\tpoor\n")
    train_split = open_source(settings(f"text:{tmp_path}"), "train")
    assert train_split.class_names == ("bad", "good") and train_split.labels.tolist() == [1, 0, 1]
    assert (
        bytes(train_split.images[1]).strip(b"\0") == b"poor\twith a tab"
        and bytes(train_split.images[2]).strip(b"\0") == "ñ".encode()
    )
    assert open_source(
        settings(f"text:{tmp_path}"), "test", like=describe(train_split)
    ).labels.tolist() == [0]
    for content, words in (
        (
            b"ugly\tpoor\n",
            "test.tsv, line 1: .*'ugly', 'poor'.* is not a class, a tab and a text; the classes "
            "are bad, good",
        ),
        (b"bad\tx\nbad poor\n", "test.tsv, line 2"),
        (b"bad\t\xff\n", "is not UTF-8"),
    ):
        (tmp_path / "test.tsv").write_bytes(content)
        with pytest.raises(UserError, match=words):
            open_source(settings(f"text:{tmp_path}"), "test", like=describe(train_split))
    (tmp_path / "one.tsv").write_text("bad\tx\n")
    with pytest.raises(UserError, match="has 1 classes; a network needs at least two"):
        open_source(settings(f"text:{tmp_path}"), "one")
    with pytest.raises(
        UserError, match="file .*val.tsv not found; the folder's splits are: one, test, train"
    ):
        open_source(settings(f"text:{tmp_path}"), "val")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("audio.form", "mfcc", "must be one of log_mel, waveform"),
        ("audio.seconds", 0.01, "must be at least 0.05"),
        ("text.alphabet", "aab", "at most 255 different characters"),
        ("crop_ratio", 0.0, "must be more than 0"),
        ("crop_ratio", 1.5, "must be at most 1"),
        ("damaged_share", -0.1, "must be at least 0"),
        ("decoder", "opencv", "must be one of auto, simplejpeg, pillow"),
    ],
)
def test_settings_out_of_range(key, value, words):
    config = default_config()
    config.steps = 1
    config.data.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"config.data.{key} is .*{words}"):
        check_config(config)


def test_toys_are_functions_of_seed_split_and_index():
    for name in ("tones", "sentences", "solids", "xo_clips"):
        config = settings(name)
        config.toy.train_examples, config.toy.test_examples = 6, 3
        first, second, test = (open_source(config, split) for split in ("train", "train", "test"))
        np.testing.assert_array_equal(first.images, second.images)
        assert (
            len(test) == 3
            and not np.array_equal(first.images[:3], test.images)
            and len(np.unique(first.labels)) == len(first.class_names)
        )
        with pytest.raises(UserError, match="split 'val' not found; the splits are train and test"):
            open_source(config, "val")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", rarely(["waveform", "sentences", "volume", "xo_clips"], {"volume", "xo_clips"})
)
def test_experiments_learn(tmp_path, name):
    """1-D, 1-D text and 3-D networks and one for clips; chance is at most one third."""
    config = load_config(
        f"{ROOT / 'experiments' / name}.py:small",
        ["log.tensorboard=False", "log.progress=False", "log.report=False"],
    )
    result = train(config, tmp_path, devices=jax.devices()[:1])
    assert result["examples"] == 150 and result["top1"] > 0.8
