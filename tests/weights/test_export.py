"""Exported programs: the same probabilities at any batch size, with JAX alone, and bad inputs."""

import dataclasses
import json
import subprocess
import sys
import zlib
from functools import partial

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.errors import UserError
from jaxconv.layers import BatchNorm, Conv, Dense
from jaxconv.models.network import global_mean
from jaxconv.run import train
from jaxconv.train.restore import restore_run
from jaxconv.weights import export
from jaxconv.weights.export import export_workdir, load_exported, load_run, lower
from tests.conftest import TINY, assert_one_line_error, command, tiny_config

# Tolerance of probabilities: two programs may sum in different orders.
TOLERANCE = 1e-5
BATCHES = (1, 3, 8)
IMAGES = "text:conv3-4 bn relu maxpool2 conv3-8 bn relu globalpool fc"
TEXTS = "text:conv1-6 conv5-8 relu globalpool fc"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A run with BatchNorm and averaged weights on images [16, 16, 1], and its exported network."""
    folder = tmp_path_factory.mktemp("images")
    config = tiny_config(model__name=IMAGES, ema__decay=0.5, steps=6, optimizer__learning_rate=0.3)
    train(config, str(folder / "run"), devices=jax.devices()[:1])
    export_workdir(str(folder / "run"), str(folder / "out"))
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A run on texts [40], and its exported network."""
    folder = tmp_path_factory.mktemp("texts")
    config = tiny_config(
        data__source="sentences",
        data__toy__train_examples=24,
        data__toy__test_examples=6,
        data__text__length=40,
        model__name=TEXTS,
        steps=3,
    )
    train(config, str(folder / "run"), devices=jax.devices()[:1])
    export_workdir(str(folder / "run"), str(folder / "out"), platforms=("cpu",))
    return folder


def noise(n, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def softmax(logits):
    shares = np.exp(np.asarray(logits, np.float64))
    return shares / shares.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("n", BATCHES)
def test_images_with_batch_norm_and_averaged_weights(images, n):
    model = jaxconv.create_model(IMAGES, 2)
    state, _ = restore_run(images / "run")
    pixels = noise(n, (16, 16, 1))
    x = (jnp.asarray(pixels, jnp.float32) / 255 - 0.5) / 0.5
    exported = load_exported(str(images / "out"))
    found = exported.predict(pixels)
    assert found.shape == (n, 2) and found.dtype == np.float32
    apply = jax.jit(partial(model.apply, train=False))
    expected = apply(state.ema, x)
    np.testing.assert_allclose(found, softmax(expected), atol=TOLERANCE)
    np.testing.assert_allclose(found, load_run(str(images / "run")).predict(pixels), atol=TOLERANCE)
    np.testing.assert_allclose(exported.program(pixels)["logits"], expected, atol=1e-4)
    now = {"params": state.params, **state.model_state}
    assert np.abs(found - softmax(apply(now, x))).max() > 100 * TOLERANCE


@pytest.mark.parametrize("n", BATCHES)
def test_texts(texts, n):
    codes = noise(n, (40,))
    exported, run = load_exported(str(texts / "out")), load_run(str(texts / "run"))
    assert (
        exported.kind == "text"
        and exported.input_shape == (40,)
        and exported.class_names == ("animals", "kitchen", "weather")
    )
    state, _ = restore_run(texts / "run")
    model = jaxconv.create_model(TEXTS, 3)
    expected = softmax(
        jax.jit(partial(model.apply, train=False))(state.variables, jax.nn.one_hot(codes, 256))
    )
    for network in (exported, run):
        np.testing.assert_allclose(network.predict(codes), expected, atol=TOLERANCE)


def test_what_model_json_says(images):
    said = json.loads((images / "out" / "model.json").read_text())
    assert (
        said["class_names"] == ["o", "x"]
        and said["input_shape"] == [16, 16, 1]
        and said["dtype"] == "uint8"
    )
    assert said["reading"] == {
        "image_size": 16,
        "crop_ratio": 1.0,
        "decoder": "auto",
        "interpolation": "bilinear",
        "background": "",
        "canvas": [],
        "sides": [],
        "mean": [0.5],
    }
    assert (
        said["step"] == 6
        and said["platforms"] == ["cpu", "cuda", "tpu"]
        and said["config"]["ema"]["decay"] == 0.5
    )
    assert said["versions"]["jax"] == jax.__version__
    assert sorted(path.name for path in (images / "out").iterdir()) == ["model.json", "program.bin"]


@pytest.mark.slow
def test_the_program_needs_jax_alone(images, tmp_path):
    np.save(tmp_path / "pixels.npy", noise(5, (16, 16, 1)))
    script = """
import sys
sys.modules["jaxconv"] = sys.modules["flax"] = None
import jax, jax.export, numpy as np
out, folder = sys.argv[1:]
program = jax.export.deserialize(bytearray(open(f"{out}/program.bin", "rb").read()))
assert program.platforms == ("cpu", "cuda", "tpu"), program.platforms
np.save(f"{folder}/found.npy", program.call(np.load(f"{folder}/pixels.npy"))["probabilities"])
"""
    process = subprocess.run(
        [sys.executable, "-c", script, images / "out", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    expected = load_exported(str(images / "out")).predict(noise(5, (16, 16, 1)))
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=TOLERANCE)


class EveryForm(nn.Module):
    """A convolution for each form of layers/forms.py, and a plain one."""

    @nn.compact
    def __call__(self, x, train=False):
        for name, settings in {
            "plain": {"filters": 8, "padding": 1},
            "pointwise": {"filters": 16, "filter_size": 1, "stride": 2},
            "depthwise": {"filters": 16, "padding": 1, "groups": 16},
            "wide": {"filters": 16, "filter_size": 5, "padding": 2, "groups": 16, "stride": 2},
            "grouped": {"filters": 24, "padding": 1, "groups": 4},
            "narrow": {"filters": 8, "padding": 1, "stride": 2},
        }.items():
            x = Conv(**settings, name=name)(x)
            x = nn.relu(BatchNorm(use_running_average=not train)(x))
        return Dense(5, name="fc")(x) + Dense(5, name="fc_mean")(global_mean(x))


@pytest.fixture(scope="module")
def every_form():
    model = EveryForm()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 12, 12, 3)))
    program = lower(lambda x: model.apply(variables, x), (12, 12, 3), "float32")
    return model, variables, jax.export.deserialize(program.serialize())


