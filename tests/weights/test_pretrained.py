"""Weights by name: in networks, in runs with their preprocessing, pinned; from a hub of our own."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save, save_file

import jaxconv
from jaxconv.checks import check_config
from jaxconv.config import default_config, set_key
from jaxconv.data.canvas import fit_size
from jaxconv.errors import UserError
from jaxconv.look.opened import open_model
from jaxconv.run import train
from jaxconv.train.initial import load_weights
from jaxconv.train.restore import restore_run
from jaxconv.weights import pretrained
from jaxconv.weights.convert import convert
from jaxconv.weights.fetch import sha256_of
from jaxconv.weights.preprocessing import (
    KEYS,
    filled,
    preprocessing_in,
    settings_of,
    with_preprocessing,
)
from jaxconv.weights.pretrained import (
    Weights,
    find_weights,
    preprocessing_of,
    read_weights,
)
from jaxconv.weights.published import Preprocessing
from jaxconv.weights.write import export_weights
from tests.conftest import TINY, assert_one_line_error, command, tiny_config
from tests.weights.hub import COMMIT, serving
from tests.weights.test_weights import state_dict_of

pytestmark = pytest.mark.slow
NAME, CLASSES = "mobilenet_v3_small", 3
COLUMNS = "network\ttag\tplace\tlicence\tsize\ttest_size\tcrop\tinterpolation\tmean\tstd"
WANTS = "224\t256\t0.875\tbicubic\t0.4,0.5,0.6\t0.1,0.2,0.3"


@pytest.fixture(scope="module")
def state():
    return state_dict_of(NAME, CLASSES)


@pytest.fixture(scope="module")
def content(state):
    return save(state)


@pytest.fixture
def hub(tmp_path, monkeypatch, content):
    """A hub with the weights `toy` of the network and `nc`, which is not for commercial use."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("JAXCONV_WEIGHTS", str(cache))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    pretrained._say_licence.cache_clear()
    with serving() as served:
        rows = [
            f"{NAME}\ttoy\t{served.add('toy', content)}\tMIT\t{WANTS}",
            f"{NAME}\tnc\t{served.add('nc', content)}\tCC-BY-NC-4.0\t{WANTS}",
        ]
        (cache / "own.tsv").write_text("\n".join([COLUMNS, *rows]) + "\n")
        yield served


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_networks_with_their_weights(hub, tmp_path, state, caplog):
    expected = jaxconv.load_torchvision(NAME, state)
    save_file(state, tmp_path / "mine.safetensors")
    convert(str(tmp_path / "mine.safetensors"), NAME, str(tmp_path / "folder"))
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "mine.safetensors", tmp_path / "other" / "x.safetensors")
    for name in (
        *(True, "toy", f"{NAME}.toy", tmp_path / "mine.safetensors"),
        *(str(tmp_path / "folder"), tmp_path / "other"),
    ):
        model, variables = jaxconv.create_model(NAME, pretrained=name)
        assert model.num_classes == CLASSES
        assert_same(variables, expected)
    assert len(hub.asked) == 1 and "licence" not in caplog.text
    images = np.zeros((1, 32, 32, 3), np.float32)
    assert model.apply(variables, images, train=False).shape == (1, CLASSES)
    jaxconv.create_model(NAME, pretrained="nc")
    assert "licence CC-BY-NC-4.0, not for commercial use" in caplog.text


def test_other_classes_and_features(hub, state):
    expected = jaxconv.load_torchvision(NAME, state)
    model, variables = jaxconv.create_model(NAME, 5, pretrained="toy")
    assert model.num_classes == 5 and variables["params"]["fc2"]["kernel"].shape[-1] == 5
    assert_same(variables["params"]["fc1"], expected["params"]["fc1"])
    assert np.isfinite(variables["params"]["fc2"]["kernel"]).all()
    model, variables = jaxconv.create_model(NAME, 0, pretrained="toy")
    assert "fc2" not in variables["params"]
    images = np.zeros((1, 32, 32, 3), np.float32)
    assert model.apply(variables, images, train=False).shape == (1, 576)
    with pytest.raises(UserError, match=r"small.toy: the weights do not fit mobilenet_v3_large: "):
        jaxconv.create_model("mobilenet_v3_large", 0, pretrained=f"{NAME}.toy")


