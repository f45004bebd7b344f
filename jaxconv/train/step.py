"""The training step and the evaluation step, as pure functions.

They do not depend on devices, files, logging or the task.

step = make_train_step(model, optimizer, schedule)
batch = {"image": images, "label": labels, "position": jnp.arange(len(labels))}
state, metrics = jax.jit(step)(state, batch, jax.random.key(0))

A training step composes small functions: `loss_of` the network, its `gradient`, `microbatched` over
parts of the batch, `averaged` over devices, and applied by `make_update`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxconv.models.network import AUXILIARY
from jaxconv.tasks.labels import LabelLoss, LabelMeasure, cross_entropy
from jaxconv.tasks.labels import objective as of_labels
from jaxconv.train.state import TrainState, named_key, update_ema

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# (outputs, batch) -> the loss [B], and other metrics by name, [B] each.
Objective = Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]]

# Metrics of every training step in addition to those of its objective, float32 scalars.
METRICS = ("grad_norm", "learning_rate")
_KEPT = "between modules"


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
    schedule: Callable[[jax.Array], jax.Array],
    loss: LabelLoss = cross_entropy,
    augment: Callable[[jax.Array, Batch], Batch] | None = None,
    axis_name: str | None = None,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    remat: bool = False,
    objective: Objective | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Make a pure function (state, batch, key) -> (state, metrics).

    Args:
      model: a Linen module, called as `model.apply(variables, images, train=True)`. Each (outputs,
        weight) that it stores in the collection `auxiliary` adds its weighted loss to the
        objective; the metric `loss` is that of the main outputs.
      optimizer: gives the direction of the update; the step multiplies it by the learning rate,
        which can therefore be traced.
      schedule: step -> learning rate.
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
        the named values are averaged into the metrics.

    The step's batch holds `image` [B, H, W, C], the targets of the objective (`label` [B] int32)
    and, for `augment`, `position` [B] int32 in the global batch. The key is the run's; the step
    number and a name are folded into it for each use. Under `pmap` each device also folds its index
    into the dropout key. The metrics are `loss`, those of the objective, and `METRICS`: means over
    the batch, before the update. If the state has a `loss_scale`, a step whose gradients are not
    finite changes only the scale and the step number, and has `grad_norm` 0.
    """
    apply = rematerialised(model) if remat else model.apply
    compute = gradient(loss_of(apply, objective or of_labels(loss)), axis_name)
    compute = averaged(microbatched(compute, accumulate), axis_name)
    update = make_update(optimizer, schedule, ema_decay)

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        if augment is not None:
            batch = augment(named_key(key, state.step, "augment"), batch)
        dropout = named_key(key, state.step, "dropout")
        if axis_name is not None:
            dropout = jax.random.fold_in(dropout, lax.axis_index(axis_name))
        return update(state, compute(state, batch, dropout))

    return step


def loss_of(apply: Callable, objective: Objective) -> Callable:
    """Make a pure function of (params, model_state, batch, dropout key).

    It returns (objective, (metrics, model_state)). The objective is the mean loss plus the weighted
    mean losses of the auxiliary outputs; the metrics are means over the batch.
    """

    def total(params: Any, model_state: Any, batch: Batch, dropout: jax.Array) -> Any:
        variables, collections = {"params": params, **model_state}, [*model_state, AUXILIARY]
        settings = {"train": True, "rngs": {"dropout": dropout}, "mutable": collections}
        outputs, changed = apply(variables, batch["image"], **settings)
        losses, measured = objective(outputs, batch)
        mean_loss = sum_of_losses = jnp.mean(losses)
        for auxiliary, weight in changed.pop(AUXILIARY, {}).values():
            sum_of_losses += weight * jnp.mean(objective(auxiliary, batch)[0])
        metrics = {"loss": mean_loss, **jax.tree.map(jnp.mean, measured)}
        return sum_of_losses, (metrics, changed)

    return total


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
        return Gradient(grads, *aux, scale, finite)

    return compute


def microbatched(compute: GradientFn, count: int) -> GradientFn:
    """The gradient of a batch in `count` equal parts, one after another, to save memory.

    The gradients are the mean over the parts, which equals that of the whole batch up to rounding.
    Each part has its own BatchNorm statistics and dropout.
    """
    if count == 1:
        return compute

    def compute_parts(state: TrainState, batch: Batch, dropout: jax.Array) -> Gradient:
        def add(carry: tuple[TrainState, Any], numbered: tuple[jax.Array, Batch]) -> Any:
            (state, sums), (number, part) = carry, numbered
            found = compute(state, part, jax.random.fold_in(dropout, number))
            state = state.replace(model_state=found.model_state, loss_scale=found.loss_scale)
            sums = jax.tree.map(jnp.add, sums, found.grads)
            return (state, sums), (found.metrics, found.finite)

        # A part takes every `count`-th example, so it is spread over the devices like the batch.
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), batch
        )
        first = state, jax.tree.map(jnp.zeros_like, state.params)
        (state, sums), (metrics, finite) = lax.scan(
            add, first, (jnp.arange(count), parts), unroll=loops_unrolled()
        )
        grads, metrics = jax.tree.map(lambda x: x / count, sums), jax.tree.map(jnp.mean, metrics)
        return Gradient(grads, metrics, state.model_state, state.loss_scale, jnp.all(finite))

    return compute_parts


