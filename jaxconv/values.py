"""The values of a config: Python's own numbers and strings, tuples of them, and groups of keys."""

import os
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ml_collections import ConfigDict

from jaxconv.errors import nearest

# A ConfigDict of any origin. ml_collections types each key as everything that a key may hold, so
# that config.data.source would be an error to a type checker.
AnyConfig: TypeAlias = Any


class UnknownKeyError(KeyError):
    """A key does not exist in a config; the message names the nearest."""

    def __str__(self) -> str:
        return str(self.args[0])


class Config(ConfigDict):
    """A ConfigDict whose values are plain, see `plain`, and whose messages are short."""

    if TYPE_CHECKING:

        def __getattr__(self, key: str) -> Any: ...

    def __setitem__(self, key: str, value: Any) -> None:
        if self.is_locked and key not in self:
            raise self._unknown(key)
        super().__setitem__(key, plain(value))

    def __getitem__(self, key: str) -> Any:
        try:
            return super().__getitem__(key)
        except KeyError:
            raise self._unknown(key) from None

    def _unknown(self, key: str) -> UnknownKeyError:
        near = nearest(key, [*self, *flatten(self)])
        return UnknownKeyError(f"the config has no key {key!r} here{near}")


def plain(value: Any) -> Any:
    """The value as a config holds it.

    Numbers and arrays of numpy and JAX become Python's numbers and tuples, a list becomes a tuple,
    a path a string, and a dict a group of keys.
    """
    if isinstance(value, ConfigDict):
        return value if isinstance(value, Config) else with_plain_values(value)
    if hasattr(value, "__array__") and not isinstance(value, type):
        value = np.asarray(value).tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return Config({key: plain(item) for key, item in value.items()})
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def with_plain_values(config: ConfigDict) -> Config:
    """A copy of a config, of any origin, whose values are plain."""
    changed = Config()
    for key, value in config.items():
        changed[key] = with_plain_values(value) if isinstance(value, ConfigDict) else value
    # Not lock(), which would lock the groups of keys that are open too.
    object.__setattr__(changed, "_locked", config.is_locked)
    return changed


def flatten(config: AnyConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values; an empty group of keys is left out."""
    flat = {}
    for key, value in config.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, ConfigDict)
            else {prefix + key: value}
        )
    return flat
