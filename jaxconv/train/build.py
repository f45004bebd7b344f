"""From a config to what a run is made of: network, optimizer, schedule, and the functions of its
steps.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from jaxconv import moved
from jaxconv.config import check_type, default_config, flatten
from jaxconv.data.augment import make_augment, make_preprocess, normalise
from jaxconv.data.loading import take
from jaxconv.errors import UserError, in_words
from jaxconv.models import create_model, model_arguments
from jaxconv.own import is_own, tried
from jaxconv.program import kept_for_gradient
from jaxconv.tasks.classification.losses import binary_cross_entropy, cross_entropy
from jaxconv.train.ensemble import Members, members_of, over_members, with_place
from jaxconv.train.optim import NOT_SWEPT, make_optimizer, make_schedule
from jaxconv.train.state import TrainState, create_state
from jaxconv.train.step import (
    METRICS,
    Batch,
    Metrics,
    make_eval_step,
    make_train_step,
    rematerialised,
)


@dataclasses.dataclass(frozen=True)
class BuiltRun:
    """What a config and the shape of its data determine.

    Attributes:
      classes: that the network tells apart.
      total_steps: length of the training.
      steps_per_epoch: steps between two passes, rounded, at least 1.
      members: of an ensemble; None for one network. Of several, states, keys, metrics and, where
        each has its own, batches have their axis in front.
      kept: images of a step -> bytes that the network keeps for the way back.
      init: key -> the state before the first step; pure.
      abstract: shapes and dtypes of that state.
      train_step: (state, data, batch, key) -> (state, metrics); the batch has `position`, and
        `index` into the resident data or `image` and `label`; the metrics are one vector of
        `metric_names`, which costs the host less than one array each.
      metric_names: of the vector's entries.
      eval_step: (state, data, batch) -> sums; the batch has `mask`, and `index` or `image` and
        `label`.
    """

    classes: int
    total_steps: int
    steps_per_epoch: int
    members: Members | None
    kept: Callable[[int], int]
    init: Callable[[jax.Array], TrainState]
    abstract: TrainState
    train_step: Callable[[TrainState, Any, Batch, jax.Array], tuple[TrainState, jax.Array]]
    metric_names: tuple[str, ...]
    eval_step: Callable[[TrainState, Any, Batch], Metrics]


def total_steps(config: Any, examples: int) -> int:
    """Length of the training that `config.steps` or `config.epochs` asks for, in steps; `examples`
    are those of the training split.
    """
    return config.steps or max(1, round(config.epochs * examples / config.batch_size))


def build(
    config: Any,
    description: dict[str, Any],
    examples: int,
    axis_name: str | None,
    form: str = "unroll",
) -> BuiltRun:
    """Build everything, allocating nothing.

    Args:
      config: the whole config.
      description: of the data, see `interface.describe`.
      examples: of the training split.
      axis_name: under `pmap`, the axis of the devices.
      form: of an ensemble, see train/ensemble.py.

    Raises:
      UserError: the network is not known, lacks an argument, or cannot take the images; the message
        names the layer.
    """
    config = with_place(config)
    shape, num_classes = tuple(description["image_shape"]), len(description["class_names"])
    model = build_model(config.model, num_classes, axis_name)
    steps = total_steps(config, examples)
    augment, preprocess = make_transforms(config, description, axis_name)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = _variables(model, config.model.name, images)
    if config.data.eval_image_size and description["kind"] == "image":
        _check_other_size(model, variables, config.data.eval_image_size, shape)
    optimizer = make_optimizer(config.optimizer, variables["params"])

    def train_step(
        swept: Mapping[str, jax.Array],
    ) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
        return make_train_step(
            model,
            make_optimizer(config.optimizer, variables["params"], swept),
            make_schedule(config.optimizer, steps, swept),
            make_loss(config, num_classes, swept),
            augment,
            axis_name,
            config.ema.decay,
            config.accumulate,
            config.model.remat,
        )

    train_step(NOT_SWEPT)  # raises here what cannot be used
    members = members_of(config)

    def init(key: jax.Array) -> TrainState:
        zeros = jnp.zeros(images.shape, images.dtype)
        return create_state(
            model,
            optimizer,
            key,
            zeros,
            ema=config.ema.decay > 0,
            loss_scale=config.model.dtype == "float16",
        )

    def kept(count: int) -> int:
        alone = build_model(config.model, num_classes)  # outside of any axis
        apply = rematerialised(alone) if config.model.remat else alone.apply
        batch = jax.ShapeDtypeStruct((count, *shape), jnp.float32)
        return kept_for_gradient(apply, variables, batch, train=True) * (
            len(members.names) if members else 1
        )

    def train_on_indices(
        state: TrainState,
        data: Any,
        batch: Batch,
        key: jax.Array,
        swept: Mapping[str, jax.Array] = NOT_SWEPT,
    ) -> tuple[TrainState, jax.Array]:
        state, metrics = train_step(swept)(state, take(data, batch), key)
        return state, jnp.stack([metrics[name] for name in METRICS])

    keys = jax.eval_shape(jax.random.key, 0)
    if members:
        init, keys = (
            members.init(init),
            jax.eval_shape(jax.vmap(jax.random.key), np.array(members.seeds, np.uint32)),
        )
        of_all = over_members(
            train_on_indices, form, (0, None, 0 if members.own_batches else None, 0, 0)
        )
    return BuiltRun(
        classes=num_classes,
        total_steps=steps,
        steps_per_epoch=max(1, round(examples / config.batch_size)),
        members=members,
        kept=kept,
        init=init,
        abstract=jax.eval_shape(init, keys),
        train_step=(lambda *arguments: of_all(*arguments, members.values()))
        if members
        else train_on_indices,
        metric_names=METRICS,
        eval_step=build_eval_step(config, model, preprocess, num_classes, axis_name, form),
    )


def build_eval_step(
    config: Any,
    model: Any,
    preprocess: Callable[[Batch], Batch],
    num_classes: int,
    axis_name: str | None,
    form: str = "unroll",
    apply: Callable[[Any, jax.Array], jax.Array] | None = None,
    each: bool = False,
) -> Callable[[TrainState, Any, Batch], Any]:
    """(state, data, batch) -> what `make_eval_step` makes of the state and of the batch, whose
    examples `data` may hold.

    Args:
      config: the whole config.
      model: see `build_model`.
      preprocess: see `make_transforms`.
      num_classes: that the model tells apart.
      axis_name, form: as in `build`.
      apply, each: as in `make_eval_step`.
    """
    over = (
        functools.partial(over_members, form=form, axes=(0, None)) if members_of(config) else None
    )
    metrics = own_metrics(config.eval.metrics, num_classes)
    step = make_eval_step(model, cross_entropy, preprocess, axis_name, over, metrics, apply, each)

    def eval_on_indices(state: TrainState, data: Any, batch: Batch) -> Any:
        return step(state, take(data, batch))

    return eval_on_indices


def _variables(model: Any, name: str, images: jax.ShapeDtypeStruct) -> Any:
    """Shapes of the network's variables; raises UserError where it cannot take such images."""
    try:
        return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(
            f"{name} cannot take images of {'x'.join(map(str, images.shape[1:]))}: "
            f"{' '.join(str(error).split())}"
        ) from error
    except Exception as error:  # a person's own network may raise anything
        if not is_own(name):
            raise
        raise UserError(f"config.model.name is {name!r}, which fails: {in_words(error)}") from error


