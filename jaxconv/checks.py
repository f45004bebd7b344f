"""Checks of a config before the data is read: keys, types and ranges, as tables."""

import inspect
import math
from typing import Any

from ml_collections import ConfigDict

from jaxconv.config import check_type, default_config, differing_keys, flatten, group, nearest_key
from jaxconv.data.folds import parse_split
from jaxconv.data.geometry import KEPT
from jaxconv.data.layout import LAYOUTS
from jaxconv.data.objects import check_way
from jaxconv.data.signals import MOST_WORDS
from jaxconv.errors import UserError, nearest, short
from jaxconv.own import is_own, own, same_pieces
from jaxconv.tasks import Task, find_task
from jaxconv.values import AnyConfig

# How the members of an ensemble are computed, and the settings that may differ between them: those
# that a step can take as traced arrays.
FORMS = ("vmap", "map", "unroll")
TRACED = {
    **{key: f"optimizer.{key}" for key in ("learning_rate", "l2", "weight_decay", "momentum")},
    "label_smoothing": "loss.label_smoothing",
}
# Built-in optimizers and schedules. Others go by name, see train/named.py.
OPTIMIZERS = ("sgd", "rmsprop", "adamw", "lamb", "lars")
SCHEDULES = ("constant", "step", "cosine", "plateau")
# Arguments of a schedule by name that get the number of steps, if it requires them.
LENGTHS = ("total_steps", "decay_steps", "transition_steps")
CHOICES = {
    "parallel": ("jit", "pmap", "fsdp"),
    "model.dtype": ("float32", "bfloat16", "float16"),
    "data.decoder": ("auto", "simplejpeg", "pillow"),
    "data.interpolation": ("bilinear", "bicubic"),
    "data.audio.form": ("log_mel", "waveform"),
    "data.arrays.layout": ("", *LAYOUTS),
    "data.text.header": ("auto", "yes", "no"),
    "ensemble.batches": ("own", "same"),
    "distill.kind": ("soft", "hard"),
    "ensemble.by": ("auto", *FORMS),
    "optimizer.name": OPTIMIZERS,
    "augment.randaugment.space": ("torchvision", "wide", "timm"),
    "augment.interpolation": ("nearest", "bilinear"),
    "augment.padding": ("black", "reflect"),
    "augment.kept_objects": KEPT,
    "optimizer.schedule.name": SCHEDULES,
}
# Choices that may also be names of optax, or custom ones.
OR_BY_NAME = ("optimizer.name", "optimizer.schedule.name")
# Settings that only some choices use.
USED_BY = {
    **{f"optimizer.{key}": ("optimizer.name", OPTIMIZERS) for key in ("momentum", "nesterov")},
    **{
        f"optimizer.{key}": ("optimizer.name", ("rmsprop", "adamw", "lamb"))
        for key in ("beta2", "epsilon")
    },
    "optimizer.trust_coefficient": ("optimizer.name", ("lars",)),
    "optimizer.schedule.boundaries": ("optimizer.schedule.name", ("step",)),
    "optimizer.schedule.factor": ("optimizer.schedule.name", ("step", "plateau")),
    "optimizer.schedule.metric": ("optimizer.schedule.name", ("plateau",)),
    "optimizer.schedule.patience": ("optimizer.schedule.name", ("plateau",)),
}
# Sections whose keys a config may choose.
OPEN = (
    "model.kwargs.",
    "optimizer.groups.",
    "optimizer.kwargs.",
    "optimizer.schedule.kwargs.",
    "task.kwargs.",
)
AT_LEAST = {
    0: (
        "epochs", "steps", "eval.every", "checkpoint.every", "checkpoint.keep_best",
        "data.image_size", "data.eval_image_size", "data.resident_limit", "data.threads",
        "data.prefetch", "data.damaged_share", "augment.pad_crop", "optimizer.learning_rate",
        "optimizer.momentum", "optimizer.l2", "optimizer.weight_decay", "optimizer.beta2",
        "optimizer.clip_norm", "optimizer.adaptive_clip", "optimizer.schedule.warmup_steps",
        "loss.label_smoothing", "loss.threshold", "ema.decay", "early_stopping.patience",
        "early_stopping.min_delta", "data.arrays.scale", "distill.alpha", "distill.feature_weight",
        "data.text.words", "data.fold", "data.frames",
    ),
    0.05: ("data.audio.seconds",),  # two frames of a spectrogram
    1: (
        "batch_size", "accumulate", "steps_per_call", "model.norm_groups", "ensemble.size",
        "eval.batch_size", "log.every", "checkpoint.keep", "data.toy.train_examples",
        "data.toy.test_examples", "data.audio.mels", "data.text.length", "data.xo.channels",
        "augment.repeats", "optimizer.schedule.patience",
    ),
    2: ("data.folds",),
    8: ("data.toy.size",),
    100: ("data.audio.rate",),
}  # fmt: skip
MORE_THAN_0 = (
    "data.crop_ratio",
    "optimizer.epsilon",
    "optimizer.trust_coefficient",
    "optimizer.schedule.factor",
    "distill.temperature",
)
LESS_THAN_1 = (
    "optimizer.momentum",
    "optimizer.beta2",
    "loss.label_smoothing",
    "loss.threshold",
    "ema.decay",
)
# Integers that need not fit into an int32.
MAY_BE_LARGE = ("seed", "data.xo.seed", "data.toy.seed", "data.folder.seed", "data.resident_limit")
MAY_BE_LARGE += ("data.fold_seed",)
AT_MOST_1 = ("data.crop_ratio", "data.damaged_share", "distill.alpha")
# Settings of `config.data` that would have no effect on other sources.
OF_SOURCES = {
    "arrays": "arrays:",
    "text.header": "text:",
    "text.coarse": "text:",
    "folder.test": "folder:",
    "coco": "coco:",
    "csv": "csv:",
    "nifti": "nifti:",
}
# Sources of image files.
FILES = ("folder", "masks", "coco", "voc", "csv", "tfds")
# Pairs of positive numbers in ascending order, with their upper bound. Those that may be empty are
# off when empty.
PAIRS = {
    "random_resized_crop.scale": 1,
    "random_resized_crop.ratio": math.inf,
    "scale_jitter": math.inf,
    "large_scale_jitter": 10,
    "erasing.area": 1,
    "blur.sigma": 100,
}
PAIRS |= {"erasing.ratio": math.inf}
MAY_BE_EMPTY = ("random_resized_crop.scale", "scale_jitter", "large_scale_jitter")
# Settings of `config.augment` that must be between 0 and this.
AUGMENT_RANGES = {
    **dict.fromkeys(
        (
            "randaugment.level",
            "randaugment.deviation",
            "randaugment.probability",
            "erasing.probability",
        ),
        1,
    ),
    **dict.fromkeys(
        ("colour_jitter.brightness", "colour_jitter.contrast", "colour_jitter.saturation"), 1
    ),
    **dict.fromkeys(
        (
            "colour_jitter.probability",
            "grey",
            "blur.probability",
            "mosaic",
            "solarise.probability",
            "solarise.threshold",
        ),
        1,
    ),
    **{
        "colour_jitter.hue": 0.5,
        "randaugment.layers": 16,
        "pca_colour": 10,
        "mixup": 100,
        "cutmix": 100,
    },
}
# At most one of each of these may be on.
ALTERNATIVES = (
    ("random_resized_crop.scale", "scale_jitter", "large_scale_jitter", "pad_crop"),
    ("flip", "alternating_flip"),
    ("randaugment.layers", "trivial"),
)


