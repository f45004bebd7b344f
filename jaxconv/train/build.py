"""Builds the parts of a run from its config: network, optimizer, schedule and step functions."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from jaxconv import moved
from jaxconv.data.loading import take
from jaxconv.errors import UserError, in_words
from jaxconv.own import is_own, wrong
from jaxconv.program import kept_for_gradient
from jaxconv.tasks import Task, open_task
from jaxconv.train import transforms
from jaxconv.train.distill import TEACHER, Teacher, asking_for, distilled
from jaxconv.train.ensemble import Members, members_of, over_members, with_place
from jaxconv.train.optim import NOT_SWEPT, frozen_parameters, make_optimizer, make_schedule
from jaxconv.train.state import TrainState, create_state, schedule_free_states
from jaxconv.train.step import (
    MEMBER_MASK,
    METRICS,
    Batch,
    make_eval_step,
    make_train_step,
    rematerialised,
)


@dataclasses.dataclass(frozen=True)
class BuiltRun:
    """What a config and the shape of its data determine.

    Attributes:
      task: the task of the run.
      description: of its data.
      model: the Linen module.
      total_steps: length of the training.
      steps_per_epoch: steps per pass over the examples, rounded, at least 1.
      members: the members of an ensemble; None for one network. For an ensemble, states, keys,
        metrics and, if each member has its own, batches have a leading axis of members.
      kept: images per step -> bytes that the network stores for the backward pass.
      init: key -> the state before the first step; pure.
      abstract: shapes and dtypes of that state.
      train_step: (state, data, batch, key) -> (state, metrics); the batch has `position`, and
        `index` into the resident data or `image` and the targets; the metrics are one vector,
        which costs the host less than an array for each.
      metric_names: names of the vector's entries.
      eval_step: (state, data, batch) -> sums, and if `task.keeps`, what is kept of each example;
        the batch has `mask`, and `index` or `image` and the targets.
      teacher: of a distillation; None without one. The data then have its variables as `TEACHER`.
    """

    task: Task
    description: dict[str, Any]
    model: Any
    total_steps: int
    steps_per_epoch: int
    members: Members | None
    kept: Callable[[int], int]
    init: Callable[[jax.Array], TrainState]
    abstract: TrainState
    train_step: Callable[[TrainState, Any, Batch, jax.Array], tuple[TrainState, jax.Array]]
    metric_names: tuple[str, ...]
    eval_step: Callable[[TrainState, Any, Batch], Any]
    teacher: Teacher | None = None


@dataclasses.dataclass(frozen=True)
class BuiltNetwork:
    """The network of a run and its state, which is all that reading a checkpoint needs.

    Attributes:
      task: the task of the run.
      model: the Linen module.
      variables: shapes of its variables.
      optimizer: the optimizer, whose state is also saved.
      members: the members of an ensemble; None for one network.
      init: key, or keys of the members -> the state before the first step; pure.
      abstract: shapes and dtypes of that state.
    """

    task: Task
    model: Any
    variables: Any
    optimizer: Any
    members: Members | None
    init: Callable[[jax.Array], TrainState]
    abstract: TrainState


def total_steps(config: Any, examples: int) -> int:
    """Length of the training in steps, from `config.steps` or `config.epochs`.

    `examples` is the size of the training split.
    """
    return config.steps or max(1, round(config.epochs * examples / config.batch_size))


def build_network(
    config: Any, description: dict[str, Any], axis_name: str | None = None
) -> BuiltNetwork:
    """Build the network and its state alone, without loss, augmentation or allocation.

    Args:
      config: the whole config.
      description: of the data, see `interface.describe`.
      axis_name: under `pmap`, the axis of the devices.

    Raises:
      UserError: the network is unknown, lacks an argument, or cannot take the images; the message
        names the layer.
    """
    config = with_place(config)
    task, shape = open_task(config, description), tuple(description["image_shape"])
    task.axis_name, model = axis_name, task.model(axis_name)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = _variables(model, config.model.name, images)
    if "words" in description:
        _check_embeds(model, variables, config.model.name, input_of(description, 1))
    if config.data.eval_image_size and description["kind"] == "image":
        _check_other_size(model, variables, config.data.eval_image_size, shape)
    optimizer = make_optimizer(config.optimizer, variables["params"])

    def init(key: jax.Array) -> TrainState:
        zeros, scaled = jnp.zeros(images.shape, images.dtype), config.model.dtype == "float16"
        averages = config.ema.decay > 0
        return create_state(model, optimizer, key, zeros, ema=averages, loss_scale=scaled)

    if config.ema.decay and schedule_free_states(jax.eval_shape(init, jax.random.key(0)).opt_state):
        raise UserError(
            f"config.ema.decay is {config.ema.decay}, but {config.optimizer.name} averages the "
            "weights itself; leave it at 0"
        )
    members, keys = members_of(config), jax.eval_shape(jax.random.key, 0)
    init_all = members.init(init) if members else init
    if members:
        keys = jax.eval_shape(jax.vmap(jax.random.key), np.array(members.seeds, np.uint32))
    return BuiltNetwork(
        task, model, variables, optimizer, members, init_all, jax.eval_shape(init_all, keys)
    )


def build(
    config: Any,
    description: dict[str, Any],
    examples: int,
    axis_name: str | None,
    form: str = "unroll",
    teacher: Teacher | None = None,
) -> BuiltRun:
    """Build everything that training needs, without allocating memory.

    Args:
      config: the whole config.
      description: of the data, see `interface.describe`.
      examples: size of the training split.
      axis_name: under `pmap`, the axis of the devices.
      form: how an ensemble is computed, see train/ensemble.py.
      teacher: of a distillation, see train/distill.py.

    Raises:
      UserError: as in `build_network`; or the data or the loss does not fit the task.
    """
    network = build_network(config, description, axis_name)
    config, task, steps = with_place(config), network.task, total_steps(config, examples)
    task.check()
    make_step = step_maker(config, description, network, steps, axis_name, teacher)
    # These raise here if a setting cannot be used, or not be traced.
    make_step(NOT_SWEPT)
    for name in network.members.swept if network.members else ():
        number = jax.ShapeDtypeStruct((), jnp.float32)
        jax.eval_shape(lambda value, name=name: bool(make_step({name: value})), number)
    names = ("loss", *task.logged, *METRICS)

    def train_on_indices(
        state: TrainState,
        data: Any,
        batch: Batch,
        key: jax.Array,
        swept: Mapping[str, jax.Array] = NOT_SWEPT,
    ) -> tuple[TrainState, jax.Array]:
        examples = {name: value for name, value in data.items() if name != TEACHER}
        step = make_step(swept, data.get(TEACHER))
        state, metrics = step(state, take(examples, batch), key)
        return state, jnp.stack([metrics[name] for name in names])

    train_step, members = train_on_indices, network.members
    if members:
        axes = (0, None, 0 if members.own_batches else None, 0, 0)
        of_all = over_members(train_on_indices, form, axes)
        train_step = lambda *arguments: of_all(*arguments, members.values())  # noqa: E731
    return BuiltRun(
        task=task,
        description=description,
        model=network.model,
        total_steps=steps,
        steps_per_epoch=max(1, round(examples / config.batch_size)),
        members=members,
        kept=functools.partial(kept_bytes, config, description, network),
        init=network.init,
        abstract=network.abstract,
        train_step=train_step,
        metric_names=names,
        eval_step=build_eval_step(config, description, network, axis_name, form, each=task.keeps),
        teacher=teacher,
    )


def input_of(description: Mapping[str, Any], count: int) -> jax.ShapeDtypeStruct:
    """What the network gets of `count` examples: [N, *spatial, C] float32, or the codes of words
    [N, L] int32. It is initialised with one-hot codes [N, L, V], which tell it V.
    """
    shape = tuple(description["image_shape"])
    if "words" in description:
        return jax.ShapeDtypeStruct((count, *shape[:-1]), jnp.int32)
    return jax.ShapeDtypeStruct((count, *shape), jnp.float32)


def step_maker(
    config: Any,
    description: dict[str, Any],
    network: BuiltNetwork,
    steps: int,
    axis_name: Any,
    teacher: Teacher | None = None,
) -> Callable[..., Callable]:
    """A function from swept settings and the teacher's variables, both traced, to the step."""
    augment, _ = transforms.make_transforms(config, description, axis_name, network.task)
    task, params = network.task, network.variables["params"]
    frozen = frozen_parameters(config.optimizer, params)
    frozen = frozen if any(jax.tree.leaves(frozen)) else None

    def make_step(swept: Mapping[str, jax.Array], taught_by: Any = None) -> Callable:
        loss = task.make_loss(swept)

        def objective(outputs: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            return loss(outputs, batch), task.training_values(outputs, batch)

        def augment_and_teach(key: jax.Array, batch: Batch) -> Batch:
            batch = augment(key, batch)
            return teacher.teach(taught_by, batch) if teacher else batch

        learns = teacher is not None
        return make_train_step(
            network.model,
            make_optimizer(config.optimizer, params, swept),
            learning_rate=make_schedule(config.optimizer, steps, swept),
            augment=augment_and_teach,
            axis_name=axis_name,
            ema_decay=config.ema.decay,
            accumulate=config.accumulate,
            remat=config.model.remat,
            objective=distilled(objective, task, config.distill) if learns else objective,
            call=asking_for(task.call, config.distill.features) if learns else task.call,
            frozen=frozen,
        )

    return make_step


def kept_bytes(config: Any, description: dict[str, Any], network: BuiltNetwork, count: int) -> int:
    """Bytes that the network stores for the backward pass of `count` images, for all members."""
    alone = network.task.model()  # without a device axis
    apply = rematerialised(alone) if config.model.remat else alone.apply
    batch = input_of(description, count)
    members = len(network.members.names) if network.members else 1
    return kept_for_gradient(apply, network.variables, batch, train=True) * members


def build_eval_step(
    config: Any,
    description: dict[str, Any],
    network: BuiltNetwork,
    axis_name: str | None,
    form: str = "unroll",
    apply: Callable[[Any, jax.Array], Any] | None = None,
    each: bool = False,
) -> Callable[[TrainState, Any, Batch], Any]:
    """Make (state, data, batch) -> the result of `make_eval_step`.

    `data` may hold the examples, and for an ensemble `MEMBER_MASK`.

    Args:
      config: the whole config.
      description: of the data, see `interface.describe`.
      network: see `build_network`.
      axis_name, form: as in `build`.
      apply, each: as in `make_eval_step`.
    """
    over = None
    if network.members:
        over = functools.partial(over_members, form=form, axes=(0, None))
    preprocess = transforms.make_preprocessing(config, description)
    step = make_eval_step(
        network.model,
        preprocess=preprocess,
        axis_name=axis_name,
        over=over,
        apply=apply,
        each=each,
        measure=network.task,
        call=network.task.eval_call,
    )

    def eval_on_indices(state: TrainState, data: Any, batch: Batch) -> Any:
        examples = {name: value for name, value in data.items() if name != MEMBER_MASK}
        taking = {MEMBER_MASK: data[MEMBER_MASK]} if MEMBER_MASK in data else {}
        return step(state, take(examples, batch) | taking)

    return eval_on_indices


def _variables(model: Any, name: str, images: jax.ShapeDtypeStruct) -> Any:
    """Shapes of the network's variables; raises UserError if it cannot take such images."""
    try:
        return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(
            f"{name} cannot take images of {'x'.join(map(str, images.shape[1:]))}: "
            f"{' '.join(str(error).split())}"
        ) from error
    except Exception as error:  # a custom network may raise anything
        if not is_own(name):
            raise
        raise wrong(name, "config.model.name", f"fails: {in_words(error)}") from error


def _check_embeds(model: Any, variables: Any, name: str, codes: jax.ShapeDtypeStruct) -> None:
    """Raise UserError unless the network takes codes of words."""
    try:
        jax.eval_shape(functools.partial(model.apply, train=False), variables, codes)
    except Exception as error:  # a network may fail anywhere with what it is not made for
        raise UserError(
            f"config.data.text.words is set, and {name} cannot take codes of words "
            f"[N, {codes.shape[1]}] ({in_words(error)}); begin with embedN, such as "
            "--config.model.name='text:embed128 conv3-128 relu globalmaxpool fc'"
        ) from error


def _check_other_size(model: Any, variables: Any, size: int, shape: tuple[int, ...]) -> None:
    """Raise UserError unless the network also takes images of `size` x `size` pixels."""
    images = jax.ShapeDtypeStruct((1, size, size, shape[-1]), jnp.float32)
    try:
        jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    except (ValueError, TypeError, ArithmeticError, flax.errors.FlaxError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"config.data.eval_image_size is {size}: a network for {'x'.join(map(str, shape))} "
            f"cannot take it: {why}"
        ) from error


__getattr__ = moved.names_of(__name__)