def _check_other_size(model: Any, variables: Any, size: int, shape: tuple[int, ...]) -> None:
    """Raise UserError unless the network takes images of `size` pixels each way too."""
    images = jax.ShapeDtypeStruct((1, size, size, shape[-1]), jnp.float32)
    try:
        jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    except (ValueError, TypeError, ArithmeticError, flax.errors.FlaxError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"config.data.eval_image_size is {size}: a network for {'x'.join(map(str, shape))} "
            f"cannot take it: {why}"
        ) from error


def make_transforms(
    config: Any, description: dict[str, Any], axis_name: str | None = None
) -> tuple[Callable[[jax.Array, Batch], Batch], Callable[[Batch], Batch]]:
    """What the device does with a batch before the network: (key, batch) -> batch while training,
    batch -> batch while evaluating.

    Images are augmented and normalised, signals normalised, the codes of texts made one-hot.

    Raises:
      UserError: a setting does not fit the shape or the kind of the examples.
    """
    shape, kind = tuple(description["image_shape"]), description["kind"]
    if kind != "text":
        for name in ("mean", "std"):
            if len(config.data[name]) not in (1, shape[-1]):
                raise UserError(
                    f"config.data.{name} has {len(config.data[name])} numbers; the images have "
                    f"{shape[-1]} channels"
                )
    if kind == "image":
        _check_against_images(config.augment, shape)
        if config.augment.own:
            _try_augmentation(config.augment.own, shape)
        return make_augment(
            config, len(description["class_names"]), axis_name, description["cropped"]
        ), make_preprocess(config)
    defaults = flatten(default_config().augment)
    for key, value in flatten(config.augment).items():
        if value != defaults[key]:
            raise UserError(
                f"config.augment.{key} is {value}; it is for images, and {config.data.source} "
                f"holds {kind}s"
            )

    def preprocess(batch: Batch) -> Batch:
        if kind == "text":
            return batch | {"image": jax.nn.one_hot(batch["image"], shape[-1])}
        return normalise(batch, config.data.mean, config.data.std)

    return (lambda key, batch: preprocess(batch)), preprocess