def check_config(config: AnyConfig, with_task: bool = True) -> None:
    """Check everything that can be checked before the data is read.

    Args:
      config: the whole config.
      with_task: also check the settings that the task knows, which runs the code of a custom task.

    Raises:
      UserError: a key is missing or unknown (if an experiment made its own ConfigDict), or a value
        has the wrong type or is out of range.
    """
    given = flatten(config)
    _check_keys(given)
    for key, allowed in CHOICES.items():
        by_name = key in OR_BY_NAME
        if given[key] not in allowed and not (by_name and is_own(given[key])):
            others = ", optax.NAME, FILE.py:NAME or package.module.NAME" if by_name else ""
            raise UserError(
                f"config.{key} is {given[key]!r}{nearest(given[key], allowed)}; it must be one of "
                f"{', '.join(allowed)}{others}"
            )
    for least, keys in AT_LEAST.items():
        _check_all(given, keys, lambda value, least=least: value >= least, f"at least {least}")
    _check_all(given, MORE_THAN_0, lambda value: value > 0, "more than 0")
    _check_all(given, LESS_THAN_1, lambda value: value < 1, "less than 1")
    _check_all(given, AT_MOST_1, lambda value: value <= 1, "at most 1")
    whole = tuple(
        key for key, value in given.items() if type(value) is int and key not in MAY_BE_LARGE
    )
    _check_all(given, whole, lambda value: value < 2**31, f"less than {2**31}")
    # The members use consecutive seeds, starting with this one.
    largest = 2**32 - config.ensemble.size
    if not 0 <= config.seed <= largest:
        raise UserError(f"config.seed is {config.seed}; it must be between 0 and {largest}")
    if (config.epochs > 0) == (config.steps > 0):
        raise UserError(
            f"config.epochs is {config.epochs} and config.steps is {config.steps}; exactly one of "
            "them must be more than 0"
        )
    swept_values(config)
    _check_own(config)
    if with_task:
        task = find_task(config.task.name)
        _check_metrics(config, task)
        task.check_config(config)
        if config.distill.teacher and task.distilled is Task.distilled:
            raise UserError(
                f"config.distill.teacher is {config.distill.teacher!r}; the task "
                f"{config.task.name} cannot learn from a teacher: leave it empty"
            )
    first, _, last = config.profile.partition(":")
    if config.profile and not (
        first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)
    ):
        raise UserError(
            f"config.profile is {config.profile!r}; it must be FIRST:LAST, with steps counted from "
            "1, such as 10:20"
        )
    _check_data(config.data)
    if with_task:
        _check_padding(config, find_task(config.task.name))
    _check_augment(config, given)
    _check_optimizer(config.optimizer)


