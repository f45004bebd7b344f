"""The training step and the evaluation step, as pure functions.

They do not depend on devices, files, logging or the task.

step = make_train_step(model, optax.sgd(0.1))
batch = {"image": images, "label": labels, "position": jnp.arange(len(labels))}
state, metrics = jax.jit(step)(state, batch, jax.random.key(0))

On a CPU, `jax.jit(step, compiler_options=jaxconv.compiler_options())` needs less memory.

A training step composes small functions: `loss_of` the network, its `gradient`, `microbatched` over
parts of the batch, `averaged` over devices, and applied by `make_update`.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxconv.data.interface import RANDOM_KEY, example_keys
from jaxconv.models.network import AUXILIARY
from jaxconv.tasks.labels import LabelLoss, LabelMeasure, cross_entropy
from jaxconv.tasks.labels import objective as of_labels
from jaxconv.train.state import TrainState, named_key, update_ema

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# (outputs, batch) -> the loss [B], and other metrics by name, [B] each.
Objective = Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]]

# step -> learning rate.
Schedule = Callable[[jax.Array], jax.Array]

# Metrics of a training step in addition to those of its objective, float32 scalars.
METRICS = ("grad_norm", "learning_rate")
_KEPT = "between modules"

# In a batch of an evaluation: [M] float32, 0 for members of an ensemble that are left out of the
# combined prediction; without it, none is.
MEMBER_MASK = "member_mask"


class Gradient(NamedTuple):
    """The gradient of a batch, and what changed while computing it.

    Attributes:
      grads: gradients of the parameters.
      metrics: means over the batch.
      model_state: the network's other collections after the batch.
      loss_scale: the loss scale after the batch.
      finite: whether all gradients are finite; always True without a loss scale.
    """

    grads: Any
    metrics: Metrics
    model_state: Any
    loss_scale: Any
    finite: jax.Array


# (state, batch, dropout key) -> Gradient.
GradientFn = Callable[[TrainState, Batch, jax.Array], Gradient]


def make_train_step(
    model: Any,
    optimizer: optax.GradientTransformation,
    schedule: Schedule | None = None,
    loss: LabelLoss = cross_entropy,
    augment: Callable[[jax.Array, Batch], Batch] | None = None,
    axis_name: str | None = None,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    remat: bool = False,
    objective: Objective | None = None,
    learning_rate: Schedule | None = None,
    call: Callable[[Batch], Mapping[str, Any]] | None = None,
    frozen: Any = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Make a pure function (state, batch, key) -> (state, metrics).

    Args:
      model: a Linen module, called as `model.apply(variables, images, train=True)`. Each (outputs,
        weight) that it stores in the collection `auxiliary` adds its weighted loss to the
        objective; the metric `loss` is that of the main outputs.
      optimizer: any optax optimizer, such as `optax.sgd(0.1)`: `optax.apply_updates` adds its
        updates to the parameters. An optimizer that takes extra arguments gets `value`, the batch's
        loss, `grad`, and `learning_rate` if that argument is given here.
      schedule: deprecated. With it, `optimizer` gives a direction, from which the step subtracts
        its product with the learning rate; give a whole optimizer instead.
      loss: (logits [N, K], target) -> [N]; the target is the batch's `target` [N, K] if present,
        otherwise its `label` [N].
      augment: (key, batch) -> batch, applied before the network.
      axis_name: under `pmap`, the axis over which gradients and metrics are averaged.
      ema_decay: decay of the averages of the weights and BatchNorm's statistics, see
        `state.update_ema`; 0 disables them.
      accumulate: number of parts of the batch that are processed one after another, see
        `microbatched`.
      remat: store only what the network's top-level modules return, and recompute the rest in the
        backward pass (Chen et al. 2016, arXiv:1604.06174).
      objective: replaces `loss` for any other task: (outputs, batch) -> ([B] loss, {name: [B]});
        the named values are averaged into the metrics. The batch also has `RANDOM_KEY` [B].
      learning_rate: step -> learning rate. Its product with the plateau's scale is the extra
        argument `learning_rate` of the optimizer, which `optim.make_optimizer` needs, and the
        metric. Without it, the metric is the rate in the state of `optax.inject_hyperparams`.
      call: batch -> further arguments of the network by name; the batch as for `objective`.
      frozen: the tree of the parameters, with True for those that have no gradient, which spares
        the backward pass below the first of the others. None: there are none.

    The step's batch holds `image` [B, H, W, C], the targets of the objective (`label` [B] int32)
    and `position` [B] int32 in the global batch, which `augment` needs. The key is the run's; the
    step number and a name are folded into it for each use. Under `pmap` each device also folds its
    index into the dropout key. The metrics are `loss`, those of the objective, and `METRICS`: means
    over the batch, before the update; `learning_rate` only if it is known. If the state has a
    `loss_scale`, a step whose gradients are not finite changes only the scale and the step number,
    and has `grad_norm` 0.

    >>> import jaxconv, optax
    >>> model, optimizer = jaxconv.create_model("chain", 3, filters=(4,)), optax.sgd(0.1)
    >>> batch = {"image": jnp.ones((6, 8, 8, 1)), "label": jnp.arange(6) % 3}
    >>> state = jaxconv.create_state(model, optimizer, jax.random.key(0), batch["image"])
    >>> state, metrics = jax.jit(make_train_step(model, optimizer))(state, batch, jax.random.key(1))
    >>> int(state.step), sorted(metrics)
    (1, ['grad_norm', 'loss', 'top1'])
    """
    apply = rematerialised(model) if remat else model.apply
    apply = apply if frozen is None else partly_frozen(apply, frozen)
    compute = gradient(loss_of(apply, objective or of_labels(loss), call), axis_name)
    compute = averaged(microbatched(compute, accumulate), axis_name)
    if schedule is not None:
        warnings.warn(
            "make_train_step(schedule=) goes away in 0.2: give a whole optimizer, such as "
            "optax.sgd(schedule) or optax.chain(optimizer, optax.scale_by_learning_rate(schedule)),"
            " and learning_rate=schedule for the metric",
            DeprecationWarning,
            stacklevel=2,
        )
        optimizer, learning_rate = descending(optimizer), schedule
    update = make_update(optimizer, learning_rate, ema_decay)

    def keys_of_examples(key: jax.Array, batch: Batch) -> jax.Array:
        position = batch.get("position")
        if position is None:
            position = jnp.arange(len(batch["image"]))
            if axis_name is not None:
                position += lax.axis_index(axis_name) * len(position)
        return example_keys(key, position)

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        if not isinstance(state, TrainState):
            raise TypeError(
                f"the state is {type(state).__module__}.{type(state).__name__}; it must be what "
                "jaxconv.create_state(model, optimizer, key, images) returns"
            )
        if augment is not None:
            batch = augment(named_key(key, state.step, "augment"), batch)
        batch = {**batch, RANDOM_KEY: keys_of_examples(named_key(key, state.step, "task"), batch)}
        dropout = named_key(key, state.step, "dropout")
        if axis_name is not None:
            dropout = jax.random.fold_in(dropout, lax.axis_index(axis_name))
        return update(state, compute(state, batch, dropout))

    return step


