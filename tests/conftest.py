"""Shared by all tests: four virtual CPU devices, strict rank promotion, one cache, test data."""

import ctypes
import gc
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

# Most of the tests' time is compiling, a third of which is LLVM's optimizing.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
from PIL import Image

from tests.browser import browser  # noqa: F401, a fixture

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("JAXCONV_SHARED", ROOT.parent / "shared"))
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxconv" / "tests"

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the tests marked full too")


def pytest_collection_finish():
    """Tracing makes many objects, and looking for cycles among all that is loaded takes a sixth of
    its time.
    """
    gc.set_threshold(500_000, 50, 100)


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="only with --full"))


@pytest.fixture(autouse=True, scope="module")
def without_the_programs_of_other_modules():
    """Frees compiled programs: they would take 8 GB at the end. Files keep them for reuse."""
    yield
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # else glibc keeps most of what was freed


def rarely(cases, rare):
    """Cases for `parametrize`; those in `rare` take long, resemble others, and run with --full."""
    return [pytest.param(case, marks=pytest.mark.full if case in rare else ()) for case in cases]


@pytest.fixture
def one_device():
    return jax.devices()[:1]


@pytest.fixture
def strict_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        yield


def command(*args, devices=1, timeout=300, **kwargs):
    """Run `python -m jaxconv ARGS`; returns the completed process, with output as text."""
    return subprocess.run(
        command_line(*args),
        **process_settings(devices) | kwargs,
        capture_output=True,
        timeout=timeout,
    )


def command_line(*args):
    return [sys.executable, "-m", "jaxconv", *map(str, args)]


def process_settings(devices=1):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {
        "XLA_FLAGS": flags,  # of a flag given twice, the last counts
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    return {"env": environment, "cwd": ROOT, "text": True, "stdin": subprocess.DEVNULL}


def assert_same_result(evaluated, trained):
    """The last line of `evaluate` contains everything that the last line of `train` does."""
    found, wanted = (
        json.loads(process.stdout.splitlines()[-1]) for process in (evaluated, trained)
    )
    assert {name: found.get(name) for name in wanted} == wanted, evaluated.stderr


def assert_one_line_error(process, code, *words):
    """The process exited with `code` and one error line that contains these words."""
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    errors = [
        line
        for line in process.stderr.splitlines()
        if line.startswith("jaxconv: ") or " error: " in line
    ]
    assert len(errors) == 1, process.stderr
    for word in words:
        assert str(word) in errors[0], errors[0]


# The smallest complete run: a few steps on a few X's and O's.
TINY = (
    "--config=experiments/xo.py",
    "--config.data.xo.train_examples=64",
    "--config.data.xo.test_examples=30",
    "--config.data.xo.size=16",
    "--config.model.kwargs.filters=4,8",
    "--config.batch_size=8",
    "--config.eval.batch_size=16",
    "--config.epochs=0",
    "--config.optimizer.schedule.warmup_steps=2",
    "--config.log.every=3",
    "--config.checkpoint.every=4",
    "--config.eval.every=4",
    "--config.log.tensorboard=False",
    "--config.log.report=False",
)


def tiny_config(**changes):
    """The config of TINY, with changes by dotted key, `__` for the dots."""
    from ml_collections import ConfigDict

    from jaxconv.config import load_config, set_key

    config = load_config(
        str(ROOT / "experiments/xo.py"), [arg.removeprefix("--config.") for arg in TINY[1:]]
    )
    if "model__name" in changes:
        config.model.kwargs = ConfigDict()
    for key, value in {"steps": 10, "log__progress": False, **changes}.items():
        set_key(
            config,
            key.replace("__", "."),
            ",".join(map(str, value)) if isinstance(value, tuple) else str(value),
        )
    return config


def write_images(
    root,
    splits=("train", "test"),
    classes=("cat", "dog"),
    count=6,
    size=(8, 8),
    mode="RGB",
    suffix="png",
):
    """An image folder of noise: `root/<split>/<class>/N.suffix`; no <split> if it is ""."""
    random = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
                Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(
                    folder / f"{n:03}.{suffix}"
                )
    return root


@pytest.fixture(scope="session")
def torchvision():
    """torchvision; a build for another accelerator needs two of its operators defined before."""
    torch = pytest.importorskip("torch")
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return pytest.importorskip("torchvision")


@pytest.fixture(scope="session")
def timm(torchvision):
    """timm, which imports torchvision."""
    return pytest.importorskip("timm")


@pytest.fixture(scope="session")
def lecture():
    path = SHARED / "lecture.md"
    if not path.is_file():
        pytest.skip(f"{path} not found")
    return path.read_text().splitlines()


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory):
    """A folder with CIFAR-10 as JPEGs: train/<class>/NNNN.jpg and test/<class>/NNNN.jpg."""
    archive = SHARED / "data" / "cifar10_jpeg.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive} not found")
    folder = tmp_path_factory.mktemp("cifar10")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def coco256(tmp_path_factory):
    """256 photographs of COCO with boxes and masks, in its layout."""
    archive = SHARED / "data" / "coco256.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive} not found")
    folder = tmp_path_factory.mktemp("coco")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.rglob("semantic_classes.json")).parent
