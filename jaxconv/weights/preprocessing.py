"""What the weights that a run starts from want of images, as settings of `config.data`.

Keys that are left at their default are filled in before the run begins, so that they stand in its
config, and evaluation, prediction and export do the same. What is set otherwise stays, and is said.
"""

import logging
import os
from collections.abc import Collection
from typing import Any

from jaxconv.checks import CHOICES, FILES
from jaxconv.config import default_config, flatten, set_key
from jaxconv.files import expand
from jaxconv.models import model_arguments, usual_task
from jaxconv.tasks import TASKS, find_task
from jaxconv.train.workdir import saved_config
from jaxconv.values import AnyConfig, with_plain_values
from jaxconv.weights.pretrained import Weights, arguments_of, find_weights, preprocessing_of
from jaxconv.weights.published import Preprocessing

log = logging.getLogger(__name__)

# Of colour images, on a scale from 0 to 1: what weights of ImageNet want that do not say it.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

KEYS = tuple(
    f"data.{key}"
    for key in (
        *("mean", "std", "image_size", "eval_image_size", "crop_ratio", "interpolation"),
        *("canvas", "sides"),
    )
)
# Sides of a canvas are multiples of this, the largest stride of most backbones.
_STRIDE = 32


def networks_of(config: AnyConfig) -> tuple[str, ...]:
    """The network of a config and, if it has one, that of its backbone."""
    name = config.model.name
    try:
        arguments = model_arguments(name) | dict(config.model.kwargs)
    except (ValueError, TypeError):  # said where the network is built
        arguments = {}
    backbone = arguments.get("backbone")
    return (name, backbone) if isinstance(backbone, str) else (name,)