def loss_of(
    apply: Callable,
    objective: Objective,
    call: Callable[[Batch], Mapping[str, Any]] | None = None,
) -> Callable:
    """Make a pure function of (params, model_state, batch, dropout key).

    It returns (objective, (metrics, model_state)). The objective is the mean loss plus the weighted
    mean losses of the auxiliary outputs; the metrics are means over the batch.
    """

    def total(params: Any, model_state: Any, batch: Batch, dropout: jax.Array) -> Any:
        variables, collections = {"params": params, **model_state}, [*model_state, AUXILIARY]
        settings = {"train": True, "rngs": {"dropout": dropout}, "mutable": collections}
        settings |= call(batch) if call else {}
        outputs, changed = apply(variables, batch["image"], **settings)
        losses, measured = objective(outputs, batch)
        mean_loss = sum_of_losses = jnp.mean(losses)
        for auxiliary, weight in changed.pop(AUXILIARY, {}).values():
            sum_of_losses += weight * jnp.mean(objective(auxiliary, batch)[0])
        metrics = {"loss": mean_loss, **jax.tree.map(jnp.mean, measured)}
        return sum_of_losses, (metrics, changed)

    return total


def partly_frozen(apply: Callable[..., Any], frozen: Any) -> Callable[..., Any]:
    """`apply` without gradients of the parameters for which the tree `frozen` has True."""

    def partly(variables: Any, x: jax.Array, **call: Any) -> Any:
        params = jax.tree.map(
            lambda leaf, still: lax.stop_gradient(leaf) if still else leaf,
            variables["params"],
            frozen,
        )
        return apply({**variables, "params": params}, x, **call)

    return partly


