"""One step of training and one of evaluation, as pure functions: they know nothing of devices, files or logging.

step = make_train_step(model, optimizer, schedule)
state, metrics = jax.jit(step)(state, {"image": images, "label": labels, "position": jnp.arange(len(labels))}, jax.random.key(0))
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxconv.models.network import AUXILIARY
from jaxconv.train.losses import correct, cross_entropy
from jaxconv.train.state import TrainState, named_key, update_ema

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# What a training step measures, float32 scalars.
METRICS = ("loss", "top1", "grad_norm", "learning_rate")


def make_train_step(
    model: Any,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    augment: Callable[[jax.Array, Batch], Batch] | None = None,
    axis_name: str | None = None,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """A pure (state, batch, key) -> (state, metrics).

    Args:
      model: a Linen module, called as `model.apply(variables, images, train=True)`. What it keeps in the collection `auxiliary`, as
        (votes, weight), adds its weighted loss to the objective; the metric `loss` is that of the main votes.
      optimizer: gives the direction of the update; the learning rate is multiplied in here, so that it can be traced.
      schedule: step -> learning rate.
      loss: (votes [N, K], target) -> [N]; the target is the batch's `target` [N, K] where there is one, or else its `label` [N].
      augment: (key, batch) -> batch, before the network.
      axis_name: under `pmap`, the axis over which gradients and metrics are averaged.
      ema_decay: of the averages of the weights and BatchNorm's statistics, see `state.update_ema`; 0 keeps none.

    The step's batch holds `image` [B, H, W, C], `label` [B] int32 and, for `augment`, `position` [B] int32 in the global batch.
    The key is the run's; what a step draws is folded from it by step and name. Under `pmap` each device folds its index into dropout's.
    The metrics are those of `METRICS`: means over the batch, before the update. Where images are mixed, `top1` counts the class with the
    largest share.
    """

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        if augment is not None:
            batch = augment(named_key(key, state.step, "augment"), batch)
        target = batch["target"] if "target" in batch else batch["label"]
        dropout = named_key(key, state.step, "dropout")
        if axis_name is not None:
            dropout = jax.random.fold_in(dropout, lax.axis_index(axis_name))

        def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
            variables = {"params": params, **state.model_state}
            votes, changed = model.apply(
                variables, batch["image"], train=True, rngs={"dropout": dropout}, mutable=[*state.model_state, AUXILIARY]
            )
            mean_loss = objective = jnp.mean(loss(votes, target))
            for auxiliary_votes, weight in changed.pop(AUXILIARY, {}).values():
                objective += weight * jnp.mean(loss(auxiliary_votes, target))
            return objective, (mean_loss, votes, changed)

        (_, (mean_loss, votes, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        metrics = {"loss": mean_loss, "top1": jnp.mean(correct(votes, target))}
        if axis_name is not None:
            grads, metrics, model_state = lax.pmean((grads, metrics, model_state), axis_name)
        learning_rate = schedule(state.step) * state.plateau.scale
        directions, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, directions)
        metrics |= {"grad_norm": optax.tree.norm(grads), "learning_rate": learning_rate}
        if ema_decay:
            state = state.replace(ema=update_ema(state.ema, {"params": params, **model_state}, state.step, ema_decay))
        return state.replace(step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state), metrics

    return step


def make_eval_step(
    model: Any,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    preprocess: Callable[[Batch], Batch] | None = None,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], Metrics]:
    """A pure (state, batch) -> sums over the batch's examples: `examples`, `loss`, `top1`, float32; by averaged weights, where there are.

    The batch holds `image`, `label` and `mask` [B] float32, 0 for the examples that only fill it up.
    """

    def step(state: TrainState, batch: Batch) -> Metrics:
        if preprocess is not None:
            batch = preprocess(batch)
        votes = model.apply(state.variables, batch["image"], train=False)
        values = {"loss": loss(votes, batch["label"]), "top1": correct(votes, batch["label"])}
        # where, not a product: a filler's loss may be infinite.
        sums = {name: jnp.sum(jnp.where(batch["mask"] > 0, value, 0)) for name, value in values.items()}
        sums["examples"] = jnp.sum(batch["mask"])
        return sums if axis_name is None else lax.psum(sums, axis_name)

    return step
