"""What training changes, as one pytree, and the keys of its randomness."""

import zlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class Plateau:
    """What the schedule `plateau` remembers: float32 `scale` of the learning rate, the `best` value so far, evaluations `since` then."""

    scale: jax.Array
    best: jax.Array
    since: jax.Array


@flax.struct.dataclass
class TrainState:
    """Everything a step changes. Nothing random hides here: see `named_key`.

    Attributes:
      step: int32, steps done.
      params: the network's parameters, float32.
      model_state: its other collections, such as BatchNorm's running statistics.
      opt_state: the optimizer's.
      plateau: see `Plateau`.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    plateau: Plateau


def create_state(model: Any, optimizer: optax.GradientTransformation, key: jax.Array, images: jax.Array) -> TrainState:
    """The state before the first step; `images` [N, H, W, C] float32 show the network its input's shape."""
    variables = dict(model.init(named_key(key, 0, "init"), images, train=False))
    params = variables.pop("params")
    plateau = Plateau(scale=jnp.ones(()), best=jnp.full((), -jnp.inf), since=jnp.zeros((), jnp.int32))
    return TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params), plateau)


def named_key(key: jax.Array, step: jax.Array | int, name: str) -> jax.Array:
    """The key for one use of randomness at one step: fold_in(fold_in(key, step), name)."""
    return jax.random.fold_in(jax.random.fold_in(key, step), zlib.crc32(name.encode()))
