"""Deprecated names, kept for one more version: each works, with a DeprecationWarning.

A moved module can still be imported under its old name; its contents are looked up in the modules
of `MODULES`, under the new name if `NAMES` has one. A module that stays but has renamed contents
ends with `__getattr__ = moved.names_of(__name__)`, and a class that has renamed methods with
`__getattr__ = moved.methods_of("MODULE.CLASS")`.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

# Old module -> where its names are now.
MODULES: dict[str, tuple[str, ...]] = {
    "jaxconv.data.boxes": ("jaxconv.data.geometry",),
    "jaxconv.evaluation.intervals": ("jaxconv.tasks.classification.intervals",),
    "jaxconv.evaluation.outcomes": (
        "jaxconv.tasks.classification.outcomes",
        "jaxconv.train.evaluate",
    ),
    "jaxconv.evaluation.run": (
        "jaxconv.evaluation.evaluation",
        "jaxconv.train.evaluate",
        "jaxconv.train.restore",
    ),
    "jaxconv.interop": ("jaxconv.weights",),
    "jaxconv.interop.export": ("jaxconv.weights.export",),
    "jaxconv.interop.torchvision": ("jaxconv.weights.torchvision", "jaxconv.weights.names"),
    "jaxconv.interop.weights": (
        "jaxconv.weights.convert",
        "jaxconv.weights.reader",
        "jaxconv.train.initial",
        "jaxconv.files",
    ),
    "jaxconv.look.accuracy": ("jaxconv.tasks.classification.accuracy",),
    "jaxconv.look.attribution": ("jaxconv.inspect.attribution",),
    "jaxconv.look.backward": ("jaxconv.inspect.backward",),
    "jaxconv.look.depth": ("jaxconv.inspect.depth",),
    "jaxconv.look.examples": ("jaxconv.tasks.classification.examples",),
    "jaxconv.look.inside": ("jaxconv.inspect.inside",),
    "jaxconv.look.page": ("jaxconv.report.document", "jaxconv.drawing.parts"),
    "jaxconv.look.report": ("jaxconv.report.write",),
    "jaxconv.look.samples": ("jaxconv.drawing.samples",),
    "jaxconv.look.sections": ("jaxconv.report.sections",),
    "jaxconv.look.sheet": ("jaxconv.drawing.sheet",),
    "jaxconv.look.stages": ("jaxconv.inspect.stages",),
    "jaxconv.look.zeiler": ("jaxconv.inspect.zeiler",),
    "jaxconv.train.losses": ("jaxconv.tasks.classification.losses",),
}

# Current or old module -> old name -> current module and name.
NAMES: dict[str, dict[str, str]] = {
    "jaxconv.data.arrays": {
        "Items": "jaxconv.data.sequences:Items",
        "from_sequence": "jaxconv.data.sequences:from_sequence",
    },
    "jaxconv.data.loading": {
        "Resident": "jaxconv.data.loading:ResidentLoader",
        "Streamed": "jaxconv.data.loading:StreamedLoader",
    },
    "jaxconv.data.stored": {"Stored": "jaxconv.data.stored:StoredSource"},
    "jaxconv.data.tfds_sets": {"Prepared": "jaxconv.data.tfds_sets:PreparedSet"},
    "jaxconv.evaluation.views": {
        "GroupedLoader": "jaxconv.evaluation.whole:GroupedLoader",
        "Pass": "jaxconv.evaluation.passes:Pass",
        "WholeImages": "jaxconv.evaluation.whole:WholeImages",
        "passes": "jaxconv.evaluation.passes:passes",
    },
    "jaxconv.look.inside": {"Evaluation": "jaxconv.inspect.inside:Interpreter"},
    "jaxconv.look.opened": {"Looked": "jaxconv.look.opened:OpenedNetwork"},
    "jaxconv.look.sections": {
        "Kept": "jaxconv.report.sections:Memo",
        "Reported": "jaxconv.report.sections:RunReport",
        "open_run": "jaxconv.report.sections:read_run",
    },
    "jaxconv.predict": {
        "Given": "jaxconv.predict:GivenRecords",
        "predictions": "jaxconv.predict:predict_items",
    },
    "jaxconv.train.build": {
        "Built": "jaxconv.train.build:BuiltRun",
        "build_model": "jaxconv.models.configured:build_model",
        "make_loss": "jaxconv.tasks.classification.task:make_loss",
        "make_transforms": "jaxconv.train.transforms:make_transforms",
        "own_metrics": "jaxconv.tasks.classification.task:own_metrics",
    },
    "jaxconv.train.losses": {"average_votes": "jaxconv.tasks.classification.losses:average_logits"},
    "jaxconv.train.start": {"train": "jaxconv.run:train"},
    "jaxconv.interop.torchvision": {"torchvision_keys": "jaxconv.weights.names:keys_of"},
    "jaxconv.weights.names": {"torchvision_keys": "jaxconv.weights.names:keys_of"},
    "jaxconv.weights.convert": {"read_state_dict": "jaxconv.weights.reader:read_state_dict"},
    "jaxconv.tasks.classification.examples": {
        "confusions": "jaxconv.drawing.confusions:confusions"
    },
    "jaxconv.tasks.classification.outcomes": {
        "most_confused": "jaxconv.tasks.confused:most_confused"
    },
    "jaxconv.train.watch": {
        "Pending": "jaxconv.train.watch:PendingMetrics",
        "memory_said": "jaxconv.train.watch:reraise_out_of_memory",
    },
}


def names_of(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module that finds its old names; raises AttributeError for others."""

    def find(name: str) -> Any:
        place, _, now = NAMES.get(module, {}).get(name, "").partition(":")
        places, now = (place,) if place else MODULES.get(module, ()), now or name
        found = {} if name.startswith("__") else {p: importlib.import_module(p) for p in places}
        found = {p: getattr(new, now) for p, new in found.items() if hasattr(new, now)}
        if not found:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        # Where it is defined, not where it is imported.
        at_home = [p for p, value in found.items() if getattr(value, "__module__", p) == p]
        place = (at_home or [*found])[0]
        _warn(f"{module}.{name}", f"{place}.{now}")
        return found[place]

    return find


# Class -> old name of a method -> its name now.
METHODS: dict[str, dict[str, str]] = {
    "jaxconv.train.parallel.Parallel": {
        "first_does": "on_first_process",
        "lost_process_said": "reraise_lost_process",
        "of_first": "broadcast_from_first",
    },
}


def methods_of(name: str) -> Callable[[Any, str], Any]:
    """The `__getattr__` of a class that finds its old methods; AttributeError for other names."""

    def find(self: Any, old: str) -> Any:
        now = METHODS[name].get(old)
        if now is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {old!r}")
        _warn(f"{name}.{old}", f"{name}.{now}")
        return getattr(self, now)

    return find


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name will be removed in 0.3", DeprecationWarning, 3)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of `MODULES`, whose names are looked up on access."""

    def find_spec(
        self, fullname: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in MODULES:
            return None
        is_package = any(name.startswith(f"{fullname}.") for name in MODULES)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=is_package)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__doc__ = f"Now {', '.join(MODULES[module.__name__])}."
        module.__getattr__ = names_of(module.__name__)  # type: ignore[method-assign]


def install() -> None:
    """Let imports find the modules of `MODULES`."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