def _try_augmentation(name: str, shape: tuple[int, ...]) -> None:
    numbers, images = (
        jax.ShapeDtypeStruct((2,), jnp.int32),
        jax.ShapeDtypeStruct((2, *shape), jnp.float32),
    )
    batch = {"image": images, "label": numbers, "position": numbers}
    tried(
        name,
        "config.augment.own",
        images.shape,
        jax.eval_shape(jax.random.key, 0),
        batch,
        of=lambda batch: batch["image"],
    )


def _check_against_images(augment: Any, shape: tuple[int, ...]) -> None:
    """Raise UserError for settings of `config.augment` that images of this shape cannot have."""
    channels = shape[-1]
    if augment.pad_crop >= min(shape[:2]):
        raise UserError(
            f"config.augment.pad_crop is {augment.pad_crop}; the images have {shape[0]}x{shape[1]} "
            "pixels"
        )
    if augment.scale_jitter and augment.scale_jitter[0] < min(shape[:2]):
        raise UserError(
            f"config.augment.scale_jitter is {augment.scale_jitter}; it cannot begin below the "
            f"images' {min(shape[:2])} pixels"
        )
    colours = {"pca_colour": augment.pca_colour, "colour_jitter.hue": augment.colour_jitter.hue}
    of_either = {"randaugment.layers": augment.randaugment.layers, "trivial": augment.trivial}
    of_either |= {
        f"colour_jitter.{name}": augment.colour_jitter[name] for name in ("contrast", "saturation")
    }
    for settings, wanted, words in ((colours, (3,), "3"), (of_either, (1, 3), "1 or 3")):
        for name, value in settings.items():
            if value and channels not in wanted:
                raise UserError(
                    f"config.augment.{name} is {value}, and needs {words} channels; the images "
                    f"have {channels}"
                )


def _some_logits(num_classes: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of logits and labels to try a person's own function on: as many examples that they are
    not taken for classes.
    """
    count = num_classes + 1
    return jax.ShapeDtypeStruct((count, num_classes), jnp.float32), jax.ShapeDtypeStruct(
        (count,), jnp.int32
    )


def own_metrics(
    names: str, num_classes: int
) -> dict[str, Callable[[jax.Array, jax.Array], jax.Array]]:
    """The metrics of `config.eval.metrics` by their short names."""
    logits, labels = _some_logits(num_classes)
    each = {name.replace(":", ".").rpartition(".")[2]: name for name in names.split()}
    return {
        short: tried(name, "config.eval.metrics", labels.shape, logits, labels)
        for short, name in each.items()
    }


def make_loss(
    config: Any, num_classes: int, swept: Mapping[str, jax.Array] = NOT_SWEPT
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss of training that `config.loss` asks for; evaluation measures the softmax cross
    entropy, so that all runs compare.

    What `swept` holds by the name of a setting takes its place, and may be traced.

    Raises:
      UserError: one's own cannot be used.
    """
    loss, label_smoothing = config.loss, swept.get("label_smoothing", config.loss.label_smoothing)
    if is_own(loss.name):
        logits, labels = _some_logits(num_classes)
        mixed = config.augment.mixup or config.augment.cutmix
        return tried(
            loss.name, "config.loss.name", labels.shape, logits, logits if mixed else labels
        )
    if loss.name == "binary":
        return functools.partial(
            binary_cross_entropy, label_smoothing=label_smoothing, threshold=loss.threshold
        )
    return functools.partial(cross_entropy, label_smoothing=label_smoothing)


def build_model(config: Any, num_classes: int, axis_name: str | None = None) -> Any:
    """The network that `config` (the `model` part of a config) names; raises UserError for what it
    does not have.
    """
    kwargs = config.kwargs.to_dict()
    try:
        defaults = model_arguments(config.name)
        for key, value in kwargs.items():
            if key in defaults and defaults[key] is not None:
                if isinstance(defaults[key], tuple) and type(value) in (int, float):
                    value = kwargs[key] = (value,)
                check_type(f"config.model.kwargs.{key}", value, defaults[key])
        return create_model(
            config.name, num_classes, config.dtype, axis_name, config.norm_groups, **kwargs
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error
    except Exception as error:  # a person's own network may raise anything
        if not is_own(config.name):
            raise
        raise UserError(
            f"config.model.name is {config.name!r}, which fails: {in_words(error)}"
        ) from error


__getattr__ = moved.names_of(__name__)