def gradient(loss: Callable, axis_name: str | None = None) -> GradientFn:
    """The gradient of `loss_of`; of the scaled loss if the state has a `loss_scale`."""

    def compute(state: TrainState, batch: Batch, dropout: jax.Array) -> Gradient:
        finite, scale = jnp.array(True), state.loss_scale
        arguments = (state.params, state.model_state, batch, dropout)
        if scale:
            differentiate = scale.value_and_grad(loss, has_aux=True, axis_name=axis_name)
            scale, finite, (_, aux), grads = differentiate(*arguments)
        else:
            (_, aux), grads = jax.value_and_grad(loss, has_aux=True)(*arguments)
        metrics, model_state = aux
        return Gradient(grads, metrics, model_state, scale, finite)

    return compute


def microbatched(compute: GradientFn, count: int) -> GradientFn:
    """The gradient of a batch in `count` equal parts, one after another, to save memory.

    The gradients are the mean over the parts, which equals that of the whole batch up to rounding.
    Each part has its own BatchNorm statistics and dropout. A loss scale is the same for all parts,
    and changes once: it shrinks if the gradients of any part are not finite.
    """
    if count == 1:
        return compute

    def compute_parts(state: TrainState, batch: Batch, dropout: jax.Array) -> Gradient:
        def add(carry: tuple[TrainState, Any], numbered: tuple[jax.Array, Batch]) -> Any:
            (state, sums), (number, part) = carry, numbered
            found = compute(state, part, jax.random.fold_in(dropout, number))
            state = state.replace(model_state=found.model_state)
            sums = jax.tree.map(jnp.add, sums, found.grads)
            return (state, sums), (found.metrics, found.finite, found.loss_scale)

        # A part takes every `count`-th example, so it is spread over the devices like the batch.
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), batch
        )
        first = state, jax.tree.map(jnp.zeros_like, state.params)
        (state, sums), (metrics, finite, scales) = lax.scan(
            add, first, (jnp.arange(count), parts), unroll=loops_unrolled()
        )
        grads, metrics = jax.tree.map(lambda x: x / count, sums), jax.tree.map(jnp.mean, metrics)
        scale = jax.tree.map(lambda x: x[jnp.argmin(finite)], scales)  # an infinite part's, if any
        return Gradient(grads, metrics, state.model_state, scale, jnp.all(finite))

    return compute_parts


def averaged(compute: GradientFn, axis_name: str | None) -> GradientFn:
    """Average the gradient, metrics and statistics over the devices of an axis, if there is one."""
    if axis_name is None:
        return compute

    def compute_mean(state: TrainState, batch: Batch, dropout: jax.Array) -> Gradient:
        # Under `shard_map` the gradients of values that are the same on all devices arrive summed
        # over them. As values of each device, they have the gradients of its part of the batch.
        own = lax.pcast((state.params, state.model_state), axis_name, to="varying")
        found = compute(state.replace(params=own[0], model_state=own[1]), batch, dropout)
        shared = found.grads, found.metrics, found.model_state
        grads, metrics, model_state = lax.pmean(shared, axis_name)
        return Gradient(grads, metrics, model_state, found.loss_scale, found.finite)

    return compute_mean