@pytest.mark.parametrize("n", BATCHES)
def test_every_form_of_convolution(every_form, n):
    model, variables, program = every_form
    x = np.random.default_rng(n).standard_normal((n, 12, 12, 3), np.float32)
    np.testing.assert_allclose(
        program.call(x), jax.jit(model.apply)(variables, x), rtol=1e-4, atol=1e-5
    )


def test_each_platform_gets_its_own_form(every_form):
    """The program has grouped convolutions for GPUs and TPUs; the code for the CPU has none."""
    _, _, program = every_form
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert "feature_group_count = 16" in program.mlir_module()
    compiled = jax.jit(program.call).lower(jnp.ones((2, 12, 12, 3))).compile().as_text()
    assert "convolution(" in compiled and "feature_group_count=" not in compiled


# One of each file of jaxconv/models.
FAMILIES = (
    "lenet5",
    "alexnet",
    "googlenet",
    "resnet18",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "regnet_y_400mf",
    "convnext_tiny",
    "lraspp_mobilenet_v3_large",
    "ssdlite320_mobilenet_v3_large",
    "squeezenet1_1",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "efficientnet_v2_s",
    "inception_v3",
    "mc3_18",
    "skresnet18",
    "repvgg_a0",
    "dm_nfnet_f0",
    "darknet53",
    "xception",
)
NETWORKS = [
    pytest.param(name, marks=() if name in FAMILIES else pytest.mark.full)
    for name in jaxconv.list_models()
]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_lower_for_any_batch(name):
    """For three platforms; nothing is compiled."""
    shape, classes = jaxconv.models.usual_task(name)
    model = jaxconv.create_model(name, classes)
    variables = jaxconv.models.abstract_variables(model, (1, *shape))

    def logits(x):
        return model.apply(
            jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables), x, train=False
        )

    program = lower(logits, shape, "float32")
    shapes = [str(output.shape) for output in program.out_avals]
    # Those on a backbone give something for every pixel or box.
    if "backbone" in jaxconv.model_arguments(name):
        assert all(shape.startswith("(b, ") for shape in shapes)
    else:
        assert shapes == [f"(b, {classes})"]
    assert program.platforms == ("cpu", "cuda", "tpu")