def _check_metrics(config: AnyConfig, task: type[Task]) -> None:
    """Raise UserError unless the metrics of the config are figures of the task."""
    allowed = [f"eval/{figure.key}" for figure in task.measures(config) if figure.panel]
    for key in ("optimizer.schedule.metric", "checkpoint.metric", "early_stopping.metric"):
        metric = task.metric(flatten(config)[key])
        if metric not in allowed:
            raise UserError(
                f"config.{key} is {metric!r}{nearest(metric, allowed)}; it must be one of "
                f"{', '.join(allowed)}, or empty for the first of them"
            )


def differing_runs(old: AnyConfig, new: AnyConfig) -> list[str]:
    """Keys whose difference makes two configs different runs, see `config.differing_keys`.

    An empty metric counts as the one that the task chooses for it, and a custom piece whose file
    was moved as the same piece.
    """
    before, now = flatten(old), flatten(new)
    now |= {key: before[key] for key in same_pieces(before, now)}
    for key in ("optimizer.schedule.metric", "checkpoint.metric"):
        if before[key] != now[key]:
            metric = find_task(new.task.name).metric
            before[key], now[key] = metric(before[key]), metric(now[key])
    found = differing_keys(before, now)
    lengths = [key for key in ("epochs", "steps") if before[key] != now[key]]
    return sorted({*found, *(lengths if lengths and _looks_at_length(new) else [])})


def check_effects(config: AnyConfig) -> None:
    """Raise UserError for settings of a new run that its other settings do not use.

    Runs of earlier versions may have them, and stay usable.
    """
    given, defaults = flatten(config), flatten(default_config())
    for key, (choice, used_by) in USED_BY.items():
        if given[key] != defaults[key] and given[choice] not in used_by:
            section = choice.removesuffix("name")
            by_name = choice in OR_BY_NAME and is_own(given[choice])
            instead = f"; give config.{section}kwargs" if by_name else ""
            raise UserError(
                f"config.{key} is {given[key]}, but config.{choice} is {given[choice]!r}, which "
                f"does not use it; it is for {', '.join(used_by)}{instead}"
            )
    _check_distill(config.distill, default_config().distill)
    if config.augment.padding != "black" and not config.augment.pad_crop:
        raise UserError(
            f"config.augment.padding is {config.augment.padding!r}, but augment.pad_crop is 0, so "
            "nothing is padded; give the pixels, such as --config.augment.pad_crop=2"
        )


def _check_distill(distill: AnyConfig, defaults: AnyConfig) -> None:
    """Raise UserError for settings of a teacher that do nothing."""
    for key, value in distill.items():
        if value == defaults[key] or key == "teacher":
            continue
        why = "" if distill.teacher else "there is no distill.teacher"
        if key == "temperature" and distill.kind == "hard":
            why = "distill.kind is hard, which has no temperature"
        if key == "feature_weight" and not distill.features:
            why = "there are no distill.features"
        if why:
            raise UserError(f"config.distill.{key} is {value}, which does nothing: {why}")


