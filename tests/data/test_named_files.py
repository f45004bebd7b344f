"""Sets whose file names say the class, the split, and what is held out."""

import wave

import numpy as np
import pytest

from jaxconv.config import default_config
from jaxconv.data.folder import list_split
from jaxconv.data.named_files import held_out, parse_pattern, root_of
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from tests.conftest import SHARED


@pytest.fixture
def digits(tmp_path):
    """Two digits, two speakers, three takes, and a file of another name."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    names = [f"{d}_{s}_{t}.wav" for d in (0, 7) for s in ("ann", "bo") for t in (0, 2, 11)]
    for number, name in enumerate([*names, "readme.wav"]):
        with wave.open(str(folder / name), "wb") as file:
            file.setparams((1, 2, 8_000, 0, "NONE", ""))
            file.writeframes(np.full(800, number, "<i2").tobytes())
    return tmp_path


def takes(split):
    return sorted({int(name.rpartition("_")[2].removesuffix(".wav")) for name in split.names})


def test_takes_held_out(digits):
    path = f"{digits}/recordings/{{class}}_{{speaker}}_{{take}}.wav"
    test = list_split(path, "test", 0.1, 0, "take=0-4")
    train = list_split(path, "train", 0.1, 0, "take=0-4")
    assert takes(test) == [0, 2] and takes(train) == [11]
    assert test.classes == train.classes == ("0", "7") and test.labels == [0] * 4 + [1] * 4
    assert "files whose names are not {class}_{speaker}_{take}.wav: 1" in test.notes[0]
    speaker = list_split(path, "test", 0.1, 0, "speaker=bo")
    assert len(speaker.names) == 6 and all("_bo_" in name for name in speaker.names)
    drawn = [list_split(path, split, 1 / 3, 0).names for split in ("train", "test")]
    assert [*map(len, drawn)] == [8, 4] and not {*drawn[0]} & {*drawn[1]}


def test_split_in_the_name(digits):
    path = f"{digits}/recordings/{{class}}_{{split}}_{{}}.wav"
    assert len(list_split(path, "ann", 0.1, 0).names) == 6
    with pytest.raises(UserError, match="no split 'anna', did you mean 'ann'.*it has ann, bo"):
        list_split(path, "anna", 0.1, 0)


def test_as_a_source(digits):
    config = default_config()
    data = config.data
    data.source = f"folder:{digits}/{{}}/{{class}}_{{}}_{{take}}.wav"
    data.folder.test, data.audio.rate, data.audio.form = "take=11", 8_000, "waveform"
    data.audio.seconds = 0.1
    source = open_source(data, "test")
    assert len(source) == 4 and source.name(3).endswith("recordings/7_bo_11.wav")
    assert np.allclose(source[3]["image"] * 32768, 11) and source[3]["label"] == 1


@pytest.mark.parametrize(
    ("name", "test", "message"),
    [
        ("{class}_{class}.wav", "", "the field {class} twice"),
        ("{speaker}_{}.wav", "", "has no {class}"),
        ("{class}-{x}.wav", "", "0 of its .* files are named {class}-{x}.wav, of 0 classes"),
        ("{class}_{take}.wav", "tak=1", "is 'tak=1', did you mean 'take'.*FIELD=FIRST-LAST"),
        ("{class}_{}.wav", "take=1", "it has none"),
        ("{class}_{take}.wav", "take=nine", "leaves the split 'test' empty"),
        ("{class}_{1a}.wav", "", "{1a} in .* is not a name"),
    ],
)
def test_what_does_not_fit(digits, name, test, message):
    with pytest.raises(UserError, match=message):
        list_split(f"{digits}/recordings/{name}", "test", 0.1, 0, test)


def test_no_fields_no_test(digits):
    with pytest.raises(UserError, match="data.folder.test is 'take=1'; it is for names with"):
        list_split(str(digits), "test", 0.1, 0, "take=1")
    with pytest.raises(UserError, match="folder .*missing not found"):
        parse_pattern(f"{digits}/missing/{{class}}.wav", "config.data.source")


def test_values():
    test = held_out("take=0-4,x,9", ("class", "take"))
    found = [value for value in ("0", "4", "5", "x", "09", "9", "-1") if test({"take": value})]
    assert found == ["0", "4", "x", "9"]
    assert root_of("a/b/{class}/c.wav") == "a/b" and root_of("{class}.wav") == "."


def test_real_digits(tmp_path):
    """The set as it is: 300 to test, 2,700 to train."""
    import tarfile

    with tarfile.open(SHARED / "data" / "fsdd.tar.xz") as archive:
        names = [member.name for member in archive.getmembers() if member.name.endswith(".wav")]
    pattern = parse_pattern(f"{tmp_path}/{{class}}_{{speaker}}_{{take}}.wav", "x")
    fields = [pattern.match(name.rpartition("/")[2]) for name in names]
    is_test = held_out("take=0-4", pattern.fields)
    assert sum(map(is_test, fields)) == 300 and len(fields) == 3_000
    assert {found["class"] for found in fields} == {*"0123456789"}
