"""The settings of a run that may differ when it is measured: other data, read in another way.

jaxconv evaluate --workdir=RUN --config.data.source=folder:NEW --config.data.eval_split=validation

What the network's input is made by stays the run's own, and so does everything else.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxconv.checks import check_config
from jaxconv.config import set_key
from jaxconv.data.named_files import root_of
from jaxconv.errors import UserError
from jaxconv.own import is_own
from jaxconv.values import AnyConfig, flatten, plain, with_plain_values

# `KEY=VALUE` each, or values by key.
Overrides = Sequence[str] | Mapping[str, Any]

# Keys, and groups of keys, that may be set for a run that exists already.
READING = (
    "data.decoder", "data.interpolation", "data.background", "data.crop_ratio",
    "data.eval_image_size",
)  # fmt: skip
OF_A_SET = (
    "data.source", "data.eval_split", "data.resident_limit", "data.threads", "data.prefetch",
    "data.damaged_share", "data.skip_unreadable", "data.xo", "data.scenes", "data.toy",
    "data.tfds", "data.folder", "data.arrays", "data.text.header", "data.text.coarse", "data.coco",
    "data.boxes",
    "data.csv", "data.annotations", "data.nifti.test_fraction", "data.nifti.seed",
)  # fmt: skip
MEASURING = ("eval.batch_size", "eval.metrics")
# Which of them each command uses.
TAKES = {
    "evaluate": (*OF_A_SET, *READING, *MEASURING),
    "look": (*OF_A_SET, *READING, *MEASURING),
    "report": (*OF_A_SET, *READING, *MEASURING),
    "predict": READING,
}
# Why others may not be.
_WHY = {
    "data.train_split": "it trains nothing",
    "eval.every": "it trains nothing",
    "data": "the network was trained on inputs made by it",
}


def check_takes(command: str, overrides: Iterable[str]) -> None:
    """Raise UserError for the first of the overrides that a command does not take.

    Args:
      command: one of `TAKES`.
      overrides: `KEY=VALUE` each.
    """
    takes = TAKES[command]
    for override in overrides:
        key = override.partition("=")[0]
        if within(key, takes):
            continue
        if command == "predict" and within(key, (*OF_A_SET, *MEASURING)):
            why = "it reads the files that it is given"
        else:
            why = next((why for known, why in _WHY.items() if within(key, (known,))), "")
        raise UserError(
            f"--config.{key}: {command} uses the config of the run in --workdir"
            f"{f' ({why})' if why else ''}; of that, only these can be set: {', '.join(takes)}"
        )


def within(key: str, keys: Sequence[str]) -> bool:
    """Whether a key of the config is one of some keys, or in one of them that is a group."""
    return any(key == known or key.startswith(f"{known}.") for known in keys)


def as_overrides(overrides: Overrides) -> list[str]:
    """Overrides as `KEY=VALUE`; a mapping from keys to values is another way to give them."""
    if isinstance(overrides, Mapping):
        return [f"{key}={_as_text(plain(value))}" for key, value in overrides.items()]
    return [*overrides]


def _as_text(value: Any) -> str:
    return f"{value!r}" if isinstance(value, tuple) else f"{value}"


def with_other_data(config: AnyConfig, overrides: Overrides) -> AnyConfig:
    """A copy of a run's config with such overrides.

    Raises:
      UserError: a key may not be set, or a value does not fit.
    """
    overrides = as_overrides(overrides)
    check_takes("evaluate", overrides)
    changed = with_plain_values(config)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"--config.{key}: give a value, --config.{key}=VALUE")
        set_key(changed, key, text)
    check_config(changed, with_task=not is_own(changed.task.name))
    _check_used(config, changed)
    return changed


@contextlib.contextmanager
def reading(config: AnyConfig) -> Iterator[None]:
    """Say how to name the new place if the data of a run cannot be read because they have moved."""
    try:
        yield
    except UserError as error:
        kind, colon, place = config.data.source.partition(":")
        moved = (
            kind in ("folder", "masks", "coco", "voc", "csv", "nifti", "arrays", "text")
            and not Path(root_of(place)).expanduser().exists()
        )
        if not (colon and moved):
            raise
        raise UserError(
            f"{error}; if the data have moved, give --config.data.source={kind}:PLACE",
            exit_code=error.exit_code,
        ) from error


def _check_used(config: AnyConfig, changed: AnyConfig) -> None:
    """Raise UserError for a setting of a source other than the one that is read."""
    before, now = flatten(config), flatten(changed)
    kind = now["data.source"].partition(":")[0]
    if is_own(now["data.source"]):
        return  # a custom source may use any of them
    for key in now:
        group = key.removeprefix("data.").partition(".")[0]
        kinds = {
            "toy": ("tones", "sentences", "solids", "xo_clips"),
            "scenes": ("xo_scenes", "xo_boxes"),
        }.get(group, (group,))
        if before.get(key) != now[key] and key.count(".") > 1 and kind not in kinds:
            raise UserError(
                f"--config.{key}: does nothing, because the data are {now['data.source']}"
            )
