"""One step of training and one of evaluation, as pure functions: they know nothing of devices,
files or logging.

step = make_train_step(model, optimizer, schedule)
state, metrics = jax.jit(step)(state, {"image": images, "label": labels, "position":
jnp.arange(len(labels))}, jax.random.key(0))
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxconv.models.network import AUXILIARY
from jaxconv.tasks.classification.losses import (
    average_logits,
    correct,
    correct_within,
    cross_entropy,
)
from jaxconv.train.state import TrainState, named_key, update_ema

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# What a training step measures, float32 scalars.
METRICS = ("loss", "top1", "grad_norm", "learning_rate")
_KEPT = "between modules"
# The k of the other error that is reported of ImageNet, where there are more classes.
TOP = 5


def make_train_step(
    model: Any,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    augment: Callable[[jax.Array, Batch], Batch] | None = None,
    axis_name: str | None = None,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    remat: bool = False,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """A pure (state, batch, key) -> (state, metrics).

    Args:
      model: a Linen module, called as `model.apply(variables, images, train=True)`. What it keeps
        in the collection `auxiliary`, as (logits, weight), adds its weighted loss to the objective;
        the metric `loss` is that of the main logits.
      optimizer: gives the direction of the update; the learning rate is multiplied in here, so that
        it can be traced.
      schedule: step -> learning rate.
      loss: (logits [N, K], target) -> [N]; the target is the batch's `target` [N, K] where there is
        one, or else its `label` [N].
      augment: (key, batch) -> batch, before the network.
      axis_name: under `pmap`, the axis over which gradients and metrics are averaged.
      ema_decay: of the averages of the weights and BatchNorm's statistics, see `state.update_ema`;
        0 keeps none.
      accumulate: parts of the batch that are worked off one after another, for less memory; it
        divides the batch. Gradients are their mean, the same as the whole batch's but for rounding;
        BatchNorm's statistics and dropout are each part's own.
      remat: keep only what the network's own modules pass to one another, and compute the rest
        again on the way back (Chen et al. 2016, arXiv:1604.06174).

    The step's batch holds `image` [B, H, W, C], `label` [B] int32 and, for `augment`, `position`
    [B] int32 in the global batch. The key is the run's; what a step draws is folded from it by step
    and name. Under `pmap` each device folds its index into dropout's. The metrics are those of
    `METRICS`: means over the batch, before the update. Where images are mixed, `top1` counts the
    class with the largest share. Where the state has a `loss_scale`, a step whose gradients are not
    finite changes nothing else and has `grad_norm` 0.
    """
    apply = rematerialised(model) if remat else model.apply

    def loss_of(
        params: Any, model_state: Any, part: Batch, dropout: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
        target = part["target"] if "target" in part else part["label"]
        collections = [*model_state, AUXILIARY]
        logits, changed = apply(
            {"params": params, **model_state},
            part["image"],
            train=True,
            rngs={"dropout": dropout},
            mutable=collections,
        )
        mean_loss = objective = jnp.mean(loss(logits, target))
        for auxiliary_logits, weight in changed.pop(AUXILIARY, {}).values():
            objective += weight * jnp.mean(loss(auxiliary_logits, target))
        return objective, (mean_loss, jnp.mean(correct(logits, target)), changed)

    def work_off(
        state: TrainState, part: Batch, dropout: jax.Array
    ) -> tuple[TrainState, Any, Metrics, jax.Array]:
        """(the state with what the network keeps and the scale of the loss changed, gradients,
        metrics, whether they are finite).
        """
        finite, scale = jnp.array(True), state.loss_scale
        if scale:
            differentiate = scale.value_and_grad(loss_of, has_aux=True, axis_name=axis_name)
            scale, finite, (_, aux), grads = differentiate(
                state.params, state.model_state, part, dropout
            )
        else:
            (_, aux), grads = jax.value_and_grad(loss_of, has_aux=True)(
                state.params, state.model_state, part, dropout
            )
        mean_loss, top1, model_state = aux
        return (
            state.replace(model_state=model_state, loss_scale=scale),
            grads,
            {"loss": mean_loss, "top1": top1},
            finite,
        )

    def work_off_all(
        state: TrainState, batch: Batch, dropout: jax.Array
    ) -> tuple[TrainState, Any, Metrics, jax.Array]:
        if accumulate == 1:
            return work_off(state, batch, dropout)

        def add(
            carry: tuple[TrainState, Any], numbered: tuple[jax.Array, Batch]
        ) -> tuple[tuple[TrainState, Any], tuple[Metrics, jax.Array]]:
            number, part = numbered
            state, sums = carry
            state, grads, metrics, finite = work_off(
                state, part, jax.random.fold_in(dropout, number)
            )
            return (state, jax.tree.map(jnp.add, sums, grads)), (metrics, finite)

        # Every so-maniest example, so that each part is spread over the devices as the batch is.
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch
        )
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (state, sums), (metrics, finite) = lax.scan(
            add, (state, zeros), (jnp.arange(accumulate), parts), unroll=loops_unrolled()
        )
        return (
            state,
            jax.tree.map(lambda x: x / accumulate, sums),
            jax.tree.map(jnp.mean, metrics),
            jnp.all(finite),
        )

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        before = state
        if augment is not None:
            batch = augment(named_key(key, state.step, "augment"), batch)
        dropout = named_key(key, state.step, "dropout")
        if axis_name is not None:
            dropout = jax.random.fold_in(dropout, lax.axis_index(axis_name))
        state, grads, metrics, finite = work_off_all(state, batch, dropout)
        model_state = state.model_state
        if axis_name is not None:
            grads, metrics, model_state = lax.pmean((grads, metrics, model_state), axis_name)
        learning_rate = schedule(state.step) * state.plateau.scale
        directions, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, directions)
        metrics |= {"grad_norm": optax.tree.norm(grads), "learning_rate": learning_rate}
        if ema_decay:
            state = state.replace(
                ema=update_ema(state.ema, {"params": params, **model_state}, state.step, ema_decay)
            )
        state = state.replace(
            step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state
        )
        if state.loss_scale:
            kept = before.replace(step=state.step, loss_scale=state.loss_scale)
            state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), state, kept)
            metrics["grad_norm"] = jnp.where(finite, metrics["grad_norm"], 0)
        return state, metrics

    return step


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

        return jax.checkpoint(forward, policy=jax.checkpoint_policies.save_only_these_names(_KEPT))(
            variables, x, rngs
        )

    return apply


def make_eval_step(
    model: Any,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    preprocess: Callable[[Batch], Batch] | None = None,
    axis_name: str | None = None,
    over: Callable[[Callable], Callable] | None = None,
    metrics: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] | None = None,
    apply: Callable[[Any, jax.Array], jax.Array] | None = None,
    each: bool = False,
) -> Callable[[TrainState, Batch], Any]:
    """A pure (state, batch) -> sums over the batch's examples, see `make_measure`; by averaged
    weights, where there are.

    The batch holds `image`, `label` and `mask` [B] float32, 0 for the examples that only fill it
    up.

    Args:
      model, preprocess, axis_name: as in `make_train_step`.
      loss: (logits [N, K], label [N]) -> [N].
      over: makes of (variables, images) -> logits the function over all members of an ensemble,
        whose state this is. `loss` and `top1` are then [members], and there are `ensemble_loss` and
        `ensemble_top1` of the mean of the members' probabilities.
      metrics: more of them by name, (logits [N, K], label [N]) -> [N].
      apply: (variables, images) -> logits; by default the model's own.
      each: return the sums, and of each example `logits` [B, K], or [B, members, K], with its
        `label`, `mask` and, where the batch has it, `index`.
    """
    measure = make_measure(loss, metrics, ensemble=over is not None)

    def logits_of(variables: Any, images: jax.Array) -> jax.Array:
        return model.apply(variables, images, train=False)

    def step(state: TrainState, batch: Batch) -> Any:
        if preprocess is not None:
            batch = preprocess(batch)
        function = apply or logits_of
        logits = (function if over is None else over(function))(state.variables, batch["image"])
        sums = measure(logits, batch["label"], batch["mask"])
        sums = sums if axis_name is None else lax.psum(sums, axis_name)
        if not each:
            return sums
        # The examples first, as devices share them.
        return sums, {"logits": jnp.moveaxis(logits, -2, 0)} | {
            name: batch[name] for name in ("label", "mask", "index") if name in batch
        }

    return step


def make_measure(
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    metrics: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] | None = None,
    ensemble: bool = False,
) -> Callable[[jax.Array, jax.Array, jax.Array], Metrics]:
    """A pure (logits [N, K], label [N], mask [N]) -> sums: `examples`, `loss`, `top1`, of more than
    5 classes `top5`; float32.

    Args:
      loss, metrics: as in `make_eval_step`.
      ensemble: the logits are those [M, N, K] of M members, the sums [M] too, and there are
        `ensemble_loss` and so on of the mean of the members' probabilities.
    """

    def measure(logits: jax.Array, label: jax.Array, mask: jax.Array) -> Metrics:
        def measured(logits: jax.Array) -> Metrics:
            values = {"loss": loss(logits, label), "top1": correct(logits, label)}
            if logits.shape[-1] > TOP:
                values[f"top{TOP}"] = correct_within(logits, label, TOP)
            return values | {
                name: metric(logits, label) for name, metric in (metrics or {}).items()
            }

        if ensemble:
            values = jax.vmap(measured)(logits)
            values |= {
                f"ensemble_{name}": value
                for name, value in measured(average_logits(logits)).items()
            }
        else:
            values = measured(logits)
        # where, not a product: a filler's loss may be infinite.
        sums = {
            name: jnp.sum(jnp.where(jnp.broadcast_to(mask, value.shape) > 0, value, 0), -1)
            for name, value in values.items()
        }
        return sums | {"examples": jnp.sum(mask)}

    return measure
