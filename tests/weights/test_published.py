"""The table of published weights against what torchvision and timm say; your own rows; pins."""

import json
import math
import re
import sys

import pytest

from jaxconv.errors import UserError
from jaxconv.models import list_models
from jaxconv.weights.fetch import digest_in, hub_of
from jaxconv.weights.names import schemes_of
from jaxconv.weights.published import Pin, named, of_network, pin, pins, published
from jaxconv.weights.timm_names import of_timm
from tests.conftest import ROOT, assert_one_line_error, command


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCONV_WEIGHTS", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_the_table_is_what_the_libraries_say(torchvision, monkeypatch):
    """Every address, figure and size; `python docs/published_weights.py` writes it anew."""
    pytest.importorskip("timm")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.delitem(sys.modules, "published_weights", raising=False)
    import published_weights

    lines = published_weights.TABLE.read_text().splitlines()
    assert [line.split("\t") for line in lines[1:]] == published_weights.rows()
    assert lines[0].split("\t") == list(published_weights.COLUMNS)
    # What the script does not take from there as it stands: the crop, which is rounded.
    for row in published():
        theirs = row.network.removesuffix("_torchvision")
        if row.place.startswith("hf:") or theirs not in torchvision.models.list_models():
            continue
        enum = torchvision.models.get_model_weights(theirs)
        weights = next(weights for weights in enum if weights.url == row.place)
        made = weights.transforms()
        if row.preprocessing.crop:
            size = made.resize_size if not hasattr(made, "crop_size") else made.crop_size
            resized = made.resize_size[0]
            assert math.floor(size[0] / row.preprocessing.crop) == resized
        assert (row.name == of_network(row.network)[0].name) == (weights == enum.DEFAULT)


def test_every_row_can_be_read_and_checked():
    rows = published()
    assert len(rows) > 150 and len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.network in list_models() and schemes_of(row.network)
        if row.place.startswith("hf:"):
            theirs, _, tag = hub_of(row.place).repo.removeprefix("timm/").partition(".")
            assert of_timm(theirs) == (row.network, row.arguments) and tag == row.tag
        elif row.tag == "keras_in1k":
            assert re.fullmatch("md5:[0-9a-f]{32}", row.sha256)
            assert row.place.startswith("https://storage.googleapis.com/tensorflow/keras-")
        else:
            assert row.place.startswith("https://download.pytorch.org/models/")
            assert len(digest_in(row.place)) >= 8 and row.bytes > 4e6
        assert len(row.preprocessing.mean) == len(row.preprocessing.std) == 3
        assert row.licence in ("BSD-3-Clause", "Apache-2.0", "MIT", "CC-BY-NC-4.0")
        assert row.commercial == (row.licence != "CC-BY-NC-4.0")


def test_names():
    assert named("True", "resnet50").name == "resnet50.tv2_in1k"
    assert named("true", "resnet18").name == "resnet18.tv_in1k"
    assert named("a1_in1k", "resnet50").place == "hf:timm/resnet50.a1_in1k"
    assert named("resnet50.tv_in1k", "retinanet_resnet50_fpn").network == "resnet50"
    assert named("resnet50", "retinanet_resnet50_fpn").tag == "tv2_in1k"
    assert named("tv_coco", "fasterrcnn_resnet50_fpn").published == "box AP 37.0"
    assert named("tv9_in1k", "resnet50") is None
    with pytest.raises(UserError, match="no published weights are known for lenet5"):
        named("True", "lenet5")
    # SWAG's licence.
    assert not named("swag_ft_in1k", "regnet_y_16gf").commercial


def own(cache, *rows, header="network\ttag\tplace\tsha256\tlicence\tmean"):
    (cache / "own.tsv").write_text("\n".join([header, *rows]) + "\n")


def test_your_own_rows_come_first(cache):
    own(cache, "resnet50\tmine\thttps://me.org/a.pth\t\tnc-license\t0.5", "lenet5\tx\thf:me/x")
    assert [row.tag for row in of_network("resnet50")][:2] == ["mine", "tv2_in1k"]
    assert named("True", "lenet5").licence == "unknown"
    assert named("mine", "resnet50").preprocessing.mean == (0.5,)
    assert not named("mine", "resnet50").commercial


@pytest.mark.parametrize(
    ("row", "header", "message"),
    [
        ("a\t\tb", "network\ttag\tplace", "line 2: tag is empty"),
        ("a\tb\tc", "network\ttag\tpalce", "line 2: no column is called 'palce', did you mean"),
        ("a,b,c", "network,tag,place", "no column .* separate them by tabs"),
        ("a\tb\tc\tx", "network\ttag\tplace\tmean", "line 2: could not convert"),
        ("a\tb\tc\t12", "network\ttag\tplace\tsha256", "sha256 is '12'; it must be 8 to 64"),
        ("a\tb\tc\td\te", "network\ttag\tplace", "line 2: there are more values"),
    ],
)
def test_rows_that_are_wrong(cache, row, header, message):
    own(cache, row, header=header)
    with pytest.raises(UserError, match=message) as error:
        published()
    assert "own.tsv" in str(error.value) and "\n" not in str(error.value)
    (cache / "own.tsv").write_bytes(b"network\n\xff\xfe")
    with pytest.raises(UserError, match=r"own.tsv: cannot be read"):
        published()


def test_pins_stay(cache):
    pin("https://a", Pin("ab" * 32))
    pin("hf:a/b", Pin("cd" * 32, "0" * 40))
    assert pins() == {"https://a": Pin("ab" * 32), "hf:a/b": Pin("cd" * 32, "0" * 40)}
    for wrong in ("[]", "{", '{"a": {"sha257": ""}}', '{"a": 3}'):
        (cache / "pins.json").write_text(wrong)
        with pytest.raises(UserError, match=r"pins.json: cannot be read"):
            pins()


@pytest.mark.slow
def test_the_command_lists(cache):
    process = command("weights", "resnet50")
    lines = process.stdout.splitlines()
    assert process.returncode == 0 and lines[0].split()[:3] == ["name", "published", "size"]
    assert re.match(
        r"resnet50.tv2_in1k +top-1 80.858; top-5 95.434 +103 MB +BSD-3-Clause +- +224, crop 0.9655,"
        r" bilinear, mean 0.485,0.456,0.406, std .* https://download.pytorch.org/\S+11ad3fa6.pth$",
        lines[1],
    )
    assert any("CC-BY-NC-4.0 (not commercial)" in line for line in lines)
    (cache / "resnet18-f37072fd.pth").write_bytes(b"")
    process = command("weights", "resnet18", "--json")
    rows = [json.loads(line) for line in process.stdout.splitlines()]
    assert rows[0]["name"] == "resnet18.tv_in1k" and rows[0]["cached"] == "yes"
    assert {row["cached"] for row in rows[1:]} == {"-"}
    assert_one_line_error(command("weights", "resnet81"), 2, "did you mean 'resnet18'")
    assert_one_line_error(command("weights", "lenet5"), 1, "no published weights are known")
    assert_one_line_error(command("weights", "--pin=tv_in1k"), 2, "of which network?")
    assert_one_line_error(
        command("weights", "resnet18", "--pin=tv8_in1k"), 1, "--pin=tv8_in1k", "'tv_in1k'"
    )
