"""Weights from files, into folders and training: other classes, other channels, bad files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import jaxconv
from jaxconv.errors import UserError
from jaxconv.run import train
from jaxconv.train import initial
from jaxconv.train.initial import adapt_channels, fit, load_weights, save_weights
from jaxconv.train.restore import restore_run
from jaxconv.weights.convert import convert
from jaxconv.weights.names import keys_of
from tests.conftest import TINY, assert_one_line_error, command, tiny_config

pytestmark = pytest.mark.slow


def state_dict_of(name="resnet18", classes=5, seed=0):
    """Random arrays under torchvision's names."""
    random = np.random.default_rng(seed)
    model = jaxconv.create_model(name, classes)
    variables = jaxconv.models.abstract_variables(model, (1, *jaxconv.model_info(name).input_size))
    leaves = flatten_dict(variables, sep="/")
    arrays = {}
    for path, key in keys_of(name, leaves).items():
        shape = leaves[path].shape
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), range(len(shape)))
        arrays[key] = random.random([shape[axis] for axis in axes], np.float32) + 0.1
    return arrays


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """A safetensors file of a random ResNet-18 for 5 classes, and its converted folder."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(state_dict_of(), folder / "resnet18.safetensors")
    convert(str(folder / "resnet18.safetensors"), "resnet18", str(folder / "out"))
    return folder


def test_a_converted_folder_gives_what_the_file_holds(resnet18):
    variables, description = load_weights(resnet18 / "out")
    direct = jaxconv.load_torchvision("resnet18", state_dict_of())
    jax.tree.map(np.testing.assert_array_equal, variables, direct)
    assert description["model"] == "resnet18" and description["source"].startswith(
        "resnet18.safetensors, CRC-32 "
    )
    model = jaxconv.create_model("resnet18", 5)
    assert model.apply(variables, jnp.ones((1, 33, 33, 3)), train=False).shape == (1, 5)


def test_wrong_files(tmp_path, resnet18):
    for name, content, message in (
        ("absent.pth", None, "the file does not exist"),
        ("net.onnx", b"\x08\x07\x12x", "ONNX"),
        ("net.safetensors", b"\xff" * 40, "safetensors"),
        ("cut.safetensors", (resnet18 / "resnet18.safetensors").read_bytes()[:2000], "safetensors"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            convert(str(tmp_path / name), "resnet18", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_entries_that_do_not_fit_are_named_and_nothing_is_written(tmp_path):
    arrays = state_dict_of()
    del arrays["layer1.0.conv1.weight"]
    arrays["layer9.conv.weight"] = np.ones((3, 3), np.float32)
    arrays["conv1.weight"] = arrays["conv1.weight"][:, :, 1:]
    save_file(arrays, tmp_path / "net.safetensors")
    with pytest.raises(UserError) as error:
        convert(str(tmp_path / "net.safetensors"), "resnet18", str(tmp_path / "out"))
    for word in (
        "missing: layer1.0.conv1.weight",
        "left over: layer9.conv.weight",
        "conv1.weight is (64, 3, 6, 7)",
    ):
        assert word in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_alone(tmp_path, resnet18):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        convert(str(resnet18 / "resnet18.safetensors"), "resnet18", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_writing_that_fails_leaves_no_half_folder(tmp_path, monkeypatch):
    def full(*_):
        raise ValueError("RESOURCE_EXHAUSTED: no space left")

    monkeypatch.setattr(initial, "write_json", full)
    with pytest.raises(UserError, match="cannot be written .*no space left"):
        save_weights(
            str(tmp_path / "out"), "resnet18", {"params": {"a": np.ones(3, np.float32)}}, "made up"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "flip", "json", "gone"])
def test_damaged_folders(tmp_path, damage):
    variables = {
        "params": {"fc": {"kernel": np.ones((40, 3), np.float32), "bias": np.zeros(3, np.float32)}}
    }
    save_weights(str(tmp_path / "out"), "resnet18", variables, "made up")
    data = max(
        (path for path in (tmp_path / "out" / "variables").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:-20])
    elif damage == "flip":
        description = json.loads((tmp_path / "out" / "weights.json").read_text())
        (tmp_path / "out" / "weights.json").write_text(json.dumps(description | {"fingerprint": 1}))
    elif damage == "json":
        (tmp_path / "out" / "weights.json").write_text("{")
    else:
        (tmp_path / "out" / "weights.json").unlink()
    with pytest.raises(UserError):
        load_weights(tmp_path / "out")


def test_layouts_are_converted_one_after_another(tmp_path, monkeypatch):
    variables = {"params": {"old": {"kernel": np.ones((4, 3), np.float32)}}}
    save_weights(str(tmp_path / "out"), "resnet18", variables, "made up")

    def rename(old, new):
        return lambda model, flat: {path.replace(old, new): value for path, value in flat.items()}

    monkeypatch.setattr(
        initial, "CONVERSIONS", {1: rename("old", "newer"), 2: rename("newer", "newest")}
    )
    monkeypatch.setattr(initial, "LAYOUT", 3)
    assert list(load_weights(tmp_path / "out")[0]["params"]) == ["newest"]
    monkeypatch.setattr(initial, "LAYOUT", 0)
    with pytest.raises(UserError, match="update jaxconv"):
        load_weights(tmp_path / "out")


def test_weights_with_nan_are_no_start(tmp_path):
    network = {"params": {"fc": {"kernel": np.float32([[1, np.nan]]), "bias": np.ones(2)}}}
    save_weights(str(tmp_path / "out"), "lenet5", network, "made up")
    with pytest.raises(UserError, match="out: NaN or infinity in params/fc/kernel: .* diverged"):
        load_weights(tmp_path / "out")


def test_a_grey_image_gives_what_its_channel_three_times_gave():
    kernel = np.random.default_rng(0).standard_normal((3, 3, 3, 4), np.float32)
    grey = np.random.default_rng(1).random((1, 8, 8, 1), np.float32)
    expected = jaxconv.layers.convolve(jnp.repeat(grey, 3, axis=-1), jnp.asarray(kernel))
    for channels in (1, 2, 3, 4, 5, 6):
        adapted, _ = adapt_channels(kernel, channels)
        assert adapted.shape == (3, 3, channels, 4) and adapted.dtype == np.float32
        if channels in (1, 3, 6):  # an exact multiple, so equality is exact
            found = jaxconv.layers.convolve(
                jnp.repeat(grey, channels, axis=-1), jnp.asarray(adapted)
            )
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def variables_of(text, shape, seed=0, **fields):
    return jaxconv.from_text(text, **fields).init(
        jax.random.key(seed), jnp.ones(shape), train=False
    )


def test_fit_takes_what_fits_and_says_what_it_did():
    old = variables_of(
        "conv3-4 relu maxpool2 conv3-5 relu globalpool fc", (1, 8, 8, 3), num_classes=7
    )
    new = variables_of(
        "conv3-4 relu maxpool2 conv3-5 relu globalpool fc", (1, 8, 8, 1), num_classes=3, seed=1
    )
    fitted, said = fit(old, new, 3)
    np.testing.assert_array_equal(
        fitted["params"]["conv2"]["kernel"], old["params"]["conv2"]["kernel"]
    )
    np.testing.assert_array_equal(fitted["params"]["fc3"]["kernel"], new["params"]["fc3"]["kernel"])
    np.testing.assert_allclose(
        fitted["params"]["conv1"]["kernel"], old["params"]["conv1"]["kernel"].sum(2, keepdims=True)
    )
    assert (
        "3 outputs instead of 7" in said[0]
        and "1 channels instead of 3: the filters' 3 channels are summed" in said[1]
    )
    same, said = fit(old, old, 7)
    assert not said
    jax.tree.map(np.testing.assert_array_equal, same, dict(old))


def test_fit_names_what_does_not():
    old = variables_of("conv3-4 relu conv3-5 relu globalpool fc3", (1, 8, 8, 3))
    new = variables_of("conv5-4 relu conv3-5 bn relu globalpool fc3", (1, 8, 8, 3))
    with pytest.raises(
        ValueError,
        match=r"missing: .*norm2/bias.*another shape: params/conv1/kernel has shape \(3, 3, 3, 4\)",
    ) as error:
        fit(old, new, 3)
    with pytest.raises(ValueError, match="left over: .*norm2"):
        fit(new, old, 3)
    assert "batch_stats/norm2/mean" in str(error.value)
    # A wider layer in the middle is no head.
    with pytest.raises(ValueError, match="of another shape: params/conv2"):
        fit(old, variables_of("conv3-4 relu conv3-6 relu globalpool fc3", (1, 8, 8, 3)), 3)


def test_training_starts_from_a_folder_and_from_another_run(tmp_path, resnet18, caplog):
    caplog.set_level("INFO", "jaxconv")
    settings = {
        "model__name": "resnet18",
        "steps": 3,
        "data__xo__size": 33,
        "optimizer__learning_rate": 0.0,
    }
    config = tiny_config(**settings, model__init_from=str(resnet18 / "out"))
    train(config, str(tmp_path / "a"))
    for words in (
        "started from weights of resnet18",
        "fc is newly initialized: 2 outputs instead of 5",
        "1 channels instead of 3",
    ):
        assert words in caplog.text
    state, _ = restore_run(tmp_path / "a")
    # The learning rate is 0, so the parameters are the initial ones.
    direct = jaxconv.load_torchvision("resnet18", state_dict_of())
    np.testing.assert_array_equal(
        state.params["conv3_1"]["conv1"]["conv"]["kernel"],
        direct["params"]["conv3_1"]["conv1"]["conv"]["kernel"],
    )
    caplog.clear()
    train(tiny_config(**settings, model__init_from=str(tmp_path / "a")), str(tmp_path / "b"))
    assert "started from step 3 of the run" in caplog.text
    second, _ = restore_run(tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, second.params, state.params)


@pytest.mark.slow
def test_the_commands(tmp_path, resnet18):
    process = command(
        "convert",
        resnet18 / "resnet18.safetensors",
        "--model=resnet18",
        f"--out={tmp_path / 'out'}",
    )
    assert process.returncode == 0 and json.loads(process.stdout)["parameters"] == 11_179_077, (
        process.stderr
    )
    assert_one_line_error(
        command("convert", tmp_path / "no.pth", "--model=resnet18", f"--out={tmp_path / 'x'}"),
        1,
        "the file does not exist",
    )
    file = resnet18 / "resnet18.safetensors"
    assert_one_line_error(
        command("convert", file, "--model=resnet81", f"--out={tmp_path / 'x'}"), 2, "did you mean"
    )
    assert_one_line_error(
        command("convert", file, "--model=lenet5", f"--out={tmp_path / 'x'}"),
        1,
        "torchvision has no network",
    )
    for place, word in (
        (tmp_path / "out", "do not fit"),
        (tmp_path / "nowhere", "weights.json"),
        (file, "look like those of resnet18"),
    ):
        process = command(
            "train",
            *TINY,
            f"--workdir={tmp_path / 'run'}",
            "--config.steps=4",
            f"--config.model.init_from={place}",
        )
        assert_one_line_error(process, 1, word)
