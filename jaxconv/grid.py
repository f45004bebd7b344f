"""The grid of a sweep: values for config keys, and a run for each combination of them."""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxconv.checks import check_config
from jaxconv.config import flatten, load_config
from jaxconv.errors import UserError, short
from jaxconv.models.configured import build_model
from jaxconv.values import AnyConfig

MOST_RUNS = 10_000


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      name: of its workdir: the swept values, sorted by key, so that a larger or reordered grid
        finds it again.
      values: the swept values, by key.
      settings: the same values as overrides, `KEY=TEXT`.
      config: the full config.
    """

    name: str
    values: dict[str, Any]
    settings: tuple[str, ...]
    config: AnyConfig


def parse_grid(text: str) -> dict[str, list[str]]:
    """Parse `KEY=VALUE,VALUE KEY=FIRST:END` into texts by key; an integer range excludes its end.

    Raises:
      UserError: the text has another form.
    """
    grid: dict[str, list[str]] = {}
    for part in text.split():
        key, _, values = part.partition("=")
        if not key or not all(values.split(",")):
            raise UserError(
                f"--grid: {part!r} is not KEY=VALUE,VALUE or KEY=FIRST:END; values with spaces or "
                "commas go in --grid_file"
            )
        if key in grid:
            raise UserError(f"--grid: {key} is given twice; separate its values with commas")
        grid[key] = [value for item in values.split(",") for value in _range(key, item)]
    return grid


def _range(key: str, item: str) -> Iterable[str]:
    ends = re.fullmatch(r"(-?\d+):(-?\d+)", item)
    if not ends:
        return [item]
    first, end = int(ends[1]), int(ends[2])
    if not 0 < end - first <= MOST_RUNS:
        raise UserError(
            f"--grid: {key}={item} is {max(0, end - first)} values; FIRST:END excludes END and "
            f"must have 1 to {MOST_RUNS} values"
        )
    return map(str, range(first, end))


def read_grid(path: str) -> dict[str, list[str]]:
    """Read the same from a JSON file, `{"KEY": [VALUE, ...]}`.

    A value is a number, a string, true or false, or a list of numbers.

    Raises:
      UserError: the file cannot be read or has other contents.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--grid_file={path}: cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise UserError(
            f'--grid_file={path}: must be {{"KEY": [VALUE, ...]}}; it is {short(found)}'
        )
    for key, values in found.items():
        if not isinstance(values, list) or not values:
            raise UserError(
                f"--grid_file={path}: {key} is {short(values)}; it must be a list of values, "
                f'"{key}": [VALUE, ...]'
            )
        for value in values:
            numbers = value if isinstance(value, list) else []
            if not isinstance(value, (bool, int, float, str, list)) or not all(
                type(item) in (int, float) for item in numbers
            ):
                raise UserError(
                    f"--grid_file={path}: {key} has {short(value)}; a value is a number, a string, "
                    "true, false or a list of numbers"
                )
    return {key: [text_of(value) for value in values] for key, values in found.items()}


def make_grid(text: str, path: str) -> dict[str, list[str]]:
    """Combine `--grid` and `--grid_file`; an empty path means no file.

    Raises:
      UserError: a key is in both.
    """
    grid, more = parse_grid(text), read_grid(path) if path else {}
    for key in grid.keys() & more.keys():
        raise UserError(f"--grid_file={path}: {key} is in --grid too; set it only once")
    return grid | more


def text_of(value: Any) -> str:
    """Format a value for --config.KEY=VALUE."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(text_of, value)) + "," * (len(value) == 1) if value else "()"
    return value if isinstance(value, str) else repr(value)


def make_trials(
    spec: str, overrides: Sequence[str], grid: Mapping[str, Sequence[str]]
) -> list[Trial]:
    """All combinations, the last key changing fastest; each config is loaded and checked.

    Args:
      spec: the experiment, see `load_config`.
      overrides: `KEY=TEXT` for all runs.
      grid: texts by key.

    Raises:
      UserError: a config is invalid, or two runs are the same.
    """
    fixed = {override.partition("=")[0] for override in overrides}
    for key in grid:
        if key in fixed:
            raise UserError(f"--config.{key}: the grid sets it too; set it only once")
    count = math.prod(map(len, grid.values()))
    if not grid or count > MOST_RUNS:
        raise UserError(
            f"the grid has {count} runs; the maximum is {MOST_RUNS}"
            if grid
            else "give --grid='KEY=VALUE,VALUE ...' or --grid_file"
        )
    trials: dict[str, Trial] = {}
    for texts in itertools.product(*grid.values()):
        settings = tuple(f"{key}={text}" for key, text in zip(grid, texts, strict=True))
        config = load_config(spec, [*overrides, *settings])
        check_config(config)
        build_model(config.model, num_classes=2)  # checks the network's arguments
        flat = flatten(config)
        values = {key: flat[key] for key in grid}
        name = name_of(values)
        if name in trials:
            raise UserError(f"the grid contains the run {name} twice")
        trials[name] = Trial(name, values, settings, config)
    return list(trials.values())


def name_of(values: Mapping[str, Any]) -> str:
    """A folder name: `KEY=VALUE,KEY=VALUE`, with the keys in alphabetical order.

    Characters that a file system may reject become `_`, and long names are cut; a checksum then
    keeps the names distinct.
    """
    text = ",".join(f"{key}={text_of(values[key])}" for key in sorted(values))
    safe = re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)
    if safe == text and len(safe) <= 150:
        return safe
    return f"{safe[:140]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
