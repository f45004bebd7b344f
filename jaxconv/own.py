"""A person's own pieces, named in the config: `package.module.name` of what can be imported, or
`FILE.py:name`.

--config.task.name=tasks.py:Angle          a class that derives from jaxconv.tasks.Task
--config.data.source=data.py:draw          (config.data, split) -> a jaxconv.data.Source
--config.model.name=nets.py:Net            called as Net(num_classes=, dtype=,
                                           **config.model.kwargs); gives a Linen module
--config.loss.name=losses.py:focal         (logits [N, K], target [N] int32 or [N, K] float32) ->
                                           [N] float32
--config.eval.metrics=metrics.py:top5      (logits [N, K], label [N] int32) -> [N] float32; several
                                           with spaces between
--config.augment.own=looks.py:solarise     (key, batch) -> batch, images [B, H, W, C] float32 on a
                                           scale from 0 to 1
"""

import functools
import importlib
import re
import runpy
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxconv.errors import UserError, in_words, nearest


def is_own(name: str) -> bool:
    """Whether a name is of somebody's own piece, and not one that jaxconv has."""
    return bool(re.fullmatch(r"[^:]+\.py:\w+|[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name))


def own(name: str, key: str) -> Callable[..., Any]:
    """What the name stands for.

    Args:
      name: see the module.
      key: of the config, for messages.

    Raises:
      UserError: there is no such file, module or name in it, the file fails, or it cannot be
        called.
    """
    place, _, attribute = name.rpartition(":" if ".py:" in name else ".")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise UserError(f"{key} is {name!r}: there is no file {place!r} in {Path.cwd()}")
        found = _run(str(Path(place).resolve()), key)
    else:
        try:
            found = vars(importlib.import_module(place))
        except Exception as error:  # a person's own module may raise anything
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
    """What the name stands for, tried on arguments of which the shapes alone are given.

    Args:
      name, key: as in `own`.
      shape: of the array that it must return.
      *arguments: `jax.ShapeDtypeStruct` and what is made of them.
      of: picks that array from what it returns.

    Raises:
      UserError: as `own`, or it fails, or returns anything else.
    """
    function = own(name, key)
    try:
        found = jax.eval_shape(lambda *values: of(function(*values)), *arguments)
    except Exception as error:  # a person's own function may raise anything
        raise UserError(f"{key} is {name!r}, which fails: {in_words(error)}") from error
    if getattr(found, "shape", None) != shape:
        shown = getattr(found, "shape", type(found).__name__)
        raise UserError(
            f"{key} is {name!r}; of {shape[0]} examples it must return an array of shape {shape}, "
            f"and it returns {shown}"
        )
    return function


@functools.lru_cache
def _run(path: str, key: str) -> dict[str, Any]:
    """The names of a file, which is run once."""
    try:
        return runpy.run_path(path)
    except Exception as error:  # a person's own file may raise anything
        raise UserError(f"{key}: {path}: {in_words(error)}") from error


def names_in(config: Any) -> dict[str, str]:
    """Key and name of each own piece that a config has."""
    names = {
        "config.task.name": config.task.name,
        "config.data.source": config.data.source,
        "config.model.name": config.model.name,
        "config.loss.name": config.loss.name,
        "config.augment.own": config.augment.own,
    }
    names |= {f"config.eval.metrics, {name}": name for name in config.eval.metrics.split()}
    return {key: name for key, name in names.items() if is_own(name)}


def checksums(config: Any) -> dict[str, str]:
    """A checksum of the file that each own piece of a config comes from."""
    sums = {}
    for name in names_in(config).values():
        place = (
            name.rpartition(":")[0]
            if ".py:" in name
            else importlib.import_module(name.rpartition(".")[0]).__file__
        )
        sums[name] = f"{zlib.crc32(Path(place).read_bytes()):08x}"
    return sums
