"""The grid of a sweep: which keys of the config take which values, and the runs that they make
together.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxconv.checks import check_config
from jaxconv.config import flatten, load_config
from jaxconv.errors import UserError, short
from jaxconv.models.configured import build_model

MOST_RUNS = 10_000


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      name: of its workdir: what differs, sorted by key, so that a larger grid or another order
        finds it again.
      values: what differs, by key.
      settings: the same as overrides, `KEY=TEXT`.
      config: the whole config.
    """

    name: str
    values: dict[str, Any]
    settings: tuple[str, ...]
    config: ConfigDict


def parse_grid(text: str) -> dict[str, list[str]]:
    """Texts by key, from `KEY=VALUE,VALUE KEY=FIRST:END`; a range of whole numbers leaves its end
    out.

    Raises:
      UserError: it is written otherwise.
    """
    grid: dict[str, list[str]] = {}
    for part in text.split():
        key, _, values = part.partition("=")
        if not key or not all(values.split(",")):
            raise UserError(
                f"--grid: {part!r} is not KEY=VALUE,VALUE or KEY=FIRST:END; values with spaces or "
                "commas go into --grid_file"
            )
        if key in grid:
            raise UserError(f"--grid: {key} is there twice; write its values with commas between")
        grid[key] = [value for item in values.split(",") for value in _range(key, item)]
    return grid


def _range(key: str, item: str) -> Iterable[str]:
    ends = re.fullmatch(r"(-?\d+):(-?\d+)", item)
    if not ends:
        return [item]
    first, end = int(ends[1]), int(ends[2])
    if not 0 < end - first <= MOST_RUNS:
        raise UserError(
            f"--grid: {key}={item} is {max(0, end - first)} values; FIRST:END leaves END out, and "
            f"may be 1 to {MOST_RUNS} values"
        )
    return map(str, range(first, end))


def read_grid(path: str) -> dict[str, list[str]]:
    """The same from a file of JSON, `{"KEY": [VALUE, ...]}`: a value is a number, a text, true or
    false, or a list of numbers.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(Path(path).read_text())
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
                    f"--grid_file={path}: {key} has {short(value)}; a value is a number, a text, "
                    "true, false or a list of numbers"
                )
    return {key: [text_of(value) for value in values] for key, values in found.items()}


def make_grid(text: str, path: str) -> dict[str, list[str]]:
    """What `--grid` and `--grid_file` say together; an empty path is no file. Raises UserError for
    a key that is in both.
    """
    grid, more = parse_grid(text), read_grid(path) if path else {}
    for key in grid.keys() & more.keys():
        raise UserError(f"--grid_file={path}: {key} is in --grid too; give it once")
    return grid | more


def text_of(value: Any) -> str:
    """A value as --config.KEY=VALUE takes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(text_of, value)) + "," * (len(value) == 1) if value else "()"
    return value if isinstance(value, str) else repr(value)


def make_trials(
    spec: str, overrides: Sequence[str], grid: Mapping[str, Sequence[str]]
) -> list[Trial]:
    """Every combination, the last key of the grid changing first; each config is loaded and
    checked.

    Args:
      spec: the experiment, see `load_config`.
      overrides: `KEY=TEXT` for all runs.
      grid: texts by key.

    Raises:
      UserError: a config cannot be, or two runs are the same.
    """
    fixed = {override.partition("=")[0] for override in overrides}
    for key in grid:
        if key in fixed:
            raise UserError(f"--config.{key}: the grid has it too; give it once")
    count = math.prod(map(len, grid.values()))
    if not grid or count > MOST_RUNS:
        raise UserError(
            f"the grid has {count} runs, the most are {MOST_RUNS}"
            if grid
            else "give --grid='KEY=VALUE,VALUE ...' or --grid_file"
        )
    trials: dict[str, Trial] = {}
    for texts in itertools.product(*grid.values()):
        settings = tuple(f"{key}={text}" for key, text in zip(grid, texts, strict=True))
        config = load_config(spec, [*overrides, *settings])
        check_config(config)
        build_model(config.model, num_classes=2)  # knows the network's arguments
        flat = flatten(config)
        values = {key: flat[key] for key in grid}
        name = name_of(values)
        if name in trials:
            raise UserError(f"the grid gives the run {name} twice")
        trials[name] = Trial(name, values, settings, config)
    return list(trials.values())


def name_of(values: Mapping[str, Any]) -> str:
    """A name for a folder: `KEY=VALUE,KEY=VALUE`, in the keys' order of the alphabet.

    What a file system may not take becomes `_`, and long names are cut; a checksum then keeps them
    apart.
    """
    text = ",".join(f"{key}={text_of(values[key])}" for key in sorted(values))
    safe = re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)
    if safe == text and len(safe) <= 150:
        return safe
    return f"{safe[:140]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