def test_without_pretrained_nothing_changes():
    assert jaxconv.create_model("chain", 3, filters=(4,)).num_classes == 3
    with pytest.raises(TypeError, match="num_classes"):
        jaxconv.create_model("chain")
    with pytest.raises(ValueError, match="did you mean"):
        jaxconv.create_model("resnet81", pretrained=True)


def test_names_that_are_none(hub, tmp_path):
    for name, words in (
        ("toi", "did you mean 'toy'"),
        (tmp_path / "no.pth", "no file or folder"),
        ("", "is empty"),
        ("hf:a", "must be hf:OWNER/REPO"),
    ):
        with pytest.raises(UserError, match=words):
            jaxconv.create_model(NAME, pretrained=name)
    for name in "ab":
        save_file({"x": np.ones(3, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="several files of weights"):
        jaxconv.create_model(NAME, pretrained=tmp_path)


def test_the_classes_of_a_segmentation_network_are_those_of_its_weights(tmp_path):
    name = "lraspp_mobilenet_v3_large"
    save_file(state_dict_of(name, 21), tmp_path / "a.safetensors")
    model, variables = jaxconv.create_model(name, pretrained=tmp_path / "a.safetensors")
    assert model.num_classes == 21 and variables["params"]["fc"]["kernel"].shape[-1] == 21


def test_settings_are_filled_where_they_are_defaults(hub, tmp_path, caplog):
    caplog.set_level("INFO", "jaxconv")
    config = default_config()
    config.model.name, config.model.init_from = NAME, "toy"
    config.data.source = "folder:nowhere"
    filled = with_preprocessing(config, tmp_path / "run")
    assert [filled.data[key.partition(".")[2]] for key in KEYS] == [
        *((0.4, 0.5, 0.6), (0.1, 0.2, 0.3)),
        *(224, 256, 0.875, "bicubic", (), ()),
    ]
    assert config.data.mean == (0.5,)  # as it was given
    said = f"as the weights of {NAME}.toy want it: data.mean 0.4,0.5,0.6, data.std 0.1,0.2,0.3, "
    said += "data.image_size 224, data.eval_image_size 256, data.crop_ratio 0.875, "
    assert said + "data.interpolation bicubic" in caplog.text
    assert config.data.interpolation == "bilinear" and "(the config has" not in caplog.text
    caplog.clear()
    config.data.std, config.data.image_size = (0.25,), 64
    filled = with_preprocessing(config, tmp_path / "run")
    assert filled.data.std == (0.25,) and filled.data.image_size == 64
    assert filled.data.eval_image_size == 0 and filled.data.crop_ratio == 0.875
    said = (
        "want data.std 0.1,0.2,0.3 (the config has 0.25), data.image_size 224 (the config has 64)"
    )
    assert said in caplog.text
    # Toys have no size to set, and a backbone's images are not those of a detector.
    config.data.source, config.data.image_size = "xo", 0
    assert with_preprocessing(config, tmp_path / "run").data.image_size == 0
    config.data.source = "folder:nowhere"
    config.model.name, config.model.init_from = "retinanet_resnet50_fpn", f"{NAME}.toy"
    filled = with_preprocessing(config, tmp_path / "run")
    assert filled.data.image_size == 0 and filled.data.mean == (0.4, 0.5, 0.6)
    config.model.init_from = ""
    assert with_preprocessing(config, tmp_path / "run") is config


@pytest.fixture(scope="module")
def resnet():
    return save(state_dict_of("resnet18", 5))


def test_a_run_starts_by_name_and_resumes_without_the_weights(
    hub, tmp_path, caplog, monkeypatch, resnet
):
    """The config that is written has what was filled in; so evaluation and prediction use it."""
    caplog.set_level("INFO", "jaxconv")
    url = hub.add("resnet", resnet)
    with (tmp_path / "cache" / "own.tsv").open("a") as file:
        file.write(f"resnet18\ttoy\t{url}\tMIT\t{WANTS}\n")
    settings = {
        "model__name": "resnet18",
        "model__init_from": "toy",
        "data__xo__size": 33,
        "optimizer__learning_rate": 0.01,
        "optimizer__schedule__name": "constant",
        "optimizer__schedule__warmup_steps": 0,
    }
    train(tiny_config(**settings, steps=2), str(tmp_path / "run"))
    assert f"started from weights of resnet18.toy ({url})" in caplog.text
    assert (
        "as the weights of resnet18.toy want it: data.mean 0.4,0.5,0.6, data.std 0.1" in caplog.text
    )
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["model"]["init_from"] == "toy" and written["data"]["std"] == [0.1, 0.2, 0.3]
    train(tiny_config(**settings, steps=3), str(tmp_path / "whole"))
    monkeypatch.setenv("JAXCONV_WEIGHTS", str(tmp_path / "empty"))  # neither table nor file
    train(tiny_config(**settings, steps=3), str(tmp_path / "run"))
    whole, resumed = (restore_run(tmp_path / name)[0].variables for name in ("whole", "run"))
    assert_same(whole, resumed)
    # Grey images are normalised by the mean of the three channels' numbers.
    looked = jaxconv.open_run(tmp_path / "run")
    images = np.full((1, 33, 33, 1), 255, np.uint8)
    np.testing.assert_allclose(looked.inputs(images), (1 - 0.5) / 0.2, rtol=1e-5)
    # Where the run goes out again, its file brings the preprocessing along.
    for form in ("torch", "safetensors"):
        out = tmp_path / form
        described = export_weights(str(tmp_path / "run"), str(out), form=form)
        assert described["model"] == "resnet18" and described["step"] == 3
        wants = preprocessing_of(find_weights(str(out), ("resnet18",)))
        assert wants == Preprocessing((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), interpolation="bilinear")
        assert_same(read_weights(str(out), ("resnet18",))[0], whole)
    process = command(
        "export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--format=torch"
    )
    file = tmp_path / "out" / "model.pth"
    assert json.loads(process.stdout) == {"file": str(file), "model": "resnet18", "step": 3}
    assert file.read_bytes() == (tmp_path / "torch" / "model.pth").read_bytes()
    for option, words in (
        ("--format=h5", "unknown; choose safetensors, torch"),
        ("--format=torchh", "did you mean 'torch'"),
    ):
        out = f"--out={tmp_path / 'o'}"
        process = command("export", f"--workdir={tmp_path / 'run'}", out, option)
        assert_one_line_error(process, 2, words)


def test_a_teacher_by_name(hub, tmp_path, monkeypatch):
    """A name of the table teaches as its converted file does."""
    state = {
        name: np.ones_like(value) if name.endswith("running_var") else 0.1 * value
        for name, value in state_dict_of("resnet18", 2).items()
    }
    content = save(state)
    with (tmp_path / "cache" / "own.tsv").open("a") as file:
        file.write(f"resnet18\ttaught\t{hub.add('resnet', content)}\tMIT\t{WANTS}\n")
    convert("resnet18.taught", "resnet18", str(tmp_path / "converted"))
    settings = {"model__name": "text:conv3-4 bn relu globalpool fc", "data__xo__size": 33}
    settings["data__xo__channels"] = 3
    found = {}
    for name, teacher in (("name", "resnet18.taught"), ("file", tmp_path / "converted"), ("", "")):
        changes = {"distill__teacher": teacher, "distill__alpha": 0.9} if name else {}
        train(tiny_config(**settings, **changes, steps=3), str(tmp_path / f"run{name}"))
        found[name] = restore_run(tmp_path / f"run{name}")[0].variables
    assert len(hub.asked) == 1  # fetched once
    assert_same(found["name"], found["file"])
    kernels = [found[name]["params"]["conv1"]["kernel"] for name in ("name", "")]
    assert not np.array_equal(*kernels)  # it was taught
    # A repository that says its network and what it wants, of the hub: another process, as the
    # library reads its variables once.
    pytest.importorskip("huggingface_hub")
    wants = {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "license": "mit"}
    about = {"architecture": "resnet18", "pretrained_cfg": wants}
    hub.files["/me/teacher/model.safetensors"] = content
    hub.files["/me/teacher/config.json"] = json.dumps(about).encode()
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hf")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    keys = settings | {"distill__teacher": f"hf:me/teacher@{COMMIT}", "distill__alpha": 0.9}
    options = [f"--config.{key.replace('__', '.')}={value}" for key, value in keys.items()]
    options += ["--config.steps=3", "--config.log.progress=False", "--config.log.report=False"]
    tiny = [option for option in TINY if "filters" not in option]  # of another network
    trained = command("train", *tiny, *options, f"--workdir={tmp_path / 'runhub'}")
    assert trained.returncode == 0, trained.stderr
    asked = f"/me/teacher/resolve/{COMMIT}/model.safetensors"
    assert asked in [path for _, path, _ in hub.asked]
    # On one device, where the others had several.
    by_hub = restore_run(tmp_path / "runhub")[0].variables
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), by_hub, found["name"])
    wrong = tiny_config(**settings, distill__teacher="resnet18.tought", steps=3)
    with pytest.raises(UserError, match="config.distill.teacher=resnet18.tought: .*did you mean"):
        train(wrong, str(tmp_path / "wrong"))
    grey = tiny_config(**settings | {"data__xo__channels": 1}, distill__teacher="resnet18.taught")
    with pytest.raises(UserError, match="weights of resnet18.taught .* do not fit ResNet"):
        train(grey, str(tmp_path / "grey"))