class Halves(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x[: x.shape[0] // 2] if x.shape[0] > 4 else x


class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Halves(name="split")(Dense(3, name="fc")(x))


def test_a_layer_that_counts_the_batch_is_named():
    variables = Outer().init(jax.random.key(0), jnp.ones((1, 4)))
    with pytest.raises(
        UserError,
        match=r"^split: cannot be exported for an arbitrary batch size "
        r"\(InconclusiveDimensionOperation",
    ):
        lower(lambda x: Outer().apply(variables, x), (4,), "float32")


def test_elements_that_do_not_fit(images):
    for network in (load_exported(str(images / "out")), load_run(str(images / "run"))):
        for elements, words in (
            (
                noise(2, (8, 16, 1)),
                r"the images are uint8 \[2, 8, 16, 1\]; the network takes uint8 \[N, 16, 16, 1\]",
            ),
            (noise(2, (16, 16, 1)).astype(np.float32), r"the images are float32 \[2, 16, 16, 1\]"),
            (noise(0, (16, 16, 1)), r"the images are uint8 \[0, 16, 16, 1\]"),
            (noise(1, (16, 16))[0], r"the images are uint8 \[16, 16\]"),
            (np.uint8(3), r"the images are uint8 \[\]"),
        ):
            with pytest.raises(UserError, match=words):
                network.predict(elements)


def test_what_cannot_be_exported(images, tmp_path):
    run, out = str(images / "run"), str(tmp_path / "out")
    (tmp_path / "file").write_text("")
    (tmp_path / "unfinished").mkdir()
    for name in ("config.json", "data.json"):
        (tmp_path / "unfinished" / name).write_bytes((images / "run" / name).read_bytes())
    for arguments, words in (
        ((str(tmp_path / "nowhere"), out), "nowhere: holds no run"),
        ((str(tmp_path / "unfinished"), out), "the run has no checkpoint yet"),
        ((run, out, "5"), "has no checkpoint of step 5"),
        ((run, out, "newest"), "must be latest, best or a step"),
        ((run, str(images / "out")), "already exists and is not an empty folder"),
        ((run, str(tmp_path / "file" / "out")), "cannot be written .*; give a writable folder"),
        (
            (run, out, "latest", ("cpu", "gpu")),
            "unknown platform 'gpu'.*; choose cpu, cuda, tpu, rocm",
        ),
        ((run, ""), "--out= is empty"),
    ):
        with pytest.raises(UserError, match=words):
            export_workdir(*arguments)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(images, tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_json", full)
    with pytest.raises(UserError, match="cannot be written .*No space left"):
        export_workdir(str(images / "run"), str(tmp_path / "out"), platforms=("cpu",))
    assert not list(tmp_path.iterdir())


def test_a_program_that_the_format_cannot_hold(images, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_MOST_BYTES", 1000)
    with pytest.raises(
        UserError, match="the program has .* bytes, but the format holds at most 1,000"
    ):
        export_workdir(str(images / "run"), str(tmp_path / "out"), platforms=("cpu",))
    assert not list(tmp_path.iterdir())


def test_what_is_no_exported_network(images, tmp_path):
    with pytest.raises(UserError, match="holds no exported network"):
        load_exported(str(images / "run"))
    program, model = (images / "out" / name for name in ("program.bin", "model.json"))
    said = json.loads(model.read_text())
    content = program.read_bytes()
    flipped = bytes([*content[:1000], content[1000] ^ 1, *content[1001:]])
    unpacked = jax.export.deserialize(bytearray(content))
    # Like a program of a later version: it deserializes, but cannot be lowered.
    strange = bytes(
        dataclasses.replace(
            unpacked, mlir_module_serialized=unpacked.mlir_module_serialized[:-9]
        ).serialize()
    )
    for number, (new_program, new_model, words) in enumerate((
        (flipped, said, "program.bin is damaged"),
        (content[:-7], said, "program.bin is damaged"),
        (None, said, "program.bin"),
        (strange, said | {"program": {"crc32": zlib.crc32(strange)}}, "JaxRuntimeError"),
        (content, "{", "JSONDecodeError"),
        (content, {key: said[key] for key in said if key != "reading"}, "model.json lacks reading"),
        (content, said | {"format": 2}, "reads only up to 1: update jaxconv"),
    )):  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.json").write_text(
            new_model if isinstance(new_model, str) else json.dumps(new_model)
        )
        if new_program is not None:
            (folder / "program.bin").write_bytes(new_program)
        with pytest.raises(UserError, match=f"cannot be read .*{words}.*; export it again"):
            load_exported(str(folder))


def test_another_platform(images, tmp_path):
    export_workdir(str(images / "run"), str(tmp_path / "out"), platforms=("tpu", "tpu"))
    with pytest.raises(
        UserError, match="was exported for tpu, but this is cpu; export it again with --platforms"
    ):
        load_exported(str(tmp_path / "out"))


@pytest.mark.slow
def test_the_command(images, tmp_path):
    process = command(
        "export",
        f"--workdir={images / 'run'}",
        f"--out={tmp_path / 'out'}",
        "--checkpoint=best",
        "--platforms=cpu,cuda",
    )
    assert process.returncode == 0, process.stderr
    printed = json.loads(process.stdout)
    assert (
        printed["out"] == str(tmp_path / "out")
        and printed["platforms"] == ["cpu", "cuda"]
        and printed["step"] in (4, 6)
    )
    assert printed["bytes"] == (tmp_path / "out" / "program.bin").stat().st_size
    pixels = noise(2, (16, 16, 1))
    found, expected = (
        load_exported(str(tmp_path / "out")).predict(pixels),
        load_run(str(images / "run"), "best").predict(pixels),
    )
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert_one_line_error(
        command("export", f"--workdir={images / 'run'}", "--out=x", TINY[1]),
        2,
        "export takes no config",
    )
