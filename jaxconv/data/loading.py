"""Loading: how batches reach the device.

    Resident   the whole set is in device memory; a batch is a list of indices, gathered on the
               device
    Streamed   threads read and decode examples; batches are sent ahead of the step that needs them

The order is the same either way: the position in the data is a function of (seed, step). Step n
trains on examples n * B ... (n + 1) * B - 1 of an endless sequence of shuffled epochs, whatever
came before. A batch may span two epochs, so every batch is full and every example comes once per
epoch. With p processes, process i has the i-th part of every batch.
"""

import collections
import dataclasses
import functools
import itertools
import logging
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv import moved
from jaxconv.data.interface import Arrays, Batch, DamagedError, Source, evenly, generator
from jaxconv.data.stored import read_patiently
from jaxconv.errors import UserError

log = logging.getLogger(__name__)

# The most examples that a thread reads at a time.
_CHUNK = 16


def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order [examples] int32 of one epoch, a permutation drawn from (seed, epoch)."""
    return _orders(seed, examples)(epoch)


@functools.lru_cache(maxsize=64)
def _orders(seed: int, examples: int) -> Callable[[int], np.ndarray]:
    """Epoch -> its order; the last two are cached, since a batch may span two epochs."""

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return generator(seed, epoch).permutation(examples).astype(np.int32)

    return order


def train_indices(
    seed: int, step: int, batch_size: int, examples: int, repeats: int = 1
) -> np.ndarray:
    """Indices [batch_size] int32 of the examples of one training step, counted from 0.

    With `repeats`, which must divide the batch size, the batch holds batch_size / repeats examples,
    each `repeats` times: repeated augmentation (Hoffer et al. 2020, arXiv:1901.09335; Berman et al.
    2019, arXiv:1902.05509). The steps of an epoch then see 1 / repeats of all examples.
    """
    position = _positions(step, batch_size // repeats)
    epochs = position // examples
    parts = [
        epoch_order(seed, int(e), examples)[position[epochs == e] % examples]
        for e in range(epochs[0], epochs[-1] + 1)
    ]
    # Tiled, not repeated in place, so that each device's part holds different examples.
    return np.tile(np.concatenate(parts), repeats)


def _positions(step: int, batch_size: int) -> np.ndarray:
    """The positions of a step's examples in the endless sequence of epochs."""
    return np.arange(step * batch_size, (step + 1) * batch_size)


