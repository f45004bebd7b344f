"""Running a Python file of the user: a config, or one with custom pieces.

A file may import its neighbours, the modules and packages next to it. They are found only while the
file runs, and are forgotten afterwards. So two folders may have neighbours of the same name, and
an edited neighbour is imported again.
"""

import ast
import contextlib
import functools
import importlib
import os
import runpy
import sys
import urllib.parse
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Libraries that jaxconv itself uses are never neighbours, even next to their checkout: a second
# copy would have incompatible types of arrays and modules.
_SHARED = {"jaxconv", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "ml_collections"}


def as_path(place: str) -> Path:
    """The path of a file as it is written in a config or a command, where %20 is a space."""
    path = Path(os.path.expanduser(place))
    return path if path.is_file() else Path(os.path.expanduser(urllib.parse.unquote(place)))


@contextlib.contextmanager
def running(file: Path) -> Iterator[dict[str, Any]]:
    """Run a file; while the context lasts, its neighbours can be imported, as in a script.

    Yields the names of the file, an absolute path with symbolic links resolved.

    They are removed from `sys.modules` again: those of another run may have the same names.
    """
    folder = file.parent
    tops = {path.relative_to(folder).parts[0].removesuffix(".py") for path in neighbours(file)}

    def loaded() -> dict[str, Any]:
        return {
            name: module for name, module in sys.modules.items() if name.partition(".")[0] in tops
        }

    before, writes = loaded(), sys.dont_write_bytecode
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # the folder may belong to another user
    importlib.invalidate_caches()  # a neighbour may be newer than the cached listing
    try:
        yield runpy.run_path(str(file))
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(str(folder))
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(before)


def neighbours(file: Path) -> list[Path]:
    """The files that a file imports from its own folder, directly or through one another.

    Args:
      file: an absolute path with symbolic links resolved.
    """
    found: set[Path] = set()
    left = [file]
    while left:
        for name in _imported(left.pop()):
            package, module = file.parent / name, file.parent / f"{name}.py"
            is_package = (package / "__init__.py").is_file()
            files = package.rglob("*.py") if is_package else [module] if module.is_file() else []
            new = {*files} - found - {file}
            found |= new
            left += new
    return sorted(found)


def _imported(file: Path) -> set[str]:
    """The top-level names that a file imports, except those that cannot be neighbours."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()  # running the file reports the error
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module)
    tops = {module.partition(".")[0] for module in modules}
    return tops - sys.stdlib_module_names - _SHARED


def checksum(file: Path) -> int:
    """The CRC-32 of a file followed by its neighbours."""
    return functools.reduce(
        lambda before, path: zlib.crc32(path.read_bytes(), before), [file, *neighbours(file)], 0
    )
