"""Tasks: what a network is trained for. The engine knows only the interface in task.py.

    task = open_task(config, description)      # of a run, by config.task.name

A custom task is named `FILE.py:NAME` or `package.module.NAME` and needs no entry here.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from jaxconv.errors import UserError, nearest
from jaxconv.own import is_own, own, wrong
from jaxconv.tasks.task import Figure, Task

# Name -> module and class, as strings, so that nothing is imported before it is needed.
TASKS = {
    "classification": "jaxconv.tasks.classification.task:Classification",
    "localization": "jaxconv.tasks.localization.task:Localization",
    "segmentation": "jaxconv.tasks.segmentation.task:Segmentation",
    "detection": "jaxconv.tasks.detection.task:Detection",
}

__all__ = ["TASKS", "Figure", "Task", "find_task", "needs_of", "open_task", "task_for"]


def find_task(name: str) -> type[Task]:
    """The class of a task; raises UserError if it is not found or does not derive from `Task`."""
    if name in TASKS:
        module, _, attribute = TASKS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if not is_own(name):
        raise UserError(
            f"config.task.name is {name!r}{nearest(name, TASKS)}; it must be one of "
            f"{', '.join(TASKS)}, FILE.py:NAME or package.module.NAME"
        )
    found = own(name, "config.task.name")
    if not isinstance(found, type) or not issubclass(found, Task):
        raise wrong(name, "config.task.name", f"is {found!r}")
    return found


def needs_of(config: Any) -> tuple[str, ...]:
    """The targets that the config's task needs, for `open_source`."""
    return find_task(config.task.name).reads(config)


def task_for(config: Any, targets: Mapping[str, Any]) -> str:
    """The name of the config's task or, if it needs other targets, of the first that fits."""
    for name in (config.task.name, *TASKS):
        if set(find_task(name).needs) <= targets.keys():
            return name
    return config.task.name


def open_task(config: Any, description: dict[str, Any]) -> Task:
    """The task of a run. `Task.check` checks whether the data and the loss fit it.

    Args:
      config: the whole config.
      description: of the data, see `interface.describe`.

    Raises:
      UserError: the task or one of its settings is unknown.
    """
    task = find_task(config.task.name)
    known = task.settings
    for key in config.task.kwargs:
        if key not in known:
            raise UserError(
                f"config.task.kwargs.{key}: {config.task.name} has no such setting"
                f"{nearest(key, known)}; it has {', '.join(known) or 'none'}"
            )
    return task(config, description)