def train_mirrored(
    seed: int, step: int, batch_size: int, examples: int, repeats: int = 1
) -> np.ndarray:
    """Which examples [batch_size] bool of a training step an alternating flip mirrors.

    In the first epoch it mirrors those that a coin toss of the seed chooses; from then on each
    example is mirrored in every second epoch.
    """
    odd = _positions(step, batch_size // repeats) // examples % 2 == 1
    index = train_indices(seed, step, batch_size, examples, repeats)
    return _coins(seed, examples)[index] ^ np.tile(odd, repeats)


@functools.lru_cache(maxsize=64)
def _coins(seed: int, examples: int) -> np.ndarray:
    """One toss per example, [examples] bool."""
    return generator(seed, "mirrored").random(examples) < 0.5


def eval_batches(examples: int, batch_size: int) -> list[dict[str, np.ndarray]]:
    """Batches that hold every example exactly once: `index` [batch_size] int32 and `mask`
    [batch_size] float32.

    The last batch is padded with example 0, for which the mask is 0.
    """
    padded = -(-examples // batch_size) * batch_size
    index = np.where(np.arange(padded) < examples, np.arange(padded), 0).astype(np.int32)
    mask = (np.arange(padded) < examples).astype(np.float32)
    return [
        {"index": i, "mask": m}
        for i, m in zip(index.reshape(-1, batch_size), mask.reshape(-1, batch_size), strict=True)
    ]


def take(data: dict[str, jax.Array], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch with its `image` [B, ...] and targets: as sent, or gathered from the resident set
    by `index`.
    """
    if "image" in batch:
        return batch
    index = batch["index"]
    return batch | {
        name: jnp.take(values, index, axis=0, mode="clip") for name, values in data.items()
    }


@dataclasses.dataclass(frozen=True)
class Order:
    """The order in which a run sees its examples.

    Attributes:
      seeds: the run's seed, or several if each member of an ensemble has its own order.
      batch_size: examples per step, over all processes.
      repeats: see `train_indices`.
      mirrors: whether a batch says which examples an alternating flip mirrors.
    """

    seeds: tuple[int, ...]
    batch_size: int
    repeats: int = 1
    mirrors: bool = False

    @property
    def axis(self) -> int:
        """The axis of the examples in a step's batch: 1 if the ensemble's axis comes first."""
        return int(len(self.seeds) > 1)

    def indices(self, step: int, examples: int) -> np.ndarray:
        """Indices [B] or [K, B] int32 of one step, counted from 0."""
        return self._of_each(train_indices, step, examples)

    def mirrored(self, step: int, examples: int) -> dict[str, np.ndarray]:
        """`mirrored` [B] or [K, B] bool of one step, see `train_mirrored`; empty without it."""
        if not self.mirrors:
            return {}
        return {"mirrored": self._of_each(train_mirrored, step, examples)}

    def _of_each(self, of: Callable[..., np.ndarray], step: int, examples: int) -> np.ndarray:
        rows = [of(seed, step, self.batch_size, examples, self.repeats) for seed in self.seeds]
        return np.stack(rows) if self.axis else rows[0]


class ResidentLoader:
    """Batches of indices into a set in device memory.

    Args:
      source: what to put into device memory.
      parallel: places it on the devices.

    Attributes:
      data: `image` [N, ...] and the targets [N, ...] on the devices, for `take`.
      examples: N.
      left_out: examples that an evaluation cannot count: 0.
    """

    def __init__(self, source: Arrays, parallel: Any):
        self.examples, self.left_out, self._parallel = len(source), 0, parallel
        self._source = source
        self.data = parallel.replicate({"image": source.images, **source.arrays})

    def train_batches(
        self, order: Order, first: int, last: int, calls: Iterable[int] | None = None
    ) -> Iterator[Batch]:
        """The batches of steps first ... last - 1: `index` and `position`, a function of (seed,
        step).

        Args:
          order: of the run.
          first, last: steps, counted from 0.
          calls: how many steps each call takes, 1 by default; the batches of several steps are
            stacked along a leading axis.
        """
        axis, step = order.axis, first
        position = np.broadcast_to(
            np.arange(order.batch_size, dtype=np.int32), order.indices(first, self.examples).shape
        )
        for count in itertools.repeat(1, last - first) if calls is None else calls:
            steps = [
                {
                    "index": order.indices(step + n, self.examples),
                    "position": position,
                    **order.mirrored(step + n, self.examples),
                }
                for n in range(count)
            ]
            batch = (
                steps[0]
                if count == 1
                else {name: np.stack([batch[name] for batch in steps]) for name in steps[0]}
            )
            where = axis + (count > 1)
            yield self._parallel.shard(
                {name: self._parallel.own_part(value, where) for name, value in batch.items()},
                where,
            )
            step += count

    def some_images(self, count: int) -> np.ndarray:
        """Up to `count` images [n, ...] of the set, evenly spaced, on the host."""
        return self._source.images[evenly(self.examples, count)]

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Every example once: `index` and `mask`."""
        for batch in eval_batches(self.examples, batch_size):
            yield self._parallel.shard(
                {name: self._parallel.own_part(value) for name, value in batch.items()}
            )


class StreamedLoader:
    """Batches that threads read and decode while the devices compute.

    Args:
      source: what to read.
      parallel: places the batches on the devices.
      settings: `config.data`; `threads`, `prefetch` and `damaged_share` are used.

    Attributes:
      data: empty; the batches hold everything.
      examples: N.
    """

    def __init__(self, source: Source, parallel: Any, settings: Any):
        self.data: dict[str, Any] = {}
        self.examples, self._parallel, self._prefetch = len(source), parallel, settings.prefetch
        self._reader = Reader(source, settings.threads, settings.damaged_share, parallel.process)

    @property
    def left_out(self) -> int:
        """Examples that the last evaluation could not read, and did not count."""
        return self._parallel.total(self._reader.left_out)

    def train_batches(
        self, order: Order, first: int, last: int, calls: Iterable[int] | None = None
    ) -> Iterator[Batch]:
        """The batches of steps first ... last - 1: `image`, the targets and `position`, a function
        of (seed, step); `calls` are all 1.
        """
        each = [
            self._reader.train_batches(
                seed, first, last, order.batch_size, order.repeats, order.mirrors
            )
            for seed in order.seeds
        ]
        if not order.axis:
            return self._ahead(each[0])
        together = (
            {name: np.stack([batch[name] for batch in members]) for name in members[0]}
            for members in zip(*each, strict=True)
        )
        return self._ahead(together, order.axis)

    def some_images(self, count: int) -> np.ndarray:
        """Up to `count` images [n, ...] of the set, evenly spaced, on the host."""
        return np.stack([example["image"] for example in self._reader.examples(count)])

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Every example once: `image`, the targets, `index` and `mask`, also 0 for damaged ones."""
        return self._ahead(self._reader.eval_batches(batch_size))

    def _ahead(self, batches: Iterator[Batch], axis: int = 0) -> Iterator[Batch]:
        """The batches on the devices, `prefetch` of them sent ahead."""
        sent: collections.deque[Batch] = collections.deque()
        for batch in batches:
            sent.append(self._parallel.place(batch, axis))
            if len(sent) > self._prefetch:
                yield sent.popleft()
        yield from sent


class Reader:
    """Batches on the host, read by threads; the number of threads does not change them.

    Args:
      source: what to read.
      threads: 0 for twice the number of cores, since some threads wait for files.
      damaged_share: share of the examples that may be damaged; beyond it, reading stops.
      process: (i, p): this is process i of p, which reads the i-th part of every batch.

    An example counts as damaged until it is read after all, or the next evaluation begins.
    """

    def __init__(
        self,
        source: Source,
        threads: int = 0,
        damaged_share: float = 0.001,
        process: tuple[int, int] = (0, 1),
    ):
        self.source, self.threads, self.damaged_share, self.process = (
            source,
            threads or 2 * (os.cpu_count() or 1),
            damaged_share,
            process,
        )
        self._damaged: set[int] = set()
        self._lock = threading.Lock()

    @property
    def damaged(self) -> set[str]:
        """Names of the examples that could not be read when they were last tried."""
        with self._lock:
            return {self.source.name(i) for i in self._damaged}

    @property
    def left_out(self) -> int:
        """How many they are."""
        return len(self._damaged)

    def train_batches(
        self,
        seed: int,
        first: int,
        last: int,
        batch_size: int,
        repeats: int = 1,
        mirrors: bool = False,
    ) -> Iterator[Batch]:
        """This process's part of the batches of steps first ... last - 1: `image`, `label`,
        `position` in the global batch and, if `mirrors`, `mirrored`.

        A damaged example is replaced by the next good one.
        """

        @functools.lru_cache(maxsize=64)
        def indices(step: int) -> list[int]:
            return train_indices(seed, step, batch_size, len(self.source), repeats).tolist()

        @functools.lru_cache(maxsize=64)
        def mirrored(step: int) -> np.ndarray:
            return train_mirrored(seed, step, batch_size, len(self.source), repeats)

        def read(local: int) -> Batch:
            step, position = self._place(local, batch_size)
            index = indices(first + step)[position]
            for other in range(len(self.source)):
                example = self._try_to_read(
                    (index + other) % len(self.source),
                    (seed, (first + step) * batch_size + position),
                )
                if example is not None:
                    place = {"position": np.int32(position)}
                    if mirrors:
                        place["mirrored"] = mirrored(first + step)[position]
                    return example | place
            raise UserError("no example can be read", exit_code=1)

        return self._read((last - first) * self._local(batch_size), read, self._local(batch_size))

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """This process's part of batches that hold every example once: `image`, `label`, `index`
        and `mask`, 0 for padding and damaged examples.
        """
        self._damaged.clear()
        image = np.zeros(self.source.element.shape, self.source.element.dtype)
        empty = {"image": image, "index": np.int32(0), "mask": np.float32(0)}
        empty |= {name: np.zeros(t.shape, t.dtype) for name, t in self.source.targets.items()}

        def read(local: int) -> Batch:
            step, position = self._place(local, batch_size)
            i = step * batch_size + position
            example = self._try_to_read(i, (0, i)) if i < len(self.source) else None
            return (
                empty
                if example is None
                else example | {"index": np.int32(i), "mask": np.float32(1)}
            )

        return self._read(
            -(-len(self.source) // batch_size) * self._local(batch_size),
            read,
            self._local(batch_size),
        )

    def examples(self, most: int = 0) -> Iterator[Batch]:
        """Every readable example, in order and in one process: `image`, the targets, `index`.

        With `most`, up to so many of them, evenly spaced.
        """
        self._damaged.clear()
        places = evenly(len(self.source), most or len(self.source)).tolist()
        count = len(places)
        for examples in self._chunks(
            count,
            lambda n: (self._try_to_read(places[n], (0, places[n])), places[n]),
            _chunk_size(count),
            0,
        ):
            for example, i in examples:
                if example is not None:
                    yield example | {"index": np.int32(i)}

    def _local(self, batch_size: int) -> int:
        number, processes = self.process
        if batch_size % processes:
            raise UserError(
                f"{batch_size} examples per batch / {processes} processes = "
                f"{batch_size / processes:.2f} is not a whole number"
            )
        return batch_size // processes

    def _place(self, local: int, batch_size: int) -> tuple[int, int]:
        """The step, and the position in the global batch, of this process's example `local`."""
        step, offset = divmod(local, self._local(batch_size))
        return step, self.process[0] * self._local(batch_size) + offset

    def _read(self, count: int, read: Any, batch_size: int) -> Iterator[Batch]:
        # A thread reads several examples at a time: handing them over one at a time costs a sixth
        # of the time that it takes to decode a photograph.
        chunks = self._chunks(count, read, _chunk_size(batch_size), 2 * batch_size)
        try:
            for _ in range(count // batch_size):
                examples: list[Batch] = []
                while len(examples) < batch_size:
                    examples += next(chunks)
                yield {
                    name: np.stack([example[name] for example in examples]) for name in examples[0]
                }
        finally:
            chunks.close()

    def _chunks(
        self, count: int, read: Any, size: int, ahead: int
    ) -> Generator[list[Any], None, None]:
        """What the threads read, in order, as lists of `size`, which divides `count`; they read at
        least `ahead` items ahead.
        """
        import grain

        def read_chunk(chunk: int) -> list[Any]:
            return [read(local) for local in range(chunk * size, (chunk + 1) * size)]

        options = grain.ReadOptions(
            num_threads=self.threads, prefetch_buffer_size=max(ahead // size, 2 * self.threads)
        )
        chunks = iter(
            grain.MapDataset.range(count // size).map(read_chunk).to_iter_dataset(options)
        )
        try:
            yield from chunks
        finally:
            chunks.close()

    def _try_to_read(self, i: int, key: tuple[int, int]) -> Batch | None:
        try:
            # What could not be read the last time is not waited for again.
            example = read_patiently(self.source, i, key, i not in self._damaged)
        except DamagedError as error:
            self._note(i, str(error))
            return None
        if i in self._damaged:
            with self._lock:
                self._damaged.discard(i)
        return example

    def _note(self, i: int, why: str) -> None:
        with self._lock:
            if i in self._damaged:
                return
            self._damaged.add(i)
            count = len(self._damaged)
        name = self.source.name(i)
        log.warning("left out (%d so far): %s: %s", count, name, why)
        # Each process sees its part of the examples, and is allowed its part of the damaged ones.
        if count > self.damaged_share * len(self.source) / self.process[1]:
            raise UserError(
                f"{count} of {len(self.source)} examples are damaged, more than a share of "
                f"{self.damaged_share}; the last: {name}: {why}; "
                "fix them, or allow more with --config.data.damaged_share",
                exit_code=1,
            )


def _chunk_size(examples: int) -> int:
    return next(size for size in range(_CHUNK, 0, -1) if examples % size == 0)


def make_loader(source: Source, parallel: Any, settings: Any) -> ResidentLoader | StreamedLoader:
    """A resident loader for a source in memory, a streamed one for any other.

    `settings` is `config.data`.
    """
    return (
        ResidentLoader(source, parallel)
        if isinstance(source, Arrays)
        else StreamedLoader(source, parallel, settings)
    )


__getattr__ = moved.names_of(__name__)