def _looks_at_length(config: AnyConfig) -> bool:
    """Whether the learning rate depends on the number of steps of the training."""
    schedule = config.optimizer.schedule
    if schedule.name in SCHEDULES:
        return schedule.name == "cosine"
    arguments = inspect.signature(own(schedule.name, "config.optimizer.schedule.name")).parameters
    return any(
        name in arguments
        and arguments[name].default is inspect.Parameter.empty
        and name not in schedule.kwargs
        for name in LENGTHS
    )


def swept_values(config: AnyConfig) -> tuple[str, tuple[float, ...]] | None:
    """The setting of `config.ensemble.over` and its values; None if it is empty.

    Raises:
      UserError: it cannot be parsed, or does not match the size.
    """
    over, size = config.ensemble.over, config.ensemble.size
    if not over:
        return None
    key, colon, texts = over.partition(":")
    if key not in TRACED:
        raise UserError(
            f"config.ensemble.over is {over!r}{nearest(key, TRACED)}; it must be "
            f"KEY:VALUE,VALUE,... with KEY one of {', '.join(TRACED)}"
        )
    try:
        values = tuple(float(text) for text in texts.split(","))
    except ValueError:
        values = ()
    least = math.ulp(0.0) if key == "learning_rate" else 0.0
    if not colon or len(values) < 2 or not all(least <= value < math.inf for value in values):
        what = "numbers above 0" if least else "numbers of at least 0"
        raise UserError(
            f"config.ensemble.over is {over!r}; give two or more {what}, such as {key}:0.01,0.03"
        )
    if size not in (1, len(values)):
        raise UserError(
            f"config.ensemble.size is {size}, and config.ensemble.over has {len(values)} values; "
            "leave the size at 1"
        )
    if TRACED[key] in LESS_THAN_1 and max(values) >= 1:
        raise UserError(f"config.ensemble.over is {over!r}; {TRACED[key]} must be less than 1")
    if len(set(values)) < len(values):
        raise UserError(
            f"config.ensemble.over is {over!r}, which repeats a value; give different ones"
        )
    if key == "momentum" and is_own(config.optimizer.name):
        raise UserError(
            f"config.ensemble.over is {over!r}, but config.optimizer.name is "
            f"{config.optimizer.name!r}, which does not have this setting"
        )
    if key == "label_smoothing" and is_own(config.loss.name):
        raise UserError(
            f"config.ensemble.over is {over!r}, but config.loss.name is {config.loss.name!r}, "
            "which does not have this setting"
        )
    return key, values


def _check_own(config: AnyConfig) -> None:
    for key, name in (
        ("augment.own", config.augment.own),
        *(("eval.metrics", name) for name in config.eval.metrics.split()),
        *(("callbacks", name) for name in config.callbacks.split()),
    ):
        if name and not is_own(name):
            raise UserError(
                f"config.{key} is {name!r}; it must be FILE.py:NAME or package.module.NAME"
            )


def _check_all(given: dict[str, Any], keys: tuple[str, ...], holds: Any, what: str) -> None:
    for key in keys:
        if not holds(given[key]):
            raise UserError(f"config.{key} is {given[key]}; it must be {what}")


def _check_keys(given: dict[str, Any]) -> None:
    known = flatten(default_config())
    for key in given:
        if key in known:
            continue
        if not key.startswith(OPEN):
            raise UserError(
                f"config.{key}: the config has no such key{nearest_key(default_config(), key)}"
            )
        _check_value(key, given[key])
    for key, default in known.items():
        if key not in given:
            raise UserError(f"config.{key} is missing; start from jaxconv.config.default_config()")
        check_type(f"config.{key}", given[key], default)
        values = given[key] if isinstance(given[key], tuple) else (given[key],)
        if not all(math.isfinite(value) for value in values if isinstance(value, float)):
            raise UserError(f"config.{key} is {given[key]}; it must be finite")


def _check_value(key: str, value: Any) -> None:
    """Raise UserError unless config.json can hold the value of a key that has no default."""
    if isinstance(value, tuple):
        for item in value:
            _check_value(key, item)
    elif value is not None and type(value) not in (bool, int, float, str):
        raise UserError(
            f"config.{key} holds {short(value)}, which is a {type(value).__name__}; it may hold "
            "numbers, strings, True, False, None, and tuples and groups of them"
        )
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{key} holds {value}; it must be finite")


