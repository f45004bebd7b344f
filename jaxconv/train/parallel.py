"""Distributes a step over devices and processes.

The steps themselves do not depend on it except, under `pmap`, for the axis to average over.

jit   one program over a mesh: parameters replicated, the batch sharded; statistics are those of the
      global batch
pmap  one program per device, communicating over the axis `data`: the same results
fsdp  as jit, but large parameters and their optimizer state are sharded over the devices (ZeRO,
      arXiv:1910.02054)

With several processes, the devices are those of all processes, and each process has its own part of
every batch.
"""

import contextlib
import dataclasses
import functools
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

from jaxconv import moved
from jaxconv.compiling import compiled_first, compiler_options
from jaxconv.errors import PREEMPTED, LostProcessError, UserError, short

AXIS = "data"
# Minimum number of values of a parameter that `fsdp` shards: below it, communication costs more
# than the memory saved is worth.
LARGE = 2**16


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A way to place values and compile steps.

    A state has two forms: as steps take it, and whole, as it is initialized, saved and restored.
    They differ only under `pmap`.

    Attributes:
      mode: `jit`, `pmap` or `fsdp`.
      devices: the devices of all processes, which share the batch.
    """

    mode: str
    devices: tuple[Any, ...]

    @property
    def axis_name(self) -> str | None:
        """The axis that steps and BatchNorm average over.

        It is None under `jit` and `fsdp`, where they see the global batch.
        """
        return AXIS if self.mode == "pmap" else None

    @property
    def process(self) -> tuple[int, int]:
        """(i, p): this is process i of p."""
        count = len({device.process_index for device in self.devices})
        return (jax.process_index() if count > 1 else 0), count

    def check_batch(self, batch_size: int, key: str, parts: int = 1) -> None:
        """Raise UserError unless the batch divides evenly over the devices.

        `key` is the name of the batch size in the config, `parts` the number of parts that each
        device processes one after another.
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
        """Raise UserError unless BatchNorm's groups fit the batch's parts and the devices."""
        n, images = len(self.devices), batch_size // parts
        if images % groups:
            raise UserError(
                f"config.model.norm_groups is {groups}: {images} images / {groups} = "
                f"{images / groups:.2f} is not whole"
            )
        if self.mode == "pmap" and n % groups and groups % n:
            raise UserError(
                f"config.model.norm_groups is {groups} on {n} devices; under pmap it must be a "
                "divisor or a multiple of the number of devices"
            )

    def own_part(self, x: np.ndarray, axis: int = 0) -> np.ndarray:
        """This process's part of an array of a whole batch, split along an axis."""
        process, count = self.process
        return x if count == 1 else np.split(x, count, axis)[process]

    def replicate(self, tree: Any) -> Any:
        """Copy values that every process has to every device."""
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
        """Prepare this process's part of a batch for a compiled step, which shards it.

        Under `jit` in one process the step places the batch itself, which takes 10 microseconds; a
        separate `device_put` takes 90.

        Args:
          batch: arrays with the examples along `axis`.
          axis: 0, or more if axes of steps or members come first.
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
        """Send this process's part of a batch to the devices ahead of the step that needs it."""
        if self.mode == "pmap":
            return jax.device_put(
                self.shard(batch, axis),
                NamedSharding(Mesh(np.array(self._own_devices()), (AXIS,)), PartitionSpec(AXIS)),
            )
        return self._put(batch, self._split(axis))

    def init(self, init: Callable[[jax.Array], Any], key: jax.Array, abstract: Any) -> Any:
        """The whole state `init(key)`, whose shapes are those of `abstract`."""
        return jax.jit(init, out_shardings=self._layout(abstract))(key)

    def targets(self, abstract: Any) -> Any:
        """Shapes, dtypes and shardings of the whole state, to restore it with."""
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
        """Convert the whole state to the form that steps take."""
        if self.mode == "pmap":
            return flax.jax_utils.replicate(jax.tree.map(_first_copy, whole), self._own_devices())
        return whole

    def to_whole(self, state: Any) -> Any:
        """Convert the form that steps take to the whole state, without communication."""
        if self.mode != "pmap":
            return state
        one = jax.tree.map(lambda x: x.addressable_shards[0].data.reshape(x.shape[1:]), state)
        return one if self.process[1] == 1 else self._put(jax.device_get(one), self._sharding())

    def gather(self, whole: Any) -> Any:
        """The whole state as arrays of NumPy, in every process."""

        def values(leaf: jax.Array) -> np.ndarray:
            if leaf.is_fully_addressable or leaf.is_fully_replicated:
                return np.asarray(leaf)
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

        return jax.tree.map(values, whole)

    def compile_train(self, step: Callable, abstract: Any, axis: int = 0) -> Callable:
        """Compile (state, data, batch, key) -> (state, metrics).

        The metrics are replicated.

        Args:
          step: the function to compile.
          abstract: shapes of the whole state.
          axis: the axis along which the batch is sharded.
        """
        if self.mode == "pmap":
            mapped = jax.pmap(
                step,
                AXIS,
                in_axes=(0, 0, 0, None),
                out_axes=(0, None),
                donate_argnums=0,
                devices=self.devices,
            )
            return compiled_first(mapped)
        whole, state = self._sharding(), self._layout(abstract)
        places = (state, whole, self._split(axis), whole)
        jitted = jax.jit(
            step,
            in_shardings=places,
            out_shardings=(state, whole),
            donate_argnums=0,
            compiler_options=compiler_options(),
        )
        return compiled_first(jitted)

    def compile_eval(self, step: Callable, abstract: Any, each: bool = False) -> Callable:
        """Compile (state, data, batch) -> sums; with `each`, -> (sums, values of each example).

        `in_order` collects the values of each example.
        """
        if self.mode == "pmap":
            return jax.pmap(step, AXIS, out_axes=(None, 0) if each else None, devices=self.devices)
        whole = self._sharding()
        outputs = (whole, self._split()) if each else whole
        return jax.jit(
            step,
            in_shardings=(self._layout(abstract), whole, self._split()),
            out_shardings=outputs,
            compiler_options=compiler_options(),
        )

    def in_order(self, values: Any) -> Any:
        """Collect the values of each example that a step returns, on the host of every process.

        They are [B, ...] in the order of the batch, with the examples of all processes.
        """

        def whole(x: jax.Array) -> np.ndarray:
            if self.process[1] == 1:
                part = np.asarray(x)
            else:
                # This process's part of the batch; the parts of the processes are consecutive.
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
        """Bytes of memory of a device; for a CPU device, its share of the machine's memory.

        0 if that is unknown, as on Windows.
        """
        stats = self._own_devices()[0].memory_stats()
        if stats and "bytes_limit" in stats:
            return stats["bytes_limit"]
        if not hasattr(os, "sysconf"):
            return 0
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
        """Turn JAX's error for the loss of another process into a `LostProcessError`."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if self.process[1] == 1:
                raise
            raise LostProcessError(
                f"another process of the run was lost ({short(error, 200)}); start all of them "
                "again to resume from the last checkpoint",
                PREEMPTED,
            ) from error

    def broadcast_from_first(self, number: int) -> int:
        """The value of this number in the first process."""
        return (
            number
            if self.process[1] == 1
            else int(multihost_utils.broadcast_one_to_all(np.int32(number)))
        )

    def broadcast_steps(self, steps: Sequence[int]) -> list[int]:
        """These numbers of the first process, in all processes."""
        count = self.broadcast_from_first(len(steps))
        own = [*steps, *[0] * count][:count]
        return [self.broadcast_from_first(step) for step in own]

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
                f"{who} process of the run failed; see its error message", exit_code=1
            )
        return result

    def on_first_process(self, action: Callable[[], Any]) -> Any:
        """Run an action on the workdir in the first process alone, while the others wait.

        Returns:
          The action's result in the first process, None in the others.

        Raises:
          UserError: in the others if the action failed in the first, which raises its error.
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
        """The sharding of each value of the whole state."""
        return jax.tree.map(
            lambda leaf: self._sharding(*(self._cut(leaf.shape) if self.mode == "fsdp" else ())),
            abstract,
        )

    def _cut(self, shape: tuple[int, ...]) -> list[str | None]:
        """The sharded axes of a value: if it is large, its longest axis that the devices divide."""
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

    __getattr__ = moved.methods_of("jaxconv.train.parallel.Parallel")


def in_32_bits(function: Callable) -> Callable:
    """Run a function with JAX's 64-bit mode off: a run's numbers must not depend on it."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **settings: Any) -> Any:
        with jax.enable_x64(False):
            return function(*arguments, **settings)

    return wrapped


def make_parallel(mode: str, devices: Sequence[Any] | None = None) -> Parallel:
    """`jit`, `pmap` or `fsdp` over the given devices, by default all devices."""
    return Parallel(mode, tuple(jax.devices() if devices is None else devices))


def _first_copy(x: jax.Array) -> jax.Array:
    return x.addressable_shards[0].data if isinstance(x, jax.Array) else x


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """A uint32 that changes with any bit of any value of the tree, the same for any sharding."""
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
        # 8 bytes, which only own code has, are two numbers.
        kind = {8: jnp.uint32, 4: jnp.uint32, 2: jnp.uint16, 1: jnp.uint8}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, kind).reshape(-1)
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
    """Whether any member, along the first axis, has no value that is infinite or NaN."""
    return jnp.any(jax.vmap(all_finite)(tree))
