"""Custom pieces, named in the config as `package.module.name` or `FILE.py:name`.

--config.task.name=tasks.py:Angle
--config.data.source=data.py:draw
--config.model.name=nets.py:Net
--config.loss.name=losses.py:focal
--config.eval.metrics=metrics.py:top5      several are separated by spaces
--config.augment.own=looks.py:solarise
--config.optimizer.name=tx.py:mine         a schedule likewise, see train/named.py
--config.callbacks=logs.py:Logger          several are separated by spaces, see train/callbacks.py

`FORMS` says what each of them must be.

A file may import its neighbours, the modules and packages next to it, at its top level. They are
found only while the file itself runs, not later inside a function. A file is run again when it or a
neighbour has changed. Config files are run in the same way, see config.py. In the path of a file, a
space and a colon can be written as %20 and %3A; the last `.py:` ends the path.
"""

import functools
import importlib
import inspect
import os
import re
import urllib.parse
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxconv.errors import UserError, in_words, nearest, short
from jaxconv.user_files import as_path, checksum, running

# What the piece that a key names must be, for messages.
FORMS = {
    "config.task.name": "a class that derives from jaxconv.tasks.Task",
    "config.data.source": "a function (config.data, split) that returns a jaxconv.data.Source, "
    "such as the result of jaxconv.data.from_arrays",
    "config.model.name": "a Linen module, or a function that returns one, which is called as "
    "NAME(num_classes=..., dtype=..., **config.model.kwargs)",
    "config.loss.name": "a function (logits [N, K], target [N] int32, or [N, K] float32 where "
    "labels are mixed) that returns [N] float32",
    "config.eval.metrics": "a function (logits [N, K], label [N] int32) that returns [N] float32",
    "config.augment.own": "a function (key, batch) that returns the batch, with images "
    "[B, H, W, C] float32 on a scale from 0 to 1",
}

# The keys of a config that may name a custom piece, and those that may name several, separated by
# spaces.
_ONE = (
    "task.name",
    "data.source",
    "model.name",
    "loss.name",
    "augment.own",
    "optimizer.name",
    "optimizer.schedule.name",
)
_SEVERAL = ("eval.metrics",)
# Sections of which any text may name one. Callbacks are not part of a run, so they are not listed.
_KWARGS = ("optimizer.kwargs", "optimizer.schedule.kwargs")
# What begins with one of these and a colon is built in, whatever the rest looks like.
_BUILT_IN = ("folder", "masks", "coco", "voc", "csv", "nifti", "arrays", "text", "tfds")


def is_own(name: str) -> bool:
    """Whether a name has the form of a custom piece, rather than of a built-in one."""
    if name.partition(":")[0] in _BUILT_IN:
        return False
    return bool(re.fullmatch(r".+\.py:\w+|[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name))


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
            f"{key} is {name!r}, which is {short(found[attribute])}; it must be "
            f"{FORMS.get(key, 'a function or a class')}"
        )
    return found[attribute]


def check_takes(function: Any, name: str, key: str, *arguments: Any, **named: Any) -> None:
    """Raise UserError unless a custom piece can be called with such arguments.

    Args:
      function: what `own(name, key)` returned.
      name, key: as in `own`.
      *arguments, **named: stand for those of the call; their values do not matter.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions in C have none
        return
    try:
        signature.bind(*arguments, **named)
    except TypeError:
        raise wrong(name, key, f"takes {short(signature)}") from None


def wrong(name: str, key: str, what: str) -> UserError:
    """The error for a custom piece that is not what its key takes; `what` follows "which"."""
    return UserError(f"{key} is {name!r}, which {what}; it must be {FORMS[key]}")


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
    check_takes(function, name, key, *arguments)
    try:
        found = jax.eval_shape(lambda *values: of(function(*values)), *arguments)
    except Exception as error:  # the user's function may raise anything
        raise wrong(name, key, f"fails: {in_words(error)}") from error
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
    return as_path(place).resolve() if colon else None


def absolute(name: str) -> str:
    """The name with the absolute path of its file; unchanged if there is no such file."""
    place, colon, _ = name.rpartition(":")
    file = as_path(place)
    if not colon or Path(place).is_absolute() or not file.is_file():
        return name
    return name_in(Path(os.path.abspath(file)), name)


def shown_name(name: str) -> str:
    """The name for a title: without the folder of its file."""
    place, _, attribute = name.rpartition(":")
    return f"{as_path(place).name}:{attribute}" if is_own(name) and place else name


def same_piece(old: str, new: str) -> bool:
    """Whether two names are of one custom piece, whose file may have been moved or copied.

    A file has moved if none is left in the old place, and was copied if both have the same content.
    """
    if old == new:
        return True
    before, now = file_of(old), file_of(new)
    if not (is_own(old) and is_own(new) and before and now):
        return False
    if (before.name, old.rpartition(":")[2]) != (now.name, new.rpartition(":")[2]):
        return False
    if before == now or not before.is_file():
        return True
    return now.is_file() and checksum(before) == checksum(now)


def name_in(file: Path, name: str) -> str:
    """The name of the same piece in another file, with spaces and colons of the path escaped."""
    place = re.sub(r"[\s:%]", lambda found: urllib.parse.quote(found[0]), str(file))
    return f"{place}:{name.rpartition(':')[2]}"


@functools.lru_cache
def _run(file: Path, content: int) -> dict[str, Any]:
    """The names of a file, which is run once per `content`, its `checksum`."""
    with running(file) as found:
        return found


def names_in(config: Any) -> dict[str, str]:
    """The key and name of each custom piece in a config."""
    names = {f"config.{key}": _value(config, key) for key in _ONE}
    for key in _SEVERAL:
        names |= {f"config.{key}, {name}": name for name in _value(config, key).split()}
    for key in _KWARGS:
        texts = {n: text for n, text in _value(config, key).items() if isinstance(text, str)}
        names |= {f"config.{key}.{n}": text for n, text in texts.items()}
    return {
        key: name for key, name in names.items() if is_own(name) and not name.startswith("optax.")
    }


def _value(config: Any, key: str) -> Any:
    return functools.reduce(lambda section, part: section[part], key.split("."), config)


def same_pieces(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys at which two flattened configs name the same custom pieces, see `same_piece`."""

    def names(key: str, values: Mapping[str, Any]) -> list[str]:
        return values[key].split() if key in _SEVERAL else [values[key]]

    texts = [
        key
        for key, value in new.items()
        if key.startswith(tuple(f"{kwargs}." for kwargs in _KWARGS))
        and isinstance(value, str)
        and isinstance(old.get(key), str)
    ]
    return [
        key
        for key in (*_ONE, *_SEVERAL, *texts)
        if len(names(key, old)) == len(names(key, new))
        and all(map(same_piece, names(key, old), names(key, new)))
    ]


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


def with_absolute_names(config: Any) -> Any:
    """The config with the absolute paths of its custom pieces; see `renamed`."""
    names = {name: absolute(name) for name in names_in(config).values()}
    changed = {name: new for name, new in names.items() if name != new}
    return renamed(config, changed) if changed else config


def checksums(config: Any) -> dict[str, str]:
    """The checksum of the file of each custom piece; a module is taken without neighbours."""
    sums = {}
    for name in names_in(config).values():
        file = file_of(name)
        if file:
            sums[name] = f"{checksum(file):08x}"
        else:
            module = importlib.import_module(name.rpartition(".")[0])
            sums[name] = f"{zlib.crc32(Path(inspect.getfile(module)).read_bytes()):08x}"
    return sums