def _check_data(data: AnyConfig) -> None:
    for key in ("mean", "std"):
        if not data[key]:
            raise UserError(
                f"config.data.{key} is empty; it must be one number, or one per channel"
            )
    if not all(value > 0 for value in data.std):
        raise UserError(
            f"config.data.std is {data.std}; every standard deviation must be more than 0"
        )
    _check_background(data)
    _check_canvas(data)
    given, defaults = flatten(data), flatten(default_config().data)
    for key in given:
        kind = OF_SOURCES.get(key.split(".")[0]) or OF_SOURCES.get(key)
        fits = not kind or is_own(data.source) or data.source.startswith(kind)
        if not fits and given[key] != defaults[key]:
            raise UserError(
                f"config.data.{key} is {given[key]!r}; it is for {kind}PATH, and "
                f"config.data.source is {data.source!r}"
            )
    _check_annotations(data)
    alphabet = data.text.alphabet
    if len(alphabet) > 255 or len(set(alphabet)) < len(alphabet):
        raise UserError(
            f"config.data.text.alphabet is {alphabet!r}; it must be at most 255 different "
            "characters"
        )
    words = data.text.words
    if words > MOST_WORDS or (words and alphabet):
        raise UserError(
            f"config.data.text.words is {words}; it must be at most {MOST_WORDS:,}, without "
            "data.text.alphabet"
        )
    _check_folds(data)


def _check_folds(data: AnyConfig) -> None:
    if data.fold >= data.folds:
        raise UserError(
            f"config.data.fold is {data.fold}; it must be less than data.folds, {data.folds}"
        )
    cut = any(parse_split(data[key]).part for key in ("train_split", "eval_split"))
    defaults = default_config().data
    for key in ("folds", "fold", "fold_seed"):
        if not cut and data[key] != defaults[key]:
            raise UserError(
                f"config.data.{key} is {data[key]}, and does nothing: set "
                f"--config.data.train_split='{data.train_split}[!fold]' "
                f"--config.data.eval_split='{data.train_split}[fold]'"
            )


def _check_annotations(data: AnyConfig) -> None:
    check_way(data.annotations)
    if data.boxes and not is_own(data.source) and not data.source.startswith(("folder:", "tfds:")):
        raise UserError(
            f"config.data.boxes is {data.boxes!r}; it is for folder:PATH and tfds:NAME, and "
            f"config.data.source is {data.source!r}"
        )
    size = data.nifti.size
    if size and not (len(size) == 3 and all(isinstance(s, int) and s > 0 for s in size)):
        raise UserError(
            f"config.data.nifti.size is {size}; it must be three whole numbers, such as 40,56,40"
        )


def _check_canvas(data: AnyConfig) -> None:
    for key, least in (("canvas", 8), ("sides", 1)):
        pair = data[key]
        if pair and not (len(pair) == 2 and all(type(s) is int and s >= least for s in pair)):
            raise UserError(
                f"config.data.{key} is {pair}; it must be two whole numbers of at least {least}, "
                "such as 800,1344"
            )
    if data.sides and not data.canvas:
        raise UserError(
            f"config.data.sides is {data.sides}; it is for images on a canvas, such as "
            "--config.data.canvas=1344,1344"
        )
    if data.sides and data.sides[0] > data.sides[1]:
        raise UserError(
            f"config.data.sides is {data.sides}; the shorter side comes first, such as 800,1333"
        )
    for key, default in (("image_size", 0), ("eval_image_size", 0), ("crop_ratio", 1.0)):
        if data.canvas and data[key] != default:
            raise UserError(
                f"config.data.canvas is {data.canvas}, and config.data.{key} is {data[key]}; on a "
                f"canvas an image is whole: leave data.{key} at {default}"
            )
    kind = data.source.partition(":")[0]
    if data.canvas and (is_own(data.source) or kind not in FILES):
        raise UserError(
            f"config.data.canvas is {data.canvas}; it is for image files, {', '.join(FILES)}, and "
            f"config.data.source is {data.source!r}"
        )


