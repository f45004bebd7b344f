"""The experiments that come with jaxconv: `--config=jaxconv:NAME`, from a checkout or a wheel.

In a checkout they are in experiments/; a wheel has the same files in jaxconv/experiments/, see
setup.py.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

from jaxconv.errors import UserError, nearest

PREFIX = "jaxconv:"


class Experiment(NamedTuple):
    """An experiment, as its docstring describes it.

    Attributes:
      name: of its file, without the suffix.
      title: the first line.
      time: how long it takes; empty if the docstring does not say.
      result: what it reaches; empty if the docstring does not say.
    """

    name: str
    title: str
    time: str
    result: str


def folder() -> Path:
    """The folder of the experiments."""
    package = Path(__file__).resolve().parent
    installed = package / "experiments"
    return installed if installed.is_dir() else package.parent / "experiments"


def find(name: str) -> Path:
    """The file of an experiment; raises UserError if there is none of this name."""
    files = {path.stem: path for path in sorted(folder().glob("*.py"))}
    if name not in files:
        raise UserError(
            f"--config={PREFIX}{name}: no experiment is called {name!r}{nearest(name, files)}; "
            "`jaxconv experiments` lists them"
        )
    return files[name]


def experiments() -> list[Experiment]:
    """All experiments, by name."""
    return [_describe(path) for path in sorted(folder().glob("*.py"))]


def _describe(path: Path) -> Experiment:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    rows = {key: _row(text, key) for key in ("Time", "Result")}
    return Experiment(path.stem, text.partition("\n")[0], rows["Time"], rows["Result"])


def _row(text: str, key: str) -> str:
    """The first paragraph of a row `KEY   words`, whose other lines are indented."""
    found = re.search(rf"^{key} {{2,}}(.+(?:\n {{4,}}\S.*)*)", text, re.MULTILINE)
    return " ".join(found[1].split()) if found else ""