def averaged(compute: GradientFn, axis_name: str | None) -> GradientFn:
    """Average the gradient, metrics and statistics over the devices of an axis, if there is one."""
    if axis_name is None:
        return compute

    def compute_mean(state: TrainState, batch: Batch, dropout: jax.Array) -> Gradient:
        found = compute(state, batch, dropout)
        shared = found.grads, found.metrics, found.model_state
        return Gradient(*lax.pmean(shared, axis_name), found.loss_scale, found.finite)

    return compute_mean


def make_update(
    optimizer: optax.GradientTransformation, schedule: Callable, ema_decay: float
) -> Callable[[TrainState, Gradient], tuple[TrainState, Metrics]]:
    """Make a pure function (state, gradient) -> (next state, metrics); see `make_train_step`."""

    def update(state: TrainState, found: Gradient) -> tuple[TrainState, Metrics]:
        before, learning_rate = state, schedule(state.step) * state.plateau.scale
        directions, opt_state = optimizer.update(found.grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, directions)
        norm = optax.tree.norm(found.grads)
        metrics = found.metrics | {"grad_norm": norm, "learning_rate": learning_rate}
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
) -> Callable[[TrainState, Batch], Any]:
    """Make a pure function (state, batch) -> sums over the batch's examples.

    It uses the averaged weights if the state has them. The sums are `examples` and those of
    `measure`. The batch holds `image`, the targets, and `mask` [B] float32, 0 for padding examples.

    Args:
      model, axis_name: as in `make_train_step`.
      loss: (logits [N, K], label [N]) -> [N].
      preprocess: batch -> batch, applied before the network.
      over: turns the function (variables, images) -> outputs of one network into that of all
        members of an ensemble. The sums then have a leading axis of members, and there are
        `ensemble_loss` and so on for the outputs that `measure.combine` combines.
      metrics: more metrics by name, (logits [N, K], label [N]) -> [N].
      apply: (variables, images) -> outputs; by default `model.apply`.
      each: return the sums and what `measure.keep` keeps of each example, [B, ...], with its `mask`
        and, if the batch has it, `index`. For an ensemble the values are [B, members, ...], and
        those of the combined outputs have the prefix `ensemble_`.
      measure: replaces `loss` and `metrics`: a task, or an object with its methods `sums`, `keep`
        and `combine`.
    """
    measure = measure or LabelMeasure(loss, metrics)
    add_up = make_sums(measure, ensemble=over is not None)

    def outputs_of(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images, train=False)

    def step(state: TrainState, batch: Batch) -> Any:
        if preprocess is not None:
            batch = preprocess(batch)
        function = apply or outputs_of
        outputs = (function if over is None else over(function))(state.variables, batch["image"])
        sums = add_up(outputs, batch)
        sums = sums if axis_name is None else lax.psum(sums, axis_name)
        if not each:
            return sums
        # The examples' axis comes first, because it is split over the devices.
        if over is None:
            kept = measure.keep(outputs, batch)
        else:
            kept = jax.vmap(measure.keep, (0, None), 1)(outputs, batch)
            joint = measure.keep(measure.combine(outputs), batch)
            kept |= {f"ensemble_{name}": value for name, value in joint.items()}
        return sums, kept | {name: batch[name] for name in ("mask", "index") if name in batch}

    return step


def make_sums(measure: Any, ensemble: bool = False) -> Callable[[Any, Batch], Metrics]:
    """Make a pure function (outputs, batch) -> sums: `examples` and those of `measure`.

    The batch holds `mask` [N].

    Args:
      measure: as in `make_eval_step`.
      ensemble: the outputs and the sums have a leading axis [M] of M members, and there are
        `ensemble_loss` and so on for the combined prediction.
    """

    def add_up(outputs: Any, batch: Batch) -> Metrics:
        if ensemble:
            sums = jax.vmap(measure.sums, (0, None))(outputs, batch)
            joint = measure.sums(measure.combine(outputs), batch)
            sums |= {f"ensemble_{name}": value for name, value in joint.items()}
        else:
            sums = measure.sums(outputs, batch)
        return sums | {"examples": jnp.sum(batch["mask"])}

    return add_up