def _check_padding(config: AnyConfig, task: type[Task]) -> None:
    """Raise UserError unless the task, and the augmentation, know what of an image is padding."""
    augment, data = config.augment, config.data
    for key, value, instead in (
        ("data.canvas", data.canvas, "data.image_size"),
        ("augment.large_scale_jitter", augment.large_scale_jitter, "augment.scale_jitter"),
    ):
        if value and "seen" not in task.uses:
            raise UserError(
                f"config.{key} is {value}, and the task {config.task.name} would take the padding "
                f"for a part of the image: use {instead}"
            )
    if augment.mosaic and "classes" not in task.needs:
        raise UserError(
            f"config.augment.mosaic is {augment.mosaic}; the task {config.task.name} is not "
            "detection: leave it at 0"
        )
    for key in ("scale_jitter", "pad_crop"):
        if data.canvas and augment[key]:
            raise UserError(
                f"config.augment.{key} is {augment[key]}, and images stand on a canvas; use "
                "large_scale_jitter or random_resized_crop"
            )
    if augment.large_scale_jitter and data.image_size:
        size = data.image_size
        raise UserError(
            f"config.augment.large_scale_jitter is {augment.large_scale_jitter}, and images are "
            f"cropped to data.image_size={size}; set --config.data.canvas={size},{size} instead"
        )


def _check_background(data: AnyConfig) -> None:
    if not data.background:
        return
    from PIL import ImageColor

    try:
        ImageColor.getrgb(data.background)
    except ValueError as error:
        raise UserError(
            f"config.data.background is {data.background!r}"
            f"{nearest(data.background, ImageColor.colormap)}; it must be a colour such as white, "
            "#808080 or rgb(128,128,128)"
        ) from error
    if not is_own(data.source) and data.source.partition(":")[0] not in FILES:
        raise UserError(
            f"config.data.background is {data.background!r}, and {data.source} holds no image "
            "files; leave it empty"
        )


def _check_optimizer(config: AnyConfig) -> None:
    boundaries = config.schedule.boundaries
    if list(boundaries) != sorted(set(boundaries)) or not all(
        isinstance(b, int) and 0 < b < 2**31 for b in boundaries
    ):
        raise UserError(
            f"config.optimizer.schedule.boundaries is {boundaries}; it must be steps in "
            "ascending order, such as 32000,48000"
        )
    if config.schedule.name == "step" and not boundaries:
        raise UserError(
            "config.optimizer.schedule.boundaries is empty; the schedule 'step' needs steps, such "
            "as 32000,48000"
        )
    for section, built_in in ((config, OPTIMIZERS), (config.schedule, SCHEDULES)):
        if section.kwargs and section.name in built_in:
            place = "optimizer" if section is config else "optimizer.schedule"
            raise UserError(
                f"config.{place}.kwargs has {', '.join(section.kwargs)}, but {section.name!r} "
                f"takes no kwargs: its settings are those of config.{place}"
            )
    wanted = set(group(""))
    for name, settings in config.groups.items():
        if not isinstance(settings, ConfigDict) or set(settings) != wanted:
            raise UserError(
                f"config.optimizer.groups.{name} must be jaxconv.config.group(pattern, ...) with "
                f"{', '.join(sorted(wanted))}"
            )
        for key, example in group("conv").items():
            check_type(f"config.optimizer.groups.{name}.{key}", settings[key], example)


def _check_augment(config: AnyConfig, given: dict[str, Any]) -> None:
    for key, most in PAIRS.items():
        pair = given[f"augment.{key}"]
        off = not pair and key in MAY_BE_EMPTY
        if not off and not (len(pair) == 2 and 0 < pair[0] <= pair[1] <= most):
            raise UserError(
                f"config.augment.{key} is {pair}; it must be two numbers in ascending order, "
                f"more than 0 and at most {most}"
            )
    for key, most in AUGMENT_RANGES.items():
        if not 0 <= given[f"augment.{key}"] <= most:
            raise UserError(
                f"config.augment.{key} is {given[f'augment.{key}']}; it must be between 0 and "
                f"{most}"
            )
    for alternatives in ALTERNATIVES:
        on = [key for key in alternatives if given[f"augment.{key}"]]
        if len(on) > 1:
            raise UserError(f"config.augment has both {on[0]} and {on[1]}; set only one of them")
    if not all(isinstance(side, int) for side in config.augment.scale_jitter):
        raise UserError(
            f"config.augment.scale_jitter is {config.augment.scale_jitter}; it must be whole "
            "numbers, such as 256,512"
        )
    if config.batch_size % config.augment.repeats:
        raise UserError(
            f"config.batch_size is {config.batch_size}; it must be divisible by "
            f"config.augment.repeats, {config.augment.repeats}"
        )