def descending(
    direction: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer whose updates are a direction times minus the learning rate.

    It takes the rate of each step as the extra argument `learning_rate`, which can be traced, and
    has the state of `direction`.
    """

    def update(
        grads: Any, state: Any, params: Any = None, *, learning_rate: jax.Array, **extra: Any
    ) -> tuple[Any, Any]:
        directions, state = direction.update(grads, state, params)
        return jax.tree.map(lambda d: -learning_rate * d, directions), state

    return with_extra_args(direction.init, update)


def with_extra_args(
    init: Callable[..., Any], update: Callable[..., tuple[Any, Any]]
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose `update` takes extra arguments."""
    # optax takes the type of the field from the base class, whose updates have none.
    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def make_update(
    optimizer: optax.GradientTransformation, learning_rate: Schedule | None, ema_decay: float
) -> Callable[[TrainState, Gradient], tuple[TrainState, Metrics]]:
    """Make a pure function (state, gradient) -> (next state, metrics); see `make_train_step`."""
    optimizer = optax.with_extra_args_support(optimizer)

    def update(state: TrainState, found: Gradient) -> tuple[TrainState, Metrics]:
        before, extra = state, {"value": found.metrics["loss"], "grad": found.grads}
        if learning_rate is not None:
            extra["learning_rate"] = learning_rate(state.step) * state.plateau.scale
        updates, opt_state = optimizer.update(found.grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        metrics = found.metrics | {"grad_norm": optax.tree.norm(found.grads)}
        rate = extra.get("learning_rate", _injected_rate(opt_state))
        if rate is not None:
            metrics["learning_rate"] = rate
        if ema_decay:
            variables = {"params": params, **found.model_state}
            state = state.replace(ema=update_ema(state.ema, variables, state.step, ema_decay))
        state = state.replace(
            step=state.step + 1,
            params=params,
            model_state=found.model_state,
            opt_state=opt_state,
            loss_scale=found.loss_scale,
        )
        if state.loss_scale:
            kept = before.replace(step=state.step, loss_scale=state.loss_scale)
            state = jax.tree.map(lambda new, old: jnp.where(found.finite, new, old), state, kept)
            metrics["grad_norm"] = jnp.where(found.finite, metrics["grad_norm"], 0)
        return state, metrics

    return update


def _injected_rate(opt_state: Any) -> jax.Array | None:
    """The learning rate in the state of `optax.inject_hyperparams`; None unless there is one."""
    injected = lambda node: hasattr(node, "hyperparams")  # noqa: E731
    nodes = jax.tree.leaves(opt_state, is_leaf=injected)
    found = [node.hyperparams.get("learning_rate") for node in nodes if injected(node)]
    return jnp.asarray(found[0], jnp.float32) if len(found) == 1 and found[0] is not None else None


def loops_unrolled() -> bool:
    """Whether to unroll loops over networks: convolutions in them are 13 times slower on a CPU."""
    return jax.default_backend() == "cpu"


def several_steps(step: Callable, count: int) -> Callable:
    """`count` steps as one call: (state, data, batches, key) -> (state, metrics).

    The batches and the metrics have a leading axis of steps.
    """

    def steps(
        state: TrainState, data: Any, batches: Batch, key: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        return lax.scan(
            lambda state, batch: step(state, data, batch, key),
            state,
            batches,
            length=count,
            unroll=loops_unrolled(),
        )

    return steps


def rematerialised(model: nn.Module) -> Callable[..., Any]:
    """`model.apply` that stores only the outputs of top-level modules for the backward pass."""

    def mark(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = next_fun(*args, **kwargs)
        outermost = len(context.module.path) == 1 and context.method_name == "__call__"
        return jax.tree.map(lambda x: checkpoint_name(x, _KEPT), output) if outermost else output

    def apply(variables: Any, x: jax.Array, **call: Any) -> Any:
        rngs = call.pop("rngs", {})

        def forward(variables: Any, x: jax.Array, rngs: Any) -> Any:
            with nn.intercept_methods(mark):
                return model.apply(variables, x, rngs=rngs, **call)

        policy = jax.checkpoint_policies.save_only_these_names(_KEPT)
        return jax.checkpoint(forward, policy=policy)(variables, x, rngs)

    return apply


def make_eval_step(
    model: Any,
    loss: LabelLoss = cross_entropy,
    preprocess: Callable[[Batch], Batch] | None = None,
    axis_name: str | None = None,
    over: Callable[[Callable], Callable] | None = None,
    metrics: Mapping[str, LabelLoss] | None = None,
    apply: Callable[[Any, jax.Array], Any] | None = None,
    each: bool = False,
    measure: Any = None,
    call: Callable[[Batch], Mapping[str, Any]] | None = None,
) -> Callable[[Any, Batch], Any]:
    """Make a pure function (state, batch) -> sums over the batch's examples.

    The state is a `TrainState`, whose averaged weights are used if it has them, or the variables of
    the network alone. The sums are `examples` and those of `measure`. The batch holds `image`, the
    targets, and, if it has padding examples, `mask` [B] float32, 0 for these.

    Args:
      model, axis_name: as in `make_train_step`.
      loss: (logits [N, K], label [N]) -> [N].
      preprocess: batch -> batch, applied before the network.
      over: turns the function (variables, images) -> outputs of one network into that of all
        members of an ensemble. The sums then have a leading axis of members, and there are
        `ensemble_loss` and so on for the outputs that `measure.combine` combines; see
        `MEMBER_MASK`.
      metrics: more metrics by name, (logits [N, K], label [N]) -> [N].
      apply: (variables, images) -> outputs; by default `model.apply`.
      each: return the sums and what `measure.keep` keeps of each example, [B, ...], with its `mask`
        and, if the batch has it, `index`. For an ensemble the values are [B, members, ...], and
        those of the combined outputs have the prefix `ensemble_`.
      measure: replaces `loss` and `metrics`: a task, or an object with its methods `sums`, `keep`
        and `combine`.
      call: batch -> further arguments of the network by name; not with `apply` or `over`.
    """
    measure = measure or LabelMeasure(loss, metrics)
    add_up = make_sums(measure, ensemble=over is not None)

    def outputs_of(variables: Any, images: jax.Array, **given: Any) -> Any:
        return model.apply(variables, images, train=False, **given)

    def step(state: Any, batch: Batch) -> Any:
        variables = variables_of(state)
        if "mask" not in batch:
            batch = batch | {"mask": jnp.ones(len(batch["image"]))}
        if preprocess is not None:
            batch = preprocess(batch)
        taking = {MEMBER_MASK: batch[MEMBER_MASK]} if MEMBER_MASK in batch else {}
        batch = {name: value for name, value in batch.items() if name != MEMBER_MASK}
        given = call(batch) if call is not None and apply is None and over is None else {}
        function = apply or outputs_of
        function = function if over is None else over(function)
        outputs = function(variables, batch["image"], **given)
        sums = add_up(outputs, batch | taking)
        sums = sums if axis_name is None else lax.psum(sums, axis_name)
        if not each:
            return sums
        # The examples' axis comes first, because it is split over the devices.
        if over is None:
            kept = measure.keep(outputs, batch)
        else:
            kept = jax.vmap(measure.keep, (0, None), 1)(outputs, batch)
            joint = measure.keep(measure.combine(_of_those(outputs, taking)), batch)
            kept |= {f"ensemble_{name}": value for name, value in joint.items()}
        return sums, kept | {name: batch[name] for name in ("mask", "index") if name in batch}

    return step


def variables_of(state: Any) -> Any:
    """The variables of a `TrainState`; variables as a mapping are returned as they are.

    Raises:
      TypeError: it is neither.
    """
    if isinstance(state, Mapping) and "params" in state:
        return state
    if not isinstance(state, Mapping) and hasattr(state, "variables"):
        return state.variables
    keys = f"a dict with {', '.join(state)}" if isinstance(state, Mapping) else ""
    raise TypeError(
        f"the state is {keys or type(state).__name__}; it must be jaxconv's TrainState, or the "
        'network\'s variables {"params": ..., "batch_stats": ...}'
    )


def make_sums(measure: Any, ensemble: bool = False) -> Callable[[Any, Batch], Metrics]:
    """Make a pure function (outputs, batch) -> sums: `examples` and those of `measure`.

    The batch holds `mask` [N], and for an ensemble possibly `MEMBER_MASK`.

    Args:
      measure: as in `make_eval_step`.
      ensemble: the outputs and the sums have a leading axis [M] of M members, and there are
        `ensemble_loss` and so on for the combined prediction.
    """

    def add_up(outputs: Any, batch: Batch) -> Metrics:
        if ensemble:
            taking = batch
            batch = {name: value for name, value in batch.items() if name != MEMBER_MASK}
            sums = jax.vmap(measure.sums, (0, None))(outputs, batch)
            joint = measure.sums(measure.combine(_of_those(outputs, taking)), batch)
            sums |= {f"ensemble_{name}": value for name, value in joint.items()}
        else:
            sums = measure.sums(outputs, batch)
        return sums | {"examples": jnp.sum(batch["mask"])}

    return add_up


def _of_those(outputs: Any, batch: Batch) -> Any:
    """The outputs [M, B, ...] of an ensemble, NaN for members that are masked out of the batch."""
    if MEMBER_MASK not in batch:
        return outputs
    taking = batch[MEMBER_MASK] > 0

    def masked(x: jax.Array) -> jax.Array:
        mask = taking.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(mask, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.inexact) else x

    return jax.tree.map(masked, outputs)
