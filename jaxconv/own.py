"""Custom pieces, named in the config as `package.module.name` or `FILE.py:name`.

--config.task.name=tasks.py:Angle          a class that derives from jaxconv.tasks.Task
--config.data.source=data.py:draw          (config.data, split) -> a jaxconv.data.Source
--config.model.name=nets.py:Net            called as Net(num_classes=, dtype=,
                                           **config.model.kwargs); returns a Linen module
--config.loss.name=losses.py:focal         (logits [N, K], target [N] int32 or [N, K] float32) ->
                                           [N] float32
--config.eval.metrics=metrics.py:top5      (logits [N, K], label [N] int32) -> [N] float32; several
                                           are separated by spaces
--config.augment.own=looks.py:solarise     (key, batch) -> batch, images [B, H, W, C] float32 on a
                                           scale from 0 to 1
--config.optimizer.name=tx.py:mine         (learning_rate, **config.optimizer.kwargs) -> an optax
                                           optimizer; a schedule likewise, see train/named.py
--config.callbacks=logs.py:Logger          a class or function without arguments, see
                                           train/callbacks.py; several are separated by spaces

A file may import its neighbours, the modules and packages next to it, at its top level. They are
found only while the file itself runs, not later inside a function. In the path of a file, a space
and a colon can be written as %20 and %3A.
"""

import ast
import contextlib
import functools
import importlib
import re
import runpy
import sys
import urllib.parse
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxconv.errors import UserError, in_words, nearest

# Libraries that jaxconv itself uses are never neighbours, even next to their checkout: a second
# copy would have incompatible types of arrays and modules.
_SHARED = {"jaxconv", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "ml_collections"}


def is_own(name: str) -> bool:
    """Whether a name has the form of a custom piece, rather than of a built-in one."""
    return bool(re.fullmatch(r"[^:]+\.py:\w+|[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name))


def own(name: str, key: str) -> Callable[..., Any]:
    """Load the function or class of a custom piece.

    Args:
      name: see the module.
      key: of the config, for messages.

    Raises:
      UserError: the file, module or name is not found, the file fails, or the object is not
        callable.
    """
    place, _, attribute = name.rpartition(":" if ".py:" in name else ".")
    file = file_of(name)
    if file:
        if not file.is_file():
            raise UserError(f"{key} is {name!r}: file {place!r} not found in {Path.cwd()}")
        try:
            found = _run(file, checksum(file))
        except Exception as error:  # the user's file may raise anything
            raise UserError(f"{key}: {file}: {in_words(error)}") from error
    else:
        try:
            found = vars(importlib.import_module(place))
        except Exception as error:  # the user's module may raise anything
            raise UserError(
                f"{key} is {name!r}: {place} cannot be imported: {in_words(error)}"
            ) from error
    if attribute not in found:
        names = [known for known in found if not known.startswith("_")]
        raise UserError(
            f"{key} is {name!r}: {place} has no {attribute!r}{nearest(attribute, names)}"
        )
    if not callable(found[attribute]):
        raise UserError(
            f"{key} is {name!r}, which is {found[attribute]!r}; it must be a function or a class"
        )
    return found[attribute]


def tried(
    name: str,
    key: str,
    shape: tuple[int, ...],
    *arguments: Any,
    of: Callable[[Any], Any] = lambda found: found,
) -> Callable[..., Any]:
    """Load a custom function and try it on arguments given by their shapes.

    Args:
      name, key: as in `own`.
      shape: of the array that it must return.
      *arguments: pytrees of `jax.ShapeDtypeStruct`.
      of: picks that array from the return value.

    Raises:
      UserError: as `own`, or the function fails or returns something else.
    """
    function = own(name, key)
    try:
        found = jax.eval_shape(lambda *values: of(function(*values)), *arguments)
    except Exception as error:  # the user's function may raise anything
        raise UserError(f"{key} is {name!r}, which fails: {in_words(error)}") from error
    if getattr(found, "shape", None) != shape:
        shown = getattr(found, "shape", type(found).__name__)
        raise UserError(
            f"{key} is {name!r}; for {shape[0]} examples it must return an array of shape {shape}, "
            f"but it returns {shown}"
        )
    return function


def file_of(name: str) -> Path | None:
    """The file of a name FILE.py:NAME, which need not exist; None for package.module.name.

    It is an absolute path with symbolic links resolved.
    """
    place, colon, _ = name.rpartition(":")
    if not colon:
        return None
    file = Path(place)
    return (file if file.is_file() else Path(urllib.parse.unquote(place))).resolve()


def name_in(file: Path, name: str) -> str:
    """The name of the same piece in another file, with spaces and colons of the path escaped."""
    place = re.sub(r"[\s:%]", lambda found: urllib.parse.quote(found[0]), str(file))
    return f"{place}:{name.rpartition(':')[2]}"


@functools.lru_cache
def _run(file: Path, content: int) -> dict[str, Any]:
    """The names of a file, which is run once per `content`, its `checksum`."""
    with _beside(file):
        return runpy.run_path(str(file))


@contextlib.contextmanager
def _beside(file: Path) -> Iterator[None]:
    """Let a file import its neighbours, as a script does.

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
        yield
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


def names_in(config: Any) -> dict[str, str]:
    """The key and name of each custom piece in a config."""
    names = {
        "config.task.name": config.task.name,
        "config.data.source": config.data.source,
        "config.model.name": config.model.name,
        "config.loss.name": config.loss.name,
        "config.augment.own": config.augment.own,
        **_of_optimizer(config.optimizer),
    }
    names |= {f"config.eval.metrics, {name}": name for name in config.eval.metrics.split()}
    return {key: name for key, name in names.items() if is_own(name)}


def _of_optimizer(config: Any) -> dict[str, str]:
    """Key and name of an optimizer, a schedule, and what their arguments name, but for optax's."""
    sections = {"config.optimizer": config, "config.optimizer.schedule": config.schedule}
    names = {f"{key}.name": section.name for key, section in sections.items()}
    for key, section in sections.items():
        texts = {n: value for n, value in section.kwargs.items() if isinstance(value, str)}
        names |= {f"{key}.kwargs.{n}": text for n, text in texts.items()}
    return {key: name for key, name in names.items() if not name.startswith("optax.")}


def renamed(config: Any, names: Mapping[str, str]) -> Any:
    """The config with other names for its custom pieces.

    Args:
      config: the whole config, which is not changed.
      names: old name, as in `names_in`, -> new name.
    """
    changed = type(config)(config.to_dict())
    for key in names_in(config):
        *sections, last = key.removeprefix("config.").partition(",")[0].split(".")
        section = functools.reduce(lambda inner, part: inner[part], sections, changed)
        value = section[last]
        # A key may hold several names, separated by spaces.
        section[last] = names.get(value) or re.sub(
            r"\S+", lambda found: names.get(found[0], found[0]), value
        )
    return changed.lock()


def checksums(config: Any) -> dict[str, str]:
    """The checksum of the file of each custom piece; a module is taken without neighbours."""
    sums = {}
    for name in names_in(config).values():
        file = file_of(name)
        if file:
            sums[name] = f"{checksum(file):08x}"
        else:
            module = importlib.import_module(name.rpartition(".")[0])
            sums[name] = f"{zlib.crc32(Path(module.__file__).read_bytes()):08x}"
    return sums
