"""The distribution: a wheel and an editable install, the half of it that is light, its extras."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest

from jaxconv.errors import EXTRAS, UserError, needing_extras
from jaxconv.packaged import experiments
from tests.conftest import ROOT, process_settings

# What `pip install jaxconv` brings, with what its packages need, and what no extra installs because
# it is used only where it is there.
LIGHT = {"jax", "flax", "optax", "ml_collections", "numpy", "scipy"}
OPTIONAL = {"torch", "IPython", "wandb"}
BROUGHT = {"markupsafe", "google"}  # by jinja2, and by tensorboardX
# Modules whose packages have another name.
PACKAGES = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "orbax": "orbax-checkpoint",
    "tensorflow": "tensorflow-cpu",
    "tensorflow_datasets": "tensorflow-datasets",
}
# Hides the modules of [train], as if they were not installed; flax brings orbax.
HIDDEN = sorted({*EXTRAS["train"]} - {"orbax"})
WITHOUT = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HIDDEN!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
USES = """
import jax, jax.numpy as jnp, jaxconv, optax
model = jaxconv.create_model("resnet20_cifar", 3, width=4, units=(1, 1))
x = jnp.ones((2, 8, 8, 3))
state = jaxconv.create_state(model, optax.trace(0.9), jax.random.key(0), x[:1])
step = jax.jit(jaxconv.make_train_step(model, optax.trace(0.9), lambda step: 0.1))
state, metrics = step(state, {"image": x, "label": jnp.array([0, 1])}, jax.random.key(0))
assert int(state.step) == 1
assert jaxconv.features(model, state.variables, x)
assert jaxconv.feature_info(model, (8, 8, 3))
assert "parameters" in str(jaxconv.summarize(model, (8, 8, 3), compile_step=True))
assert "<table" in jaxconv.summarize(model, (8, 8, 3))._repr_html_()
from jaxconv.config import load_config
load_config("jaxconv:xo")
"""


def run_python(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, **process_settings()
    )


def test_the_light_half_builds_steps_and_summarises():
    process = run_python(WITHOUT + USES)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    "arguments", ["train --config=jaxconv:xo --workdir=DIR", "look filters --model=lenet5"]
)
def test_a_command_without_its_extra_says_what_to_install(tmp_path, arguments):
    script = WITHOUT + "from jaxconv.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    command = arguments.replace("DIR", str(tmp_path / "run")).split()
    process = run_python(script, *command)
    assert process.returncode == 1 and not process.stdout
    (line,) = process.stderr.splitlines()
    assert re.fullmatch(
        rf"jaxconv: jaxconv {command[0]} needs \w+, which is not installed: "
        r"pip install 'jaxconv\[train\]'",
        line,
    )


@pytest.mark.parametrize("command", ["experiments", "summary lenet5", "wordnet dog", "--version"])
def test_commands_that_need_no_extra(command):
    script = WITHOUT + "from jaxconv.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    process = run_python(script, *command.split())
    assert process.returncode == 0 and process.stdout, process.stderr


def test_a_module_of_no_extra_is_not_explained():
    with pytest.raises(ModuleNotFoundError), needing_extras("this"):
        import nothing_of_this_name  # noqa: F401
    with (
        pytest.raises(UserError, match="this needs cv2, .*'jaxconv.fast.'"),
        needing_extras("this"),
    ):
        raise ModuleNotFoundError("no", name="cv2.something")


def requirements():
    """The names of the packages of each part of setup.cfg; "" is what is always installed."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    parts = {"": parser["options"]["install_requires"], **parser["options.extras_require"]}
    return {
        part: re.findall(r"^[\w-]+(?:\[\w+\])?", text.strip(), re.M) for part, text in parts.items()
    }


def test_every_extra_is_complete():
    wanted = requirements()
    for extra in wanted.keys() - {"", "train"}:
        assert "jaxconv[train]" in wanted[extra], extra
    for extra, modules in EXTRAS.items():
        packages = {name for name in wanted[extra] if "[" not in name}
        assert {PACKAGES.get(module, module) for module in modules} == packages
    assert set(wanted[""]) == {"jax", "flax", "optax", "ml-collections", "numpy"}


def test_the_notice_names_files_that_are_there():
    """And all pictures of the documentation that show photographs of others."""
    notice = (ROOT / "NOTICE").read_text()
    named = re.findall(r"(?:jaxconv|docs)/[\w./]+", notice)
    assert len(named) == 15 and all((ROOT / name).is_file() for name in named)
    script = (ROOT / "docs/pictures.sh").read_text()
    runs = "cifar|camvid|hippocampus|bccd|pennfudan"
    drawn = re.findall(rf'^look (\w+) (\w+) --workdir="\$(?:{runs})"', script, re.M)
    kinds = ("filters", "classes")  # without photographs
    shown = {f"docs/{name}.png" for name, kind in drawn if kind not in kinds}
    assert len(shown) > 5 and shown <= {*named}


def test_every_imported_package_is_installed_by_some_part():
    known = (
        LIGHT | OPTIONAL | BROUGHT | {module for modules in EXTRAS.values() for module in modules}
    )
    for path in (ROOT / "jaxconv").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            tops = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
            assert tops <= known | {"jaxconv"}, path


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of what a distribution is made of, as building leaves files beside them."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("jaxconv", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    return folder


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def installed(folder, *what):
    """A fresh virtual environment with this, and with the packages of the present one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    (packages / "parent.pth").write_text(sysconfig.get_paths()["purelib"])
    pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", *what)
    return folder / "bin"


def answer(cwd, *command):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    settings = process_settings() | {"cwd": cwd, "env": process_settings()["env"] | environment}
    settings["env"].pop("PYTHONPATH", None)
    process = subprocess.run([*map(str, command)], capture_output=True, **settings)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", pytest.param("editable", marks=pytest.mark.full)])
def test_experiments_come_with_an_install(copy, tmp_path, kind):
    if kind == "wheel":
        pip("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, copy)
        bin_ = installed(tmp_path / "venv", *tmp_path.glob("*.whl"))
    else:
        bin_ = installed(tmp_path / "venv", "--no-build-isolation", "--editable", copy)
    place = answer(tmp_path, bin_ / "python", "-c", "import jaxconv; print(jaxconv.__file__)")
    assert place.startswith(str(tmp_path / "venv" if kind == "wheel" else copy))
    listed = answer(tmp_path, bin_ / "jaxconv", "experiments")
    assert all(f"jaxconv:{one.name}\n    {one.title}\n" in listed for one in experiments())
    train = ["train", "--config=jaxconv:xo:small", f"--workdir={tmp_path / 'run'}"]
    assert "workdir:" in answer(tmp_path, bin_ / "jaxconv", *train)
    assert (tmp_path / "run" / "report.html").is_file()