def test_convert_and_look_take_names_and_keep_the_preprocessing(hub, tmp_path, state):
    described = convert("toy", NAME, str(tmp_path / "out"))
    assert described["preprocessing"]["mean"] == (0.4, 0.5, 0.6)
    assert_same(load_weights(tmp_path / "out")[0], jaxconv.load_torchvision(NAME, state))
    folder = Weights("out", (NAME,), path=tmp_path / "out")
    row = find_weights("toy", (NAME,))
    assert preprocessing_of(folder) == preprocessing_of(row) == row.row.preprocessing
    file = tmp_path / "out" / "weights.json"
    for wrong in ({"men": [1]}, [1]):
        file.write_text(json.dumps(described | {"preprocessing": wrong}))
        with pytest.raises(UserError, match=r"weights.json: preprocessing is damaged"):
            preprocessing_of(folder)
    state = {name: np.resize(value, value.shape) for name, value in state.items()}
    state["classifier.3.weight"] = np.resize(state["classifier.3.weight"], (1000, 1024))
    state["classifier.3.bias"] = np.zeros(1000, np.float32)
    save_file(state, tmp_path / "all.safetensors")
    looked = open_model(NAME, str(tmp_path / "all.safetensors"))
    assert looked.config.data.mean == (0.485, 0.456, 0.406)  # nobody says another
    with pytest.raises(UserError, match="which do not fit"):
        open_model(NAME, "toy")


