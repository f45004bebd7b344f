"""Evaluation, prediction and export of published weights by their name, without a run."""

import json
import logging
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save, save_file

import jaxconv
from jaxconv.__main__ import main
from jaxconv.data.wordnet import imagenet
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_run
from jaxconv.weights.as_run import as_run
from jaxconv.weights.export import load_exported
from jaxconv.weights.write import to_torchvision
from tests.weights.hub import serving
from tests.weights.test_real import unpacked

pytestmark = pytest.mark.slow
NAME, SIZE = "squeezenet1_1", 48
MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
COLUMNS = "network\ttag\tplace\tlicence\tsize\tcrop\tinterpolation\tmean\tstd"
WANTS = f"MIT\t{SIZE}\t1\tbilinear\t0.4,0.5,0.6\t0.1,0.2,0.3"
# A class by its id, and two by their words.
FOLDERS = {"n02504458": 386, "goldfish": 1, "teddy_bear": 850}


@pytest.fixture(scope="module")
def network():
    """A network of ImageNet's classes, and its random variables."""
    model = jaxconv.create_model(NAME, 1000)
    init = jax.jit(lambda key, x: model.init(key, x, train=False))
    return model, init(jax.random.key(1), np.zeros((1, SIZE, SIZE, 3), np.float32))


