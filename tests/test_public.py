"""Promises to users of single pieces: light imports, in one direction; documented public names."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

import jaxconv
from jaxconv import moved
from jaxconv.run import train
from tests.conftest import ROOT, tiny_config

# Needed by training, but missing in a plain JAX image.
HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "grain",
    "PIL",
    "matplotlib",
    "tensorboardX",
    "ml_collections",
    "tqdm",
    "torch",
)

# Each room imports only what stands above it, and the packages have a level of their own each.
LEVELS = [
    {"version", "moved", "streams"},
    {"errors"},
    {"user_files", "values", "packaged", "lazy", "notebook", "compiling"},
    {"disk"},
    {"cloud"},
    {"own", "files"},
    {"config"},
    {"arithmetic"},
    {"layers"},
    {"models"},
    {"receptive"},
    {"program"},
    {"feature_maps"},
    {"data"},
    {"drawing"},
    {"tasks"},
    {"checks"},
    {"train"},
    {"evaluation"},
    {"weights"},
    {"predict", "grid", "summary", "finetune"},
    {"results", "predicted"},
    {"inspect"},
    {"look"},
    {"report"},
    {"doctor", "survey", "sweep"},
    {"playground"},
    {"run"},
    {"commands"},
    {"__main__"},
]
ALWAYS_LIGHT = (
    "arithmetic.py",
    "layers",
    "models",
    "train/step.py",
    "train/state.py",
    "tasks/classification/losses.py",
    *(f"tasks/detection/{name}.py" for name in ("boxes", "anchors", "matching", "nms", "losses")),
    "weights/torchvision.py",
    "feature_maps.py",
    "summary.py",
)


def test_import_needs_jax_flax_and_optax_alone():
    script = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import jax.numpy as jnp, jax, jaxconv
import jaxconv.layers, jaxconv.models, jaxconv.train.step
import jaxconv.inspect.attribution, jaxconv.inspect.zeiler
model = jaxconv.create_model("chain", 3, filters=(4,))
x = jnp.ones((1, 8, 8, 1))
variables = jax.eval_shape(lambda key: model.init(key, x, train=False), jax.random.key(0))
print(variables["params"]["votes"]["kernel"].shape)
"""
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert process.stdout.strip() == "(64, 3)", process.stderr


def modules():
    names = [module.name for module in pkgutil.walk_packages(jaxconv.__path__, "jaxconv.")]
    return [
        importlib.import_module(name)
        for name in ["jaxconv", *names]
        if not name.endswith("__main__")
    ]


def public_names():
    for module in modules():
        for name, value in vars(module).items():
            ours = inspect.isclass(value) or inspect.isfunction(value)
            if (
                ours
                and not name.startswith("_")
                and getattr(value, "__module__", "") == module.__name__
            ):
                yield f"{module.__name__}.{name}", value


def test_every_public_name_is_explained():
    missing = [name for name, value in public_names() if not inspect.getdoc(value)]
    missing += [module.__name__ for module in modules() if not module.__doc__]
    assert not missing