@pytest.mark.parametrize(
    ("name", "canvas", "sides"),
    [
        ("fasterrcnn_resnet50_fpn", (1344, 1344), (800, 1333)),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", (640, 640), (320, 640)),
        ("fcos_resnet50_fpn", (1344, 1344), (800, 1333)),
        ("retinanet_resnet50_fpn_v2", (1344, 1344), (800, 1333)),
        ("maskrcnn_resnet50_fpn", (1344, 1344), (800, 1333)),
        ("ssd300_vgg16", (300, 300), ()),
        ("ssdlite320_mobilenet_v3_large", (320, 320), ()),
    ],
)
def test_detectors_bring_their_canvas(name, canvas, sides, caplog):
    """As torchvision's own transform resizes, but that SSD's images keep their shape."""
    config = default_config()
    config.task.name, config.data.source = "detection", "coco:somewhere"
    config.model.name, config.model.init_from, config.steps = name, "True", 1
    caplog.set_level("INFO", "jaxconv")
    data = filled(config).data
    assert (data.canvas, data.sides, data.image_size) == (canvas, sides, 0)
    assert len(data.mean) == 3 and f"data.canvas {canvas[0]},{canvas[1]}" in caplog.text
    assert ("stretched to a square" in caplog.text) == (not sides)
    check_config(filled(config))
    size = 0 if sides else canvas[0]
    wants = preprocessing_in(filled(config))
    assert wants.size == (sides or (size,))
    assert settings_of(wants, True, on_canvas=True).get("data.sides", ()) == sides

    # torchvision: the shorter side has 800 pixels, if the longer then has no more than 1333.
    for height, width in ((480, 640), (640, 480), (200, 1000)):
        if sides:
            scale = min(sides[0] / min(height, width), sides[1] / max(height, width))
            expected = int(height * scale), int(width * scale)
            assert fit_size(height, width, data.canvas, data.sides) == expected