@pytest.fixture
def hub(tmp_path, monkeypatch, network):
    """A hub with its weights, `toy`."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("JAXCONV_WEIGHTS", str(cache))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    content = save(to_torchvision(NAME, network[1]))
    with serving() as served:
        row = f"{NAME}\ttoy\t{served.add('toy', content)}\t{WANTS}"
        (cache / "own.tsv").write_text(f"{COLUMNS}\n{row}\n")
        yield served


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of three classes with images of the network's size, in no loss."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in FOLDERS:
        (root / name).mkdir()
        for number in range(3):
            image = random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            Image.fromarray(image).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def truth(network, pictures):
    """The logits [9, 1000] and labels [9] of the pictures, by the network itself."""
    files = sorted(pictures.rglob("*.png"))
    images = np.stack([np.asarray(Image.open(file), np.float32) / 255 for file in files])
    images = (images - np.float32(MEAN)) / np.float32(STD)
    logits = network[0].apply(network[1], images, train=False)
    return np.asarray(logits, np.float64), np.array([FOLDERS[f.parent.name] for f in files])


def said(capsys, *args, code=0):
    """What a command prints in its last line, as JSON, and all of it."""
    assert main([*map(str, args)]) == code
    out = capsys.readouterr().out
    return json.loads(out.splitlines()[-1]), out


def test_a_folder_of_some_classes_is_measured_among_them(hub, pictures, truth, capsys):
    record, out = said(
        *(capsys, "evaluate", f"--model={NAME}", "--pretrained=toy"),
        *(f"--config.data.source=folder:{pictures}", "--bootstrap=0"),
    )
    logits, labels = truth
    present = sorted(FOLDERS.values())
    among = logits[:, present]
    place = np.searchsorted(present, labels)
    shifted = among - among.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    assert record["examples"] == 9 and record["classes"] == 3  # the whole folder, not a tenth of it
    assert record["loss"] == pytest.approx(-log_p[np.arange(9), place].mean(), rel=1e-4)
    assert record["top1"] == pytest.approx((among.argmax(axis=1) == place).mean())
    assert "3 of 1,000: those that the set has examples of" in out
    assert record["network"].startswith(f"weights of {NAME}.toy (http://127.0.0.1")


def test_files_are_predicted_as_the_network_does(hub, pictures, truth, capsys, tmp_path):
    best = truth[0].argmax(axis=1)
    weights = (f"--model={NAME}", "--pretrained=toy")
    assert main(["predict", *weights, "--json", "--top=1", str(pictures)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["top"][0]["class"] for row in rows] == [imagenet()[n] for n in best]
    found = jaxconv.predict(images=pictures, model=NAME, pretrained="toy", top=1)
    other = jaxconv.predict(
        images=pictures, model=NAME, pretrained="toy", overrides={"data.mean": (0.9,)}
    )
    expected = np.exp(truth[0] - truth[0].max(axis=1, keepdims=True))
    expected = (expected / expected.sum(axis=1, keepdims=True)).max(axis=1)
    got = [one.probabilities[0] for one in found]
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert got[0] != other[0].probabilities[0]
    out = tmp_path / "out"
    assert main(["export", *weights, f"--out={out}", "--platforms=cpu"]) == 0
    image = np.asarray(Image.open(pictures / "goldfish" / "0.png"))[None]
    program = load_exported(str(out))
    assert program.class_names == imagenet()
    name = str(pictures / "goldfish" / "0.png")
    (row,) = [row for row in rows if row["file"] == name]
    assert program.predict(image).max() == pytest.approx(row["top"][0]["probability"], rel=1e-4)
    again = tmp_path / "again"
    assert main(["export", *weights, f"--out={again}", "--format=safetensors"]) == 0
    arrays = load_file(again / "model.safetensors")
    (content,) = hub.files.values()
    (tmp_path / "first.safetensors").write_bytes(content)
    first = load_file(tmp_path / "first.safetensors")
    assert arrays.keys() == first.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(arrays[key], value)


def test_weights_of_own_classes(pictures, tmp_path, caplog, monkeypatch):
    """Their names come from the file beside them, in another order than the folders'; without it
    the classes are the folder's.
    """
    model = jaxconv.create_model(NAME, 3)
    init = jax.jit(lambda key, x: model.init(key, x, train=False))
    variables = init(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32))
    place = tmp_path / "mine"
    place.mkdir()
    save_file(to_torchvision(NAME, variables), place / "model.safetensors")
    names = ["teddy_bear", "n02504458", "goldfish"]
    settings = {"data.source": f"folder:{pictures}", "data.image_size": SIZE}
    kept = {"class_names": names, "preprocessing": {"mean": MEAN, "std": STD}}
    (place / "network.json").write_text(json.dumps(kept))
    with as_run(NAME, place, settings, split="") as run:
        named = evaluate_run(run.workdir)
        assert named.task.class_names == tuple(names) and not run.some_classes
    (place / "network.json").unlink()
    caplog.set_level(logging.INFO, "jaxconv")
    monkeypatch.setattr(logging.getLogger("jaxconv"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("jaxconv"), "handlers", [])
    settings |= {"data.mean": MEAN, "data.std": STD, "data.crop_ratio": 1.0}
    with as_run(NAME, place, settings, split="") as run:
        plain = evaluate_run(run.workdir)
        assert plain.task.class_names == tuple(sorted(names))
    assert "the 3 classes of the weights are taken for those of folder:" in caplog.text
    # The same logits, of classes in another order.
    first, second = named.outcomes, plain.outcomes
    np.testing.assert_allclose(first.logits, second.logits, rtol=1e-5)
    own = [first.class_names[n] for n in first.labels]
    assert own == [second.class_names[n] for n in second.labels]
    with pytest.raises(UserError, match="has 3 classes, and the weights 5, whose names are not"):
        five = jaxconv.create_model(NAME, 5)
        variables = jax.eval_shape(
            lambda key, x: five.init(key, x, train=False),
            *(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32)),
        )
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
        save_file(to_torchvision(NAME, zeros), place / "model.safetensors")
        with as_run(NAME, place, settings, split=""):
            pass


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "evaluate: give --workdir, or --model and --pretrained"),
        (["--model=squeezenet1_1"], "give --workdir, or --model and --pretrained"),
        (["--model=squeezenet1_2", "--pretrained=toy"], "did you mean 'squeezenet1_1'"),
        ([f"--model={NAME}", "--pretrained=toi"], "--pretrained=toi: .*did you mean 'toy'"),
        ([f"--model={NAME}", "--pretrained=toy", "--workdir=x"], "give --workdir, or --model"),
        ([f"--model={NAME}", "--pretrained=toy", "--checkpoint=best"], "--checkpoint=best: is of"),
        ([f"--model={NAME}", "--pretrained=toy", "--config.steps=3"], "config.steps: is not used"),
        (["--model=fcn_resnet50", "--pretrained=toy"], "a network on resnet50.*for classifiers"),
        (["--model=resnet18", f"--pretrained={NAME}.toy"], "do not fit resnet18|resnet18"),
    ],
)
def test_wrong_commands_are_one_line(hub, pictures, capsys, args, words):
    args = [*args, f"--config.data.source=folder:{pictures}"] if args else args
    code = main(["evaluate", *args])
    error = capsys.readouterr().err.strip().splitlines()
    assert code in (1, 2) and error[-1].startswith("jaxconv: ")
    assert re.search(words, error[-1]), error
    assert "Traceback" not in "".join(error)


def test_wrong_data_and_weights(hub, pictures, tmp_path):
    def opened(folder, *overrides, pretrained="toy"):
        with as_run(NAME, pretrained, [f"data.source=folder:{folder}", *overrides], split=""):
            pass

    with pytest.raises(UserError, match="--model: say on what"):  # noqa: SIM117
        with as_run(NAME, "toy", split=""):
            pass
    copy = tmp_path / "copy"
    shutil.copytree(pictures, copy)
    (copy / "goldfish").rename(copy / "gold")
    with pytest.raises(UserError, match="gold: not among ImageNet's 1,000 classes"):
        opened(copy)
    (copy / "gold").rename(copy / "crane")
    with pytest.raises(UserError, match="'crane' is the name of several classes .*n02012849"):
        opened(copy)
    (copy / "crane").rename(copy / "African elephant")
    with pytest.raises(UserError, match="African elephant, n02504458: the same class"):
        opened(copy)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is a run; give --workdir="):
        opened(pictures, pretrained=str(tmp_path / "run"))


@pytest.mark.full
def test_photographs_by_efficientnet_lite0(coco256, tmp_path, tmp_path_factory):
    """Real weights on real photographs, whose classes are found by their names."""
    weights = unpacked("weights_efficientnet_lite0", tmp_path_factory) / "efficientnet_lite0.npz"
    classes = {"zebra": "zebra", "banana": "banana", "toilet": "toilet_seat"}
    for part in ("train2017", "val2017"):
        listed = json.loads((coco256 / part / "boxes.json").read_text())
        names = {category["id"]: category["name"] for category in listed["categories"]}
        for image in listed["images"]:
            area = 0.1 * image["width"] * image["height"]
            boxes = [box for box in listed["annotations"] if box["image_id"] == image["id"]]
            kinds = {names[box["category_id"]] for box in boxes}
            if kinds <= classes.keys() and len(kinds) == 1 and max(
                box["bbox"][2] * box["bbox"][3] for box in boxes
            ) > area:  # fmt: skip
                folder = tmp_path / classes[kinds.pop()]
                folder.mkdir(exist_ok=True)
                shutil.copy(coco256 / part / "images" / image["file_name"], folder)
    settings = {"data.source": f"folder:{tmp_path}", "data.mean": (127 / 255,)}
    settings["data.std"] = (128 / 255,)
    with as_run("efficientnet_lite0", weights, settings, split="") as run:
        assert run.some_classes
        result = evaluate_run(run.workdir, only_present=True).result
    assert (result["examples"], result["classes"], result["top1"]) == (8, 3, 1.0)
