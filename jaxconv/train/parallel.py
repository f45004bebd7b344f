"""How a step is spread over devices. The steps themselves know nothing of it but, under `pmap`, the axis to average over.

jit   one program over a mesh: parameters on every device, the batch split; statistics are those of the global batch
pmap  one program a device, which talk through the axis `data`: the same results
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.jax_utils
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxconv.errors import UserError

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A way to place values and to compile steps.

    Attributes:
      mode: `jit` or `pmap`.
      devices: those that share the batch.
    """

    mode: str
    devices: tuple[Any, ...]

    @property
    def axis_name(self) -> str | None:
        """What steps and BatchNorm average over; under `jit` they see the global batch and need no axis."""
        return AXIS if self.mode == "pmap" else None

    def check_batch(self, batch_size: int, key: str) -> None:
        """Raise UserError unless the batch divides evenly; `key` is the config's name for it."""
        n = len(self.devices)
        if batch_size % n:
            lower, upper = batch_size // n * n, -(-batch_size // n) * n
            choices = f"{lower} or {upper}" if lower else f"{upper}"
            raise UserError(
                f"config.{key} is {batch_size}: {batch_size} images / {n} devices = {batch_size / n:.2f} is not whole; give {choices}"
            )

    def replicate(self, tree: Any) -> Any:
        """Put a copy on every device."""
        if self.mode == "pmap":
            return flax.jax_utils.replicate(tree, self.devices)
        return jax.device_put(tree, self._sharding())

    def replicate_key(self, key: jax.Array) -> jax.Array:
        """Place the run's key for `compile_train`."""
        return key if self.mode == "pmap" else self.replicate(key)

    def unreplicate(self, tree: Any) -> Any:
        """One copy of what `replicate` placed, without talking between devices."""
        if self.mode == "pmap":
            return jax.tree.map(lambda x: x.addressable_shards[0].data.reshape(x.shape[1:]), tree)
        return tree

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Prepare a host batch, [B, ...] each, for a compiled step, which splits it over the devices.

        Under `jit` the step places it by itself, in 10 microseconds where a `device_put` before it takes 90.
        """
        if self.mode == "pmap":
            n = len(self.devices)
            return {name: value.reshape(n, -1, *value.shape[1:]) for name, value in batch.items()}
        return batch

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Send a host batch, [B, ...] each, to the devices ahead of the step that needs it."""
        return jax.device_put(self.shard(batch), self._sharding(AXIS))

    def compile_train(self, step: Callable) -> Callable:
        """Compile (state, data, batch, key) -> (state, metrics); state and data are replicated, the batch is split."""
        if self.mode == "pmap":
            return jax.pmap(step, AXIS, in_axes=(0, 0, 0, None), out_axes=(0, None), donate_argnums=0, devices=self.devices)
        whole, split = self._sharding(), self._sharding(AXIS)
        return jax.jit(step, in_shardings=(whole, whole, split, whole), out_shardings=whole, donate_argnums=0)

    def compile_eval(self, step: Callable) -> Callable:
        """Compile (state, data, batch) -> sums."""
        if self.mode == "pmap":
            return jax.pmap(step, AXIS, out_axes=None, devices=self.devices)
        whole, split = self._sharding(), self._sharding(AXIS)
        return jax.jit(step, in_shardings=(whole, whole, split), out_shardings=whole)

    def _sharding(self, *axes: str) -> NamedSharding:
        return NamedSharding(Mesh(np.array(self.devices), (AXIS,)), PartitionSpec(*axes))


def make_parallel(mode: str, devices: Sequence[Any] | None = None) -> Parallel:
    """`jit` or `pmap` over the given devices, by default all that there are."""
    return Parallel(mode, tuple(jax.devices() if devices is None else devices))


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """A uint32 that changes with any bit of any value of the tree, the same for any sharding."""
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        bits = jax.lax.bitcast_convert_type(leaf, {4: jnp.uint32, 2: jnp.uint16, 1: jnp.uint8}[leaf.dtype.itemsize]).reshape(-1)
        weights = jax.lax.iota(jnp.uint32, bits.size) * jnp.uint32(2654435761) + jnp.uint32(2 * number + 1)
        total += jnp.sum(bits.astype(jnp.uint32) * (weights | 1), dtype=jnp.uint32)
    return total


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether no value of the tree is infinite or NaN."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