def test_detectors_whose_canvas_is_another(caplog):
    def of(**changes):
        config = default_config()
        config.task.name, config.data.source = "detection", "coco:somewhere"
        config.model.name, config.model.init_from = "fcos_resnet50_fpn", "True"
        for key, value in changes.items():
            set_key(config, key.replace("__", "."), str(value))
        caplog.clear()
        return filled(config).data

    data = of(data__canvas=(512, 512))
    assert data.canvas == (512, 512) and data.sides == ()
    assert (
        "want data.canvas 1344,1344 (the config has 512,512), data.sides 800,1333 (" in caplog.text
    )
    data = of(data__canvas=(1344, 1344))
    assert data.sides == (800, 1333) and "the config has" not in caplog.text
    data = of(data__image_size=256)
    assert data.canvas == () and "data.canvas 1344,1344 (the config has none)" in caplog.text
    data = of(model__init_from="resnet50.tv2_in1k")  # of the backbone alone
    assert data.canvas == () and "canvas" not in caplog.text
    data = of(data__source="xo_boxes")  # no files
    assert data.canvas == () and data.sides == ()


def test_pins(hub, tmp_path, content):
    process = command("weights", NAME, "--pin=toy")
    assert process.returncode == 0, process.stderr
    said = json.loads(process.stdout)
    file = tmp_path / "cache" / said["pinned"].rpartition("/")[2]
    assert said["sha256"] == sha256_of(file)
    assert json.loads(command("weights", NAME, "--json").stdout.splitlines()[0])["cached"] == (
        "pinned"
    )
    # The same first digits, which a name can have; another file.
    entry = json.loads((tmp_path / "cache" / "pins.json").read_text())
    entry[said["pinned"]]["sha256"] = said["sha256"][:-1] + "x"
    (tmp_path / "cache" / "pins.json").write_text(json.dumps(entry))
    with pytest.raises(UserError, match=r"not the file: its SHA-256 is .*\(pinned\)"):
        jaxconv.create_model(NAME, pretrained="toy")
    assert_one_line_error(
        command("weights", NAME, f"--pin={tmp_path}"), 2, "only what is fetched is pinned"
    )


@pytest.mark.parametrize("known", [True, False])
def test_weights_of_the_hub(hub, tmp_path, monkeypatch, content, known, caplog):
    """As timm's repositories are; brought by hand, so that no library is needed."""
    folder = tmp_path / "cache" / "timm" / f"net{known}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    settings = {
        "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288], "crop_pct": 0.9, "test_crop_pct": 1.0,
        "interpolation": "bicubic", "license": "cc-by-nc-4.0",
    }  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if known:
        (folder / "config.json").write_text(json.dumps({"pretrained_cfg": settings}))
    place = f"hf:timm/net{known}"
    _, variables = jaxconv.create_model(NAME, pretrained=place)
    assert variables["params"]["fc2"]["bias"].shape == (CLASSES,)
    wants = preprocessing_of(find_weights(place, (NAME,)))
    if known:
        assert "licence cc-by-nc-4.0, not for commercial use" in caplog.text
        assert dataclasses.astuple(wants) == ((0.5,) * 3, (0.2,) * 3, (224,), 288, 1.0, "bicubic")
    else:
        assert wants is None and "what its weights want of images is not known" in caplog.text
    assert os.environ["HF_HUB_OFFLINE"] == "1" and not hub.asked
