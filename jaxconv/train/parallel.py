"""How a step is spread over devices and processes. The steps themselves know nothing of it but,
under `pmap`, the axis to average over.

jit   one program over a mesh: parameters on every device, the batch split; statistics are those of
      the global batch
pmap  one program a device, which talk through the axis `data`: the same results
fsdp  as jit, but large parameters, and what the optimizer keeps of them, lie in parts, one on each
      device (ZeRO, arXiv:1910.02054)

With several processes the devices are those of all of them, and a process has its own part of every
batch.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.jax_utils
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxconv.errors import PREEMPTED, LostProcessError, UserError, short

AXIS = "data"
# Values that a parameter must have at least for `fsdp` to lay it out in parts: below, the talk
# costs more than the memory is worth.
LARGE = 2**16


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A way to place values and to compile steps.

    A state has two forms: as steps take it, and whole, as it is initialised, saved and restored;
    they differ under `pmap` alone.

    Attributes:
      mode: `jit`, `pmap` or `fsdp`.
      devices: those that share the batch, of all processes.
    """

    mode: str
    devices: tuple[Any, ...]

    @property
    def axis_name(self) -> str | None:
        """What steps and BatchNorm average over; under `jit` and `fsdp` they see the global batch
        and need no axis.
        """
        return AXIS if self.mode == "pmap" else None

    @property
    def process(self) -> tuple[int, int]:
        """(i, p): this is process i of p."""
        count = len({device.process_index for device in self.devices})
        return (jax.process_index() if count > 1 else 0), count

    def check_batch(self, batch_size: int, key: str, parts: int = 1) -> None:
        """Raise UserError unless the batch divides evenly; `key` is the config's name for it,
        `parts` those that each device works off.
        """
        n = len(self.devices) * parts
        if batch_size % n:
            lower, upper = batch_size // n * n, -(-batch_size // n) * n
            choices = f"{lower} or {upper}" if lower else f"{upper}"
            over = f"{len(self.devices)} devices" + (f" / {parts} parts" if parts > 1 else "")
            raise UserError(
                f"config.{key} is {batch_size}: {batch_size} images / {over} = "
                f"{batch_size / n:.2f} is not whole; give {choices}"
            )

    def check_groups(self, groups: int, batch_size: int, parts: int) -> None:
        """Raise UserError unless BatchNorm's groups fit each of the batch's parts and, under
        `pmap`, the devices.
        """
        n, images = len(self.devices), batch_size // parts
        if images % groups:
            raise UserError(
                f"config.model.norm_groups is {groups}: {images} images / {groups} = "
                f"{images / groups:.2f} is not whole"
            )
        if self.mode == "pmap" and n % groups and groups % n:
            raise UserError(
                f"config.model.norm_groups is {groups} on {n} devices; under pmap it must divide "
                "them or be a multiple of them"
            )

    def own_part(self, x: np.ndarray, axis: int = 0) -> np.ndarray:
        """This process' part of what a whole batch holds along an axis."""
        process, count = self.process
        return x if count == 1 else np.split(x, count, axis)[process]

    def replicate(self, tree: Any) -> Any:
        """Put a copy on every device of values that every process has."""
        if self.mode == "pmap":
            return flax.jax_utils.replicate(tree, self._own_devices())
        return self._put(tree, self._sharding())

    def key(self, seeds: int | tuple[int, ...]) -> jax.Array:
        """The run's key for `compile_train`, or the members' keys [K]."""
        make = jax.random.key if isinstance(seeds, int) else jax.vmap(jax.random.key)
        return jax.jit(make, out_shardings=None if self.mode == "pmap" else self._sharding())(
            np.asarray(seeds, np.uint32)
        )

    def shard(self, batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, Any]:
        """Prepare this process' part of a batch for a compiled step, which splits it over the
        devices.

        Under `jit` in one process the step places it by itself, in 10 microseconds where a
        `device_put` before it takes 90.

        Args:
          batch: arrays with the examples along `axis`.
          axis: 0, or more where steps or members come first.
        """
        if self.mode == "pmap":
            n = len(self._own_devices())
            parts = {
                name: x.reshape(*x.shape[:axis], n, -1, *x.shape[axis + 1 :])
                for name, x in batch.items()
            }
            return {name: np.moveaxis(x, axis, 0) for name, x in parts.items()}
        return batch if self.process[1] == 1 else self._put(batch, self._split(axis))

    def place(self, batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, jax.Array]:
        """Send this process' part of a batch to the devices ahead of the step that needs it."""
        if self.mode == "pmap":
            return jax.device_put(
                self.shard(batch, axis),
                NamedSharding(Mesh(np.array(self._own_devices()), (AXIS,)), PartitionSpec(AXIS)),
            )
        return self._put(batch, self._split(axis))

    def init(self, init: Callable[[jax.Array], Any], key: jax.Array, abstract: Any) -> Any:
        """The whole state that `init` makes of what `key` gives; its shapes are those of
        `abstract`.
        """
        return jax.jit(init, out_shardings=self._layout(abstract))(key)

    def targets(self, abstract: Any) -> Any:
        """Shapes, dtypes and places of the whole state, to restore it to."""
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            abstract,
            self._layout(abstract),
        )

    def spread(self, whole: Any, abstract: Any) -> Any:
        """The whole state from values that every process has."""

        def put(leaf: Any, place: NamedSharding) -> jax.Array:
            values = np.asarray(leaf)
            return jax.make_array_from_callback(values.shape, place, lambda part: values[part])

        return jax.tree.map(put, whole, self._layout(abstract))

    def to_steps(self, whole: Any) -> Any:
        """From the whole state to what steps take."""
        if self.mode == "pmap":
            return flax.jax_utils.replicate(jax.tree.map(_first_copy, whole), self._own_devices())
        return whole

    def to_whole(self, state: Any) -> Any:
        """From what steps take to the whole state, without talking between devices."""
        if self.mode != "pmap":
            return state
        one = jax.tree.map(lambda x: x.addressable_shards[0].data.reshape(x.shape[1:]), state)
        return one if self.process[1] == 1 else self._put(jax.device_get(one), self._sharding())

    def compile_train(self, step: Callable, abstract: Any, axis: int = 0) -> Callable:
        """Compile (state, data, batch, key) -> (state, metrics); the batch is split along `axis`,
        the metrics are on every device.

        Args:
          abstract: shapes of the whole state.
        """
        if self.mode == "pmap":
            return jax.pmap(
                step,
                AXIS,
                in_axes=(0, 0, 0, None),
                out_axes=(0, None),
                donate_argnums=0,
                devices=self.devices,
            )
        whole, state = self._sharding(), self._layout(abstract)
        places = (state, whole, self._split(axis), whole)
        return jax.jit(step, in_shardings=places, out_shardings=(state, whole), donate_argnums=0)

    def compile_eval(self, step: Callable, abstract: Any, each: bool = False) -> Callable:
        """Compile (state, data, batch) -> sums; with `each` -> (sums, values of each example),
        which `in_order` joins.
        """
        if self.mode == "pmap":
            return jax.pmap(step, AXIS, out_axes=(None, 0) if each else None, devices=self.devices)
        whole = self._sharding()
        outputs = (whole, self._split()) if each else whole
        return jax.jit(
            step, in_shardings=(self._layout(abstract), whole, self._split()), out_shardings=outputs
        )

    def in_order(self, values: Any) -> Any:
        """The values [B, ...] of each example of a batch on the host, in its order, from what a
        step returns of them; every process gets those of all.
        """

        def whole(x: jax.Array) -> np.ndarray:
            if self.process[1] == 1:
                part = np.asarray(x)
            else:
                # This process' part of the batch; the processes' parts follow one another.
                shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
                part = np.concatenate([np.asarray(shard.data) for shard in shards])
            part = part.reshape(-1, *part.shape[2:]) if self.mode == "pmap" else part
            if self.process[1] == 1:
                return part
            return np.asarray(multihost_utils.process_allgather(part, tiled=True))

        return jax.tree.map(whole, values)

    def bytes_of(self, abstract: Any) -> int:
        """Bytes of the whole state on one device."""
        sizes = jax.tree.map(
            lambda leaf, place: math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
            abstract,
            self._layout(abstract),
        )
        return sum(jax.tree.leaves(sizes))

    def memory(self) -> int:
        """Bytes that a device has; of a CPU its share of the machine's."""
        stats = self._own_devices()[0].memory_stats()
        if stats and "bytes_limit" in stats:
            return stats["bytes_limit"]
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(self._own_devices())

    def total(self, count: int) -> int:
        """The sum of a number over all processes."""
        return (
            count
            if self.process[1] == 1
            else int(np.sum(multihost_utils.process_allgather(np.int32(count))))
        )

    @contextlib.contextmanager
    def reraise_lost_process(self) -> Iterator[None]:
        """What JAX raises where another process of the run is gone, as an error for the person."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if self.process[1] == 1:
                raise
            raise LostProcessError(
                f"another process of the run is gone ({short(error, 200)}); start all of them "
                "again: they go on from the last checkpoint",
                PREEMPTED,
            ) from error

    def broadcast_from_first(self, number: int) -> int:
        """What the first process has for this number."""
        return (
            number
            if self.process[1] == 1
            else int(multihost_utils.broadcast_one_to_all(np.int32(number)))
        )

    def on_every_process(self, action: Callable[[], Any], who: str = "another") -> Any:
        """What `action` returns, where it succeeds in all processes; none waits for one that it
        has stopped.

        Args:
          action: may fail in some processes alone, such as where a file is missing on one machine.
          who: the process that may fail, in the message of the others.

        Raises:
          UserError: it failed in another process, which raises what it raised.
        """
        if self.process[1] == 1:
            return action()
        result, error = None, None
        try:
            result = action()
        except Exception as its:  # whatever it is, the others must hear of it
            error = its
        if self.total(error is not None):
            raise error or UserError(
                f"{who} process of the run stopped; its message says why", exit_code=1
            )
        return result

    def on_first_process(self, action: Callable[[], Any]) -> Any:
        """Let the first process alone do what concerns the workdir, while the others wait; returns
        what it returned, elsewhere None.

        Raises:
          UserError: in the others where it failed in the first, which raises what it raised.
        """
        first = self.process[0] == 0
        return self.on_every_process(lambda: action() if first else None, "the first")

    def _own_devices(self) -> list[Any]:
        return [device for device in self.devices if device.process_index == jax.process_index()]

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(Mesh(np.array(self.devices), (AXIS,)), PartitionSpec(*axes))

    def _split(self, axis: int = 0) -> NamedSharding:
        return self._sharding(*[None] * axis, AXIS)

    def _layout(self, abstract: Any) -> Any:
        """Where each value of the whole state lies."""
        return jax.tree.map(
            lambda leaf: self._sharding(*(self._cut(leaf.shape) if self.mode == "fsdp" else ())),
            abstract,
        )

    def _cut(self, shape: tuple[int, ...]) -> list[str | None]:
        """The axes of a large value: its longest one that the devices divide is cut."""
        divisible = [axis for axis, size in enumerate(shape) if size % len(self.devices) == 0]
        if int(np.prod(shape)) < LARGE or not divisible:
            return []
        longest = max(divisible, key=lambda axis: shape[axis])
        return [None] * longest + [AXIS]

    def _put(self, tree: Any, place: NamedSharding) -> Any:
        if self.process[1] == 1:
            return jax.device_put(tree, place)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(place, np.asarray(x)), tree
        )


def make_parallel(mode: str, devices: Sequence[Any] | None = None) -> Parallel:
    """`jit`, `pmap` or `fsdp` over the given devices, by default all that there are."""
    return Parallel(mode, tuple(jax.devices() if devices is None else devices))


def _first_copy(x: jax.Array) -> jax.Array:
    return x.addressable_shards[0].data if isinstance(x, jax.Array) else x


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """A uint32 that changes with any bit of any value of the tree, the same for any sharding."""
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        bits = jax.lax.bitcast_convert_type(
            leaf, {4: jnp.uint32, 2: jnp.uint16, 1: jnp.uint8}[leaf.dtype.itemsize]
        ).reshape(-1)
        weights = jax.lax.iota(jnp.uint32, bits.size) * jnp.uint32(2654435761) + jnp.uint32(
            2 * number + 1
        )
        total += jnp.sum(bits.astype(jnp.uint32) * (weights | 1), dtype=jnp.uint32)
    return total


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether no value of the tree is infinite or NaN."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


@jax.jit
def any_member_finite(tree: Any) -> jax.Array:
    """Whether there is a member, along the first axis, of which no value is infinite or NaN."""
    return jnp.any(jax.vmap(all_finite)(tree))
