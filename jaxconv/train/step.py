"""One step of training and one of evaluation, as pure functions: they know nothing of devices,
files, logging, or what is learnt.

step = make_train_step(model, optimizer, schedule)
batch = {"image": images, "label": labels, "position": jnp.arange(len(labels))}
state, metrics = jax.jit(step)(state, batch, jax.random.key(0))

A training step is made of small parts: `loss_of` the network, its `gradient`, that of a batch
`microbatched`, averaged over devices, and what the optimizer makes of it.
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
# (outputs, batch) -> the loss [B], and what else is measured, [B] by name.
Objective = Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]]

# What a training step measures beside its objective, float32 scalars.
METRICS = ("grad_norm", "learning_rate")
_KEPT = "between modules"


class Gradient(NamedTuple):
    """What a batch asks for.

    Attributes:
      grads: of the parameters.
      metrics: means over the batch.
      model_state: the network's other collections, as the batch leaves them.
      loss_scale: as the batch leaves it.
      finite: whether all gradients are; always without a scale.
    """

    grads: Any
    metrics: Metrics
    model_state: Any
    loss_scale: Any
    finite: jax.Array


# (state, batch, dropout's key) -> Gradient.
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
    """A pure (state, batch, key) -> (state, metrics).

    Args:
      model: a Linen module, called as `model.apply(variables, images, train=True)`. What it keeps
        in the collection `auxiliary`, as (outputs, weight), adds its weighted loss to the
        objective; the metric `loss` is that of the main outputs.
      optimizer: gives the direction of the update; the learning rate is multiplied in here, so that
        it can be traced.
      schedule: step -> learning rate.
      loss: (logits [N, K], target) -> [N]; the target is the batch's `target` [N, K] where there is
        one, or else its `label` [N].
      augment: (key, batch) -> batch, before the network.
      axis_name: under `pmap`, the axis over which gradients and metrics are averaged.
      ema_decay: of the averages of the weights and BatchNorm's statistics, see `state.update_ema`;
        0 keeps none.
      accumulate: parts of the batch that are worked off one after another, see `microbatched`.
      remat: keep only what the network's own modules pass to one another, and compute the rest
        again on the way back (Chen et al. 2016, arXiv:1604.06174).
      objective: in the place of `loss`, what any other task makes smaller: (outputs, batch) -> ([B]
        loss, {name: [B]}); what it measures beside is averaged into the metrics.

    The step's batch holds `image` [B, H, W, C], the targets of the objective (`label` [B] int32)
    and, for `augment`, `position` [B] int32 in the global batch. The key is the run's; what a step
    draws is folded from it by step and name. Under `pmap` each device folds its index into
    dropout's. The metrics are `loss`, those of the objective, and `METRICS`: means over the batch,
    before the update. Where the state has a `loss_scale`, a step whose gradients are not finite
    changes nothing else and has `grad_norm` 0.
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
    """A pure (params, model_state, batch, dropout's key) -> (objective, (metrics, model_state)):
    the mean loss with that of the auxiliary outputs, and means of what is measured.
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
    """The gradient of `loss_of`; where the state has a `loss_scale`, of the scaled loss."""

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
    """The gradient of a batch in `count` parts, one after another, for less memory; they divide it.

    Gradients are the parts' mean, the same as the whole batch's but for rounding; BatchNorm's
    statistics and dropout are each part's own.
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

        # Every so-maniest example, so that each part is spread over the devices as the batch is.
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
    """The gradient, metrics and statistics averaged over the devices of an axis; without one, as
    they are.
    """
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
    """A pure (state, gradient) -> (state after the step, metrics); see `make_train_step`."""

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
    """Whether loops over networks are written out: on a CPU, where convolutions inside of a loop
    are some 13 times slower.
    """
    return jax.default_backend() == "cpu"


def several_steps(step: Callable, count: int) -> Callable:
    """`count` steps as one call: (state, data, batches, key) -> (state, metrics), with the steps'
    axis in front of the last two.
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
    """`model.apply`, which keeps for the way back only what the modules of the network itself
    return, not what is inside of them.
    """

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
    """A pure (state, batch) -> sums over the batch's examples, by averaged weights, where there
    are: `examples`, and what `measure` adds up.

    The batch holds `image`, the targets, and `mask` [B] float32, 0 for the examples that only fill
    it up.

    Args:
      model, preprocess, axis_name: as in `make_train_step`.
      loss: (logits [N, K], label [N]) -> [N].
      over: makes of (variables, images) -> outputs the function over all members of an ensemble,
        whose state this is. The sums have then the members' axis in front, and there are
        `ensemble_loss` and so on of what `measure.combine` makes of the members' outputs.
      metrics: more of them by name, (logits [N, K], label [N]) -> [N].
      apply: (variables, images) -> outputs; by default the model's own.
      each: return the sums, and what `measure.keep` keeps of each example, [B, ...], or [B,
        members, ...] and with `ensemble_` before it of the combined outputs, with its `mask` and,
        where the batch has it, `index`.
      measure: in the place of `loss` and `metrics`, a task, or what has its methods `sums`, `keep`
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
        # The examples first, as devices share them.
        if over is None:
            kept = measure.keep(outputs, batch)
        else:
            kept = jax.vmap(measure.keep, (0, None), 1)(outputs, batch)
            joint = measure.keep(measure.combine(outputs), batch)
            kept |= {f"ensemble_{name}": value for name, value in joint.items()}
        return sums, kept | {name: batch[name] for name in ("mask", "index") if name in batch}

    return step


def make_sums(measure: Any, ensemble: bool = False) -> Callable[[Any, Batch], Metrics]:
    """A pure (outputs, batch with `mask` [N]) -> sums: `examples` and those of `measure`.

    Args:
      measure: as in `make_eval_step`.
      ensemble: the outputs have the axis [M] of M members in front, the sums too, and there are
        `ensemble_loss` and so on of the combined prediction.
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