def level(name):
    parts = name.split(".")
    return next(
        (number for number, level in enumerate(LEVELS) if len(parts) > 1 and parts[1] in level),
        None,
    )


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "jaxconv"
                else [node.module]
            )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "jaxconv").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_go_one_way(path):
    own = level(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in imports(path):
        if own is not None and name.startswith("jaxconv"):
            assert level(name) is not None and level(name) <= own, f"{path} imports {name}"
        inner = str(path.relative_to(ROOT / "jaxconv"))
        if inner.startswith(ALWAYS_LIGHT):
            assert name.split(".")[0] not in (*HEAVY, "orbax"), f"{path} imports {name}"


def test_every_package_has_a_level_of_its_own():
    packages = {path.parent.name for path in (ROOT / "jaxconv").glob("*/__init__.py")}
    levels = [level & packages for level in LEVELS]
    assert all(len(level) <= 1 for level in levels) and set().union(*levels) == packages


@pytest.mark.parametrize("old", [*moved.MODULES, *moved.NAMES])
def test_names_of_before_are_found_with_a_warning(old):
    module = importlib.import_module(old)
    for name, now in moved.NAMES.get(old, {}).items():
        place, _, new = now.partition(":")
        with pytest.warns(DeprecationWarning, match=f"{old}.{name} is now {place}.{new};"):
            assert getattr(module, name) is getattr(importlib.import_module(place), new)
    for place in moved.MODULES.get(old, ()):
        own = importlib.import_module(place)
        name = next(
            (n for n, v in vars(own).items() if getattr(v, "__module__", "") == place), None
        )
        if name and not name.startswith("_"):
            with pytest.warns(DeprecationWarning, match=f"{old}.{name} is now {place}.{name};"):
                assert getattr(module, name) is getattr(own, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing_like_it'"):
        module.nothing_like_it  # noqa: B018


def python_of(page):
    """The Python blocks of a page of the checkout."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("name", moved.METHODS)
def test_old_methods_work_with_a_warning(name):
    module, _, kind = name.rpartition(".")
    kind = getattr(importlib.import_module(module), kind)
    thing = kind("jit", ())
    for old, now in moved.METHODS[name].items():
        with pytest.warns(DeprecationWarning, match=f"{name}.{old} is now {name}.{now};"):
            assert getattr(thing, old) == getattr(thing, now)
    with pytest.raises(AttributeError, match="object has no attribute 'nothing_like_it'"):
        thing.nothing_like_it  # noqa: B018


def test_the_python_of_the_page_about_pieces_runs():
    """In one program, on the four devices of the tests; with the numbers that the page promises."""
    space = {}
    for block in python_of("docs/guides/reuse.md"):
        exec(block, space)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    loss = space["loss"]
    for name in ("eqx_loss_value", "nnx_loss"):
        assert np.isfinite(space[name])
    close(space["eqx_loss_value"], loss)
    close(space["on_all_metrics"]["loss"], space["metrics"]["loss"])
    close(space["on_all_metrics"]["grad_norm"], space["metrics"]["grad_norm"])
    assert space["pixels"].shape == (8, 8, 8, 4) and space["votes"].shape == (3, 8, 10)
    assert space["sums"]["examples"] == 8 and space["distilled"]["loss"] > 0
    assert space["attacked_loss"](space["attacked"]) > space["attacked_loss"](space["clean"])
    assert (space["one"] != space["other"]).any()
    assert [*space["pipeline"]][1]["image"].shape == (4, 16, 16, 3)


def test_contributing_s_task_network_and_source_train_together(tmp_path):
    """Its blocks in one file, each of at most ten lines of its own."""
    blocks = python_of("CONTRIBUTING.md")
    assert len(blocks) == 3
    for block in blocks:
        own = [line for line in block.splitlines() if line and not re.match("import|from", line)]
        assert len(own) <= 10, block
    (tmp_path / "mine.py").write_text("\n".join(blocks))
    names = {"task": "Brightness", "model": "Mean"}
    changes = {f"{key}__name": f"{tmp_path}/mine.py:{name}" for key, name in names.items()}
    source = f"{tmp_path}/mine.py:greys"
    config = tiny_config(**changes, data__source=source, optimizer__learning_rate=0.02, steps=40)
    result = train(config, str(tmp_path / "run"))
    assert result["examples"] == 64 and result["error"] < 0.25
    assert "mine.py" in str([*(tmp_path / "run" / "code").iterdir()])


@pytest.mark.parametrize("room", ["train", "evaluation", "commands", "look", "report"])
def test_the_engine_knows_no_task_by_name(room):
    from jaxconv.tasks import TASKS

    for path in (ROOT / "jaxconv" / room).rglob("*.py"):
        imported = [name for name in imports(path) if name.startswith("jaxconv.tasks.")]
        assert all(name in ("jaxconv.tasks.labels", "jaxconv.tasks.task") for name in imported), (
            path
        )
        words = [
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not set(words) & set(TASKS), path


def test_readme_s_nnx_bridge():
    """A Linen module of ours in an NNX program."""
    import jax.numpy as jnp
    from flax import nnx

    model = nnx.bridge.ToNNX(
        jaxconv.create_model("chain", 3, filters=(4,)), rngs=nnx.Rngs(0)
    ).lazy_init(jnp.ones((1, 8, 8, 1)), train=False)
    assert model(jnp.ones((2, 8, 8, 1)), train=False).shape == (2, 3)


PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("page", [str((ROOT / page).relative_to(ROOT)) for page in PAGES])
def test_links_of_a_page_lead_somewhere(page):
    """Those to files of the checkout; and every picture has words for those who cannot see it."""
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#\s]+)[)#]", text)
    missing = [
        link
        for link in links
        if "://" not in link and not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert not missing
    assert all(words for words in re.findall(r"!\[([^\]]*)\]", text))


def test_the_gallery_s_pictures_are_made_by_its_script():
    script = (ROOT / "docs/pictures.sh").read_text()
    for picture in (ROOT / "docs").glob("*.png"):
        assert re.search(rf"(look|screenshot|play) {picture.stem} |/{picture.stem}\.png", script), (
            picture
        )
