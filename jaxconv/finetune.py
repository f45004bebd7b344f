"""The config of a fine-tuning: a recipe around weights that others have trained.

    config, said = finetune_config("folder:DIR", "resnet50", "WEIGHTS")

The recipe is usual in transfer, and everything in it is a key of the config: Nesterov momentum 0.9,
a warm-up and a cosine to 0 (Kornblith et al. 2019, arXiv:1805.08974, appendix A), a length that
depends on the size of the set (Kolesnikov et al. 2020, arXiv:1912.11370, section 3.3), random crops
and flips, a tenth of the rate for all but the last layer, and an end once the first figure no
longer improves.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxconv.checks import FILES
from jaxconv.config import change, default_config, group, set_key
from jaxconv.data.interface import Source, describe
from jaxconv.data.sources import as_files, open_source
from jaxconv.errors import UserError, nearest
from jaxconv.files import at_home
from jaxconv.models import abstract_variables, usual_task
from jaxconv.models.configured import build_model
from jaxconv.tasks import needs_of
from jaxconv.train.optim import parameter_paths
from jaxconv.train.workdir import saved_config
from jaxconv.values import AnyConfig, Config, plain
from jaxconv.weights.preprocessing import filled, networks_of, settings_of, usual
from jaxconv.weights.pretrained import find_weights, preprocessing_of

# The group of all parameters but those of the last layer.
BODY = "body"
PROBES = ("", "linear")
NORMS = ("tracked", "frozen")
# The training: passes over the set, but no fewer and no more than so many steps.
EPOCHS, FEWEST, MOST = 20, 500, 10_000


class Built(NamedTuple):
    """The config of a fine-tuning, and a few lines that say what was chosen."""

    config: Config
    said: list[str]


def finetune_config(
    source: str,
    model: str,
    pretrained: str,
    overrides: Sequence[str] = (),
    probe: str = "",
    norm: str = "tracked",
) -> Built:
    """The config that trains a network on a source, from weights that others have trained.

    Args:
      source: as `config.data.source`; its examples have a label.
      model: as `config.model.name`.
      pretrained: as `config.model.init_from`.
      overrides: `KEY=VALUE` each; these keys are the user's, and are not chosen.
      probe: `linear` trains the last layer alone, on features that stay as they are.
      norm: of BatchNorm's statistics: `tracked` (those of the new images are gathered), or `frozen`
        (those of the weights are kept, which is better for batches of a few images).

    Raises:
      UserError: the source or the network cannot be used, or a key is unknown.
    """
    for option, value, allowed in (("probe", probe, PROBES), ("norm", norm, NORMS)):
        if value not in allowed:
            raise UserError(
                f"--{option}={value}{nearest(value, allowed)}: must be one of "
                f"{', '.join(filter(None, allowed))}"
            )
    config = default_config()
    config.data.source, config.model.name, config.model.init_from = source, model, pretrained
    of_groups = [one for one in overrides if one.startswith("optimizer.groups.")]
    others = [one for one in overrides if one not in of_groups]
    change(config, others)
    if config.task.name != "classification":
        raise UserError(
            f"--config.task.name={config.task.name}: finetune is for classification; for other "
            "tasks use train with --config.model.init_from"
        )
    given = {one.partition("=")[0] for one in others}
    config = filled(config, given)
    opened = _open(config)
    description = describe(opened)
    for key, value in _recipe(config, len(opened), description, probe).items():
        if key not in given:
            set_key(config, key, repr(value) if isinstance(value, tuple) else str(value))
    layers, has_norm = _last_layers(config, tuple(description["image_shape"]))
    frozen_norm = has_norm and "frozen" in (norm, "frozen" if probe else "")
    if norm == "frozen" and not has_norm:
        raise UserError(f"--norm=frozen: {model} has no BatchNorm; leave it out")
    if frozen_norm and "model.kwargs.frozen_norm" not in given:
        config.model.kwargs.frozen_norm = True
    pattern = rf"^(?!({'|'.join(map(re.escape, layers))})/)"
    config.optimizer.groups[BODY] = group(pattern, 0.1, frozen=bool(probe))
    change(config, of_groups)
    return Built(config, _said(config, opened, layers, has_norm))


def _open(config: AnyConfig) -> Source:
    """The training examples, not read yet, at the size that the network is usually given."""
    settings = as_files(config.data)
    if not (settings.image_size or settings.canvas) and _of_files(config):
        settings.image_size = usual_task(config.model.name)[0][0]
    return open_source(settings, settings.train_split, needs=needs_of(config))


def _of_files(config: AnyConfig) -> bool:
    return config.data.source.partition(":")[0] in FILES


def _recipe(
    config: AnyConfig, examples: int, description: dict[str, Any], probe: str
) -> dict[str, Any]:
    """What the recipe chooses, by key."""
    batch = config.batch_size
    if batch == default_config().batch_size:
        batch = 64 if examples >= 64 else 2 ** (examples.bit_length() - 1)
    steps = config.steps or round(config.epochs * examples / batch)
    chosen: dict[str, Any] = {"batch_size": batch, "eval.batch_size": 100}
    if not steps:
        steps = min(MOST, max(FEWEST, round(EPOCHS * examples / batch)))
        chosen["steps"] = steps
    chosen |= {
        "optimizer.learning_rate": 0.02,
        "optimizer.nesterov": config.optimizer.name == "sgd",
        "optimizer.l2": 0.0 if probe else 1e-4,
        "optimizer.schedule.name": "cosine",
        "optimizer.schedule.warmup_steps": steps // 10,
        "eval.every": max(1, steps // 20),
        "checkpoint.every": max(1, steps // 4),
        "log.every": max(1, min(50, steps // 20)),
        "early_stopping.patience": 5,
    }
    if description["kind"] == "image":
        chosen["augment.flip"] = True
        if _of_files(config) and not config.data.canvas:
            chosen["augment.random_resized_crop.scale"] = (0.35, 1.0)
        else:
            chosen["augment.pad_crop"] = min(description["image_shape"][:2]) // 8
        chosen |= _wanted(config, description["image_shape"][-1])
    return chosen


def _wanted(config: AnyConfig, channels: int) -> dict[str, Any]:
    """What the weights want of images: those of a run what it had, those that say nothing what
    ImageNet's do.
    """
    place, data = config.model.init_from, config.data
    sized = _of_files(config) and not data.canvas
    if place and (folder := at_home(place, "--pretrained") / "config.json").is_file():
        trained = saved_config(folder.parent).data
        keys = ("mean", "std", *(("image_size", "eval_image_size", "crop_ratio") if sized else ()))
        return {f"data.{key}": plain(trained[key]) for key in keys}
    weights = find_weights(place, networks_of(config), "--pretrained") if place else None
    wants = (preprocessing_of(weights) if weights else None) or usual(config.model.name)
    found = settings_of(wants, sized)
    if data.image_size:  # that of evaluation is for another
        found.pop("data.eval_image_size", None)
    for key in ("data.mean", "data.std"):
        if len(found.get(key, ())) not in (0, 1, channels):
            found[key] = (round(sum(found[key]) / len(found[key]), 3),)
    return found


def _last_layers(config: AnyConfig, shape: tuple[int, ...]) -> tuple[list[str], bool]:
    """The layers whose size is that of the classes, by path; and whether there is a BatchNorm."""
    shapes: list[dict[str, tuple[int, ...]]] = []
    variables: Any = {}
    for classes in (2, 3):
        variables = abstract_variables(build_model(config.model, classes), (1, *shape))
        paths, leaves = parameter_paths(variables["params"]), jax.tree.leaves(variables["params"])
        shapes.append({path: leaf.shape for path, leaf in zip(paths, leaves, strict=True)})
    two, three = shapes
    differing = [path.rpartition("/")[0] for path in two if two[path] != three[path]]
    return [*dict.fromkeys(differing)], "batch_stats" in variables


def _said(config: AnyConfig, source: Source, layers: Sequence[str], has_norm: bool) -> list[str]:
    """What was chosen, in a few lines."""
    optimizer, body, data = config.optimizer, config.optimizer.groups[BODY], config.data
    rate, schedule, last = optimizer.learning_rate, optimizer.schedule, ", ".join(layers)
    rest = "the rest frozen" if body.frozen else f"{rate * body.learning_rate:g} for the rest"
    length = f"{config.steps:,} steps" if config.steps else f"{config.epochs:g} epochs"
    stop = config.early_stopping.patience
    norm = "frozen" if config.model.kwargs.get("frozen_norm") else "tracked"
    lines = [
        f"{config.model.name} from {config.model.init_from}: {len(source):,} training examples of "
        f"{len(source.class_names)} classes",
        f"{optimizer.name}, learning rate {rate:g} for {last}, {rest}; {schedule.name}, "
        f"{schedule.warmup_steps} steps of warm-up{f'; BatchNorm {norm}' if has_norm else ''}",
        f"{length} of {config.batch_size}"
        + (f", fewer after {stop} evaluations without a better one" if stop else ""),
    ]
    if source.element.kind == "image":
        crop = config.augment.random_resized_crop.scale
        on = [f"random crops of {crop[0]:g} to {crop[1]:g} of the area"] if crop else []
        on += [f"random shifts of {config.augment.pad_crop}"] if config.augment.pad_crop else []
        flips = ["flips (--config.augment.flip=False where left is not right)"]
        on += flips if config.augment.flip else []
        mean = ",".join(f"{value:g}" for value in data.mean)
        size = f"{data.image_size} pixels, " if data.image_size else ""
        lines.append(f"images: {size}mean {mean}; {', '.join(on) or 'not augmented'}")
    return lines