def settings_of(wants: Preprocessing, sized: bool, on_canvas: bool = False) -> dict[str, Any]:
    """What weights want, as keys of the config.

    Args:
      wants: what they want.
      sized: whether with the sizes.
      on_canvas: whether whole images stand on a canvas, as for detectors: a square that holds the
        longer side, lying or upright.
    """
    found: dict[str, Any] = {"data.mean": wants.mean, "data.std": wants.std}
    sized = sized and bool(wants.size)
    if sized and on_canvas:
        side = wants.size[-1]
        side = -(-side // _STRIDE) * _STRIDE if len(wants.size) == 2 else side
        found |= {"data.canvas": (side, side)}
        found |= {"data.sides": wants.size} if len(wants.size) == 2 else {}
    elif sized and len(wants.size) == 1:
        found |= {"data.image_size": wants.size[0], "data.eval_image_size": wants.test_size}
        found |= {"data.crop_ratio": wants.crop}
    if sized and wants.interpolation in CHOICES["data.interpolation"]:
        found["data.interpolation"] = wants.interpolation
    return {key: value for key, value in found.items() if value}


def with_preprocessing(
    config: AnyConfig, workdir: str | os.PathLike[str], restart: bool = False
) -> AnyConfig:
    """The config of a run, with what its first weights want where it has defaults.

    A run that exists keeps what it began with, whatever has become of the weights.

    Raises:
      UserError: the weights are not known, or cannot be had.
    """
    place = flatten(with_plain_values(config)).get("model.init_from")
    if not place:
        return config
    folder = expand(workdir)
    if (folder / "config.json").is_file() and not restart:
        saved = saved_config(folder)
        if saved.model.init_from != place:
            return config
        began = flatten(saved)
        kept = _with(config, {key: began[key] for key in KEYS if key in began})
        kept.model.kwargs.update({**saved.model.kwargs, **kept.model.kwargs})
        return kept
    return filled(config)


def filled(config: AnyConfig, given: Collection[str] = ()) -> AnyConfig:
    """The config with what the weights of `config.model.init_from` want, where it has defaults; as
    it is without them.

    What was filled in, and what the config has otherwise, is logged. `given` are keys that stay as
    they are, even at their default.

    Raises:
      UserError: the weights are not known, or cannot be had.
    """
    place = flatten(with_plain_values(config))["model.init_from"]
    if not place:
        return config
    weights = find_weights(place, networks_of(config), "--config.model.init_from")
    config = _with_arguments(config, weights)
    wants = preprocessing_of(weights)
    if wants is None:
        return config
    on_canvas = _on_canvas(config)
    settings = settings_of(wants, _sized(config, weights), on_canvas)
    if config.data.image_size not in (0, settings.get("data.image_size")):
        settings.pop("data.eval_image_size", None)  # that of another size
    if on_canvas and not _leaves_canvas(config, settings):
        given = {*given, "data.canvas", "data.sides"}
    changed = _with(config, settings, given)
    if on_canvas and len(wants.size) == 1 and "data.canvas" in settings:
        log.warning(
            "the weights of %s were trained on images stretched to a square; here they keep their "
            "shape on it",
            weights.row.name if weights.row else place,
        )
    _say(weights.row.name if weights.row else place, config, changed, settings, wants)
    return changed


def usual(network: str) -> Preprocessing:
    """What weights are taken to want of images where nobody says: what ImageNet's usually do."""
    size = usual_task(network)[0][0]
    return Preprocessing(mean=MEAN, std=STD, size=(size,), crop=0.875 if size > 32 else 1.0)


def complete(config: AnyConfig, weights: Weights, given: Collection[str] = ()) -> AnyConfig:
    """The config as `filled` makes it and, where nobody says what the weights want, the usual.

    Files are then resized in any case. What is assumed is said.

    Raises:
      UserError: as `filled`.
    """
    config = filled(config, given)
    settings = settings_of(usual(config.model.name), _sized(config, weights))
    if preprocessing_of(weights) is not None:  # and only the size may be missing
        settings = {key: value for key, value in settings.items() if key == "data.image_size"}
    changed = _with(config, settings, given)
    before, now = flatten(config), flatten(changed)
    new = [f"{key} {_shown(now[key])}" for key in settings if before[key] != now[key]]
    if new:
        log.warning(
            "nobody says what the weights of %s want of images; as is usual for %s: %s",
            *(weights.text, config.model.name, ", ".join(new)),
        )
    return changed


def _with_arguments(config: AnyConfig, weights: Weights) -> AnyConfig:
    """The config with the network's arguments with which the weights were trained, if not set."""
    wanted = arguments_of(weights, config.model.name)
    given = dict(config.model.kwargs)
    for name in wanted.keys() & given.keys():
        if given[name] != wanted[name]:
            log.warning(
                "the weights of %s want model.kwargs.%s %s (the config has %s)",
                *(weights.text, name, wanted[name], given[name]),
            )
    if not wanted.keys() - given.keys():
        return config
    said = ", ".join(f"model.kwargs.{name} {value}" for name, value in wanted.items())
    log.info("as the weights of %s want it: %s", weights.text, said)
    changed = with_plain_values(config)
    changed.model.kwargs.update({**wanted, **given})
    return changed


def _sized(config: AnyConfig, weights: Weights) -> bool:
    """Whether the size of the images is that of the weights' network, and can be set."""
    own = weights.row is None or weights.row.network == config.model.name
    kind, canvas = config.data.source.partition(":")[0], config.data.canvas
    return own and kind in FILES and (_on_canvas(config) or not canvas)


def _on_canvas(config: AnyConfig) -> bool:
    """Whether the task sees whole images, and knows what of a canvas shows them."""
    return config.task.name in TASKS and "seen" in find_task(config.task.name).uses


def _leaves_canvas(config: AnyConfig, settings: dict[str, Any]) -> bool:
    """Whether the config can have the canvas of the settings, with what else it sets."""
    data, augment = config.data, config.augment
    other = data.canvas and data.canvas != settings.get("data.canvas")
    return not (other or data.image_size or augment.scale_jitter or augment.pad_crop)


def _with(config: AnyConfig, settings: dict[str, Any], given: Collection[str] = ()) -> AnyConfig:
    """The config with these settings, where it has defaults that were not given."""
    defaults, now = flatten(default_config()), flatten(config)
    changed = with_plain_values(config)
    for key, value in settings.items():
        if now.get(key) == defaults[key] and key not in given:
            set_key(changed, key, value if isinstance(value, str) else repr(value))
    return changed


def _say(
    place: str,
    config: AnyConfig,
    filled: AnyConfig,
    settings: dict[str, Any],
    wants: Preprocessing,
) -> None:
    before, now = flatten(config), flatten(filled)
    new = [f"{key} {_shown(now[key])}" for key in settings if before[key] != now[key]]
    other = [
        f"{key} {_shown(value)} (the config has {_shown(now[key])})"
        for key, value in settings.items()
        if tuple(_flat(now[key])) != tuple(_flat(value))
    ]
    known = ("", *CHOICES["data.interpolation"])
    if wants.interpolation not in known and "data.crop_ratio" in settings:
        other.append(f"{wants.interpolation} interpolation (jaxconv has none of it)")
    if new:
        log.info("as the weights of %s want it: %s", place, ", ".join(new))
    if other:
        log.warning("the weights of %s want %s", place, ", ".join(other))


def _flat(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _shown(value: Any) -> str:
    if value == ():
        return "none"
    return ",".join(item if isinstance(item, str) else f"{item:g}" for item in _flat(value))


def preprocessing_in(config: AnyConfig) -> Preprocessing:
    """What a run's network wants of images, from its config."""
    data = config.data
    side = data.image_size or (data.canvas[0] if len({*data.canvas}) == 1 else 0)
    return Preprocessing(
        mean=tuple(data.mean),
        std=tuple(data.std),
        size=tuple(data.sides) or ((side,) if side else ()),
        test_size=data.eval_image_size if data.eval_image_size != data.image_size else 0,
        crop=data.crop_ratio if data.image_size else 0.0,
        interpolation=data.interpolation,
    )
