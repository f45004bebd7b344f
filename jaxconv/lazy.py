"""Names that are imported when they are first used, and modules that can be called.

`jaxconv.train` is a package, and `jaxconv.train(config, workdir)` trains. The package itself is
called, so that `import jaxconv.train.step` and the function work in any order.
"""

import importlib
import inspect
import pkgutil
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from jaxconv.errors import needing_extras


def load(place: str) -> Any:
    """Import `MODULE`, or the name in it of `MODULE:NAME`.

    Raises:
      UserError: it needs a package of an extra that is not installed.
    """
    module, _, name = place.partition(":")
    with needing_extras(f"{module}{f'.{name}' if name else ''}"):
        found = importlib.import_module(module)
    return getattr(found, name) if name else found


def names_of(module: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module with names that are loaded on access, see `load`.

    Args:
      module: its name.
      places: name -> `MODULE` or `MODULE:NAME`.
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return load(places[name])

    return find


def submodules_of(package: str) -> dict[str, str]:
    """The modules in a package, for `names_of`."""
    path = sys.modules[package].__path__
    return {found.name: f"{package}.{found.name}" for found in pkgutil.iter_modules(path)}


def make_callable(module: str, place: str) -> None:
    """Let a module be called like the function at `place`, which is loaded at the first call."""

    class CallableModule(types.ModuleType):
        def __call__(self, *arguments: Any, **settings: Any) -> Any:
            return load(place)(*arguments, **settings)

        @property
        def __signature__(self) -> inspect.Signature:
            return inspect.signature(load(place))

    CallableModule.__call__.__doc__ = f"The same as {place.replace(':', '.')}; see its docstring."
    sys.modules[module].__class__ = CallableModule
