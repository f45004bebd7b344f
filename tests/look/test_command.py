"""`jaxconv look PICTURE`: every picture of a run as a file, and every bad input as one line."""

import matplotlib.image
import pytest

from jaxconv.__main__ import main
from jaxconv.commands.look import PICTURES
from jaxconv.run import train
from tests.conftest import tiny_config, write_images

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("look") / "run"
    train(tiny_config(), str(workdir))
    return workdir


def look(*arguments):
    return main(["look", *map(str, arguments)])


# Of detectors.
OTHERS = ("precision",)


@pytest.mark.parametrize(
    "picture", [name for name, one in PICTURES.items() if one.opens and name not in OTHERS]
)
def test_every_picture_of_a_run(run, tmp_path, capsys, picture):
    out = tmp_path / "a.png"
    assert look(picture, f"--workdir={run}", f"--out={out}") == 0
    assert capsys.readouterr().out == f"{out}\n"
    pixels = matplotlib.image.imread(out)
    assert pixels.std() > 0.02 and pixels.shape[0] > 100


@pytest.mark.parametrize("out", ["a.svg", "a.pdf"])
def test_other_formats(run, tmp_path, out):
    assert (
        look(
            "activations",
            f"--workdir={run}",
            "--layer=pool2",
            "--example=3",
            f"--out={tmp_path / out}",
        )
        == 0
    )
    content = (tmp_path / out).read_bytes()
    assert content.startswith(b"%PDF" if out.endswith("pdf") else b"<?xml") and len(content) > 5000


def test_files_networks_and_the_lecture(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "set", count=1, size=(16, 16), mode="L")
    (image,) = (tmp_path / "set" / "test" / "cat").iterdir()
    for picture in ("walk", "predictions", "activations"):
        assert look(picture, f"--workdir={run}", f"--image={image}") == 0
    assert look("filters", "--model=lenet5") == 0
    assert look("lecture") == 0
    assert look("story", f"--workdir={run}", "--model=lenet*", "--model=resnet20*") == 0
    assert capsys.readouterr().out.split() == [
        "walk.png",
        "predictions.png",
        "activations.png",
        "filters.png",
        "lecture.png",
        "story.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["filters"], 2, ["filters needs one network: give --workdir=DIR or --model=NAME"]),
        (["filters", "RUN", "--model=lenet5"], 2, ["needs one network"]),
        (
            ["filters", "RUN", "--out=a.jpg"],
            2,
            ["--out=a.jpg: ends in '.jpg'", "give .png or .svg or .pdf"],
        ),
        (
            ["filters", "RUN", "--out=/nowhere/a.png"],
            1,
            ["--out=/nowhere/a.png: cannot be written"],
        ),
        (
            ["filters", "RUN", "--layer=conv1"],
            2,
            [
                "no convolution is called 'conv1', did you mean 'conv",
                "the convolutions are conv1_1, conv2_1",
            ],
        ),
        (["filters", "RUN", "--weights=x"], 2, ["--weights and --workdir: give only one of them"]),
        (
            ["filters", "--model=lenet5", "--checkpoint=5"],
            2,
            ["--checkpoint and --model: give only one of them"],
        ),
        (
            ["walk", "RUN", "--layer=pool1"],
            2,
            [
                "--layer: walk does not take it; it takes --workdir, --model",
                "--image, --number, --out",
            ],
        ),
        (
            ["walk", "RUN", "--image=a.png", "--example=3"],
            2,
            ["--example and --image: give only one of them"],
        ),
        (["lecture", "RUN"], 2, ["--workdir: lecture does not take it; it takes --out"]),
        (["filters", "RUN", "--config.seed=1"], 2, ["look uses the config of the run"]),
        (
            ["filters", "--model=lenet6"],
            2,
            ["no network is called 'lenet6', did you mean 'lenet5'?"],
        ),
        (
            ["filters", "--model=lenet5", "--weights=/nowhere"],
            1,
            ["/nowhere: is no file or folder"],
        ),
        (["filters", "--workdir=/nowhere"], 2, ["/nowhere: holds no run"]),
        (
            ["activations", "RUN", "--layer=pol1"],
            2,
            ["no layer is called 'pol1', did you mean 'pool1'?"],
        ),
        (["activations", "RUN", "--example=30"], 2, ["the split has 30 examples, 0 to 29"]),
        (["predictions", "RUN", "--example=30"], 2, ["the split has 30 examples, 0 to 29"]),
        (["walk", "RUN", "--image=/nowhere.png"], 1, ["/nowhere.png: cannot be read"]),
        (["patches", "RUN", "--layer=votes"], 2, ["votes is (2,) and has no spatial axes"]),
        (
            ["attribution", "RUN", "--layer=votes"],
            2,
            ["Grad-CAM needs a layer with spatial axes; votes is (2,). The last layer with"],
        ),
        (["walk", "RUN", "--member=2"], 2, ["the run has one network, not an ensemble"]),
        (["walk", "RUN", "--checkpoint=99"], 1, ["99"]),
        (
            ["walk", "--model=lenet5"],
            2,
            ["lenet5, random weights has no examples; give --image=FILE"],
        ),
        (["mistakes", "RUN", "--split=validation"], 2, ["validation"]),
        (["story", "--model=chain"], 2, ["no published error of chain"]),
        (["story", "--model=lenet9"], 2, ["no network is called 'lenet9'"]),
    ],
)
def test_bad_input_is_one_line(run, capsys, arguments, code, words):
    arguments = [f"--workdir={run}" if argument == "RUN" else argument for argument in arguments]
    assert look(*arguments) == code
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("jaxconv: ")
    ]
    for word in words:
        assert word in line
