"""The training state as one pytree, and the keys of its randomness."""

import zlib
from collections.abc import Mapping
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.dynamic_scale import DynamicScale

from jaxconv.errors import some


@flax.struct.dataclass
class Plateau:
    """The state of the schedule `plateau`.

    Attributes:
      scale: factor of the learning rate, float32.
      best: the best value so far, float32.
      since: number of evaluations since then, int32.
    """

    scale: jax.Array
    best: jax.Array
    since: jax.Array


class TrainState(flax.struct.PyTreeNode):
    """Everything a step changes. It holds no random state: see `named_key`.

    Attributes:
      step: int32, number of steps done.
      params: the network's parameters, float32.
      model_state: its other collections, such as BatchNorm's running statistics.
      opt_state: the optimizer's state.
      plateau: see `Plateau`.
      loss_scale: flax's `DynamicScale` if the compute type is float16, whose gradients would
        otherwise underflow; empty for other types.
      ema: averages of `params` and `model_state` over the steps, structured like the network's
        variables; empty if averaging is off.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    plateau: Plateau
    loss_scale: Any = flax.struct.field(default_factory=dict)
    ema: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> Any:
        """The variables for evaluation: the averages if there are any, else the current weights.

        The averages are those of `ema`, or of `optax.contrib.schedule_free` in the optimizer.
        """
        if self.ema:
            return self.ema
        params = self.params
        for average in schedule_free_states(self.opt_state):
            params = _schedule_free_params(average, params)
        return {"params": params, **self.model_state}


def check_finite(arrays: Mapping[str, Any]) -> None:
    """Raise ValueError where arrays of weights hold NaN or infinity; the message names them."""
    wrong = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if wrong:
        raise ValueError(
            f"NaN or infinity in {some(wrong)}: the training that wrote these weights diverged; "
            "take an earlier checkpoint"
        )


def create_state(
    model: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    images: jax.Array | np.ndarray,
    ema: bool = False,
    loss_scale: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
      model: a Linen module.
      optimizer: its state is initialized as well.
      key: the run's key.
      images: [N, H, W, C] float32, which give the network its input shape.
      ema: whether to keep averages of the weights.
      loss_scale: whether to scale the loss, which float16 needs.
    """
    model_state = dict(model.init(named_key(key, 0, "init"), images, train=False))
    params = model_state.pop("params")
    plateau = Plateau(
        scale=jnp.float32(1), best=jnp.float32(-jnp.inf), since=jnp.zeros((), jnp.int32)
    )
    # Arrays, because Python numbers would have another type after the first step. Flax says int.
    scale = (
        DynamicScale(fin_steps=cast(int, jnp.zeros((), jnp.int32)), scale=jnp.float32(2**16))
        if loss_scale
        else {}
    )
    state = TrainState(
        jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params), plateau, scale
    )
    # A copy: a step donates the state's buffers, and no buffer can be donated twice.
    return state.replace(ema=jax.tree.map(jnp.copy, state.variables)) if ema else state


def schedule_free_states(opt_state: Any) -> list[optax.contrib.ScheduleFreeState]:
    """The states of `optax.contrib.schedule_free` anywhere in an optimizer's state."""
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_schedule_free)
    return [node for node in nodes if _is_schedule_free(node)]


def _is_schedule_free(node: Any) -> bool:
    return isinstance(node, optax.contrib.ScheduleFreeState)


def _schedule_free_params(state: optax.contrib.ScheduleFreeState, params: Any) -> Any:
    """`optax.contrib.schedule_free_eval_params` of a parameter group, and of all members [K]."""

    def average(z: Any, y: jax.Array) -> jax.Array:
        if isinstance(z, optax.MaskedNode):  # a parameter of another group
            return y
        b1 = jnp.asarray(state.b1)
        b1 = b1.reshape(b1.shape + (1,) * (y.ndim - b1.ndim))  # [K], if there are members
        return (y - (1.0 - b1) * z) / b1

    masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(average, state.z, params, is_leaf=masked)


def update_ema(ema: Any, variables: Any, step: jax.Array, decay: float) -> Any:
    """The averages after one more step: ema <- d * ema + (1 - d) * variables.

    Here d = min(decay, (1 + step) / (10 + step)), whose second term limits the influence of the
    initial weights (TensorFlow's `ExponentialMovingAverage` with `num_updates`).
    """
    step = step.astype(jnp.float32)
    rate = 1 - jnp.minimum(jnp.float32(decay), (1 + step) / (10 + step))
    return jax.tree.map(lambda average, now: average + rate * (now - average), ema, variables)


def named_key(key: jax.Array, step: jax.Array | int, name: str) -> jax.Array:
    """The key for one use of randomness at one step: fold_in(fold_in(key, step), name)."""
    return jax.random.fold_in(jax.random.fold_in(key, step), zlib.crc32(name.encode()))
