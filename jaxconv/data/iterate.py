"""Batches for other training loops: in the order of jaxconv's own, on the host or on devices.

for batch in jaxconv.data.batches(source, 128, seed=0, epochs=10):
    state = my_step(state, batch["image"], batch["label"])
for batch in jaxconv.data.batches(test_source, 500, train=False):
    right += sum(my_hits(state, batch) * batch["mask"])
"""

import collections
import itertools
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from jaxconv.data.interface import Arrays, Batch, Source
from jaxconv.data.loading import Reader, eval_batches, train_indices
from jaxconv.errors import UserError

# Batches that are sent to the devices ahead of the step that needs them.
_AHEAD = 2
# Steps of a training without an end.
_ENDLESS = 2**31 - 1


def batches(
    source: Source,
    batch_size: int,
    seed: int = 0,
    *,
    epochs: float = 0.0,
    steps: int = 0,
    start: int = 0,
    train: bool = True,
    drop_remainder: bool = False,
    repeats: int = 1,
    sharding: jax.sharding.Sharding | None = None,
    threads: int = 0,
    damaged_share: float = 0.001,
) -> Iterator[Batch]:
    """Batches of a source: `image` [B, ...] as stored, and the targets [B, ...] by name.

    While training, step n has the examples that step n of a jaxconv run with this seed has, in the
    same order: batches are full, may span two epochs, and begin at any step. They also have
    `position` [B] int32, which `jaxconv.data.augment` draws by. In evaluation every example comes
    once and in order; batches have `index` [B] int32 and `mask` [B] float32, 0 where the last is
    filled up and where an example cannot be read.

    Args:
      source: such as `from_arrays` or `from_sequence` returns.
      batch_size: B, over all devices and processes.
      seed: of the order.
      epochs, steps: how long, at most one of them; without either, training has no end, and an
        evaluation is one pass.
      start: the first step, counted from 0: to resume, the number of steps done.
      train: shuffle, by seed and step.
      drop_remainder: in evaluation, drop an incomplete last batch.
      repeats: while training, times that each example comes in a batch, see `train_indices`.
      sharding: how a batch lies on devices, such as `NamedSharding(mesh, PartitionSpec("data"))`;
        by default it is numpy arrays on the host. With several processes, each gives its part.
      threads: that read a source which is not in memory; 0 for twice the number of cores.
      damaged_share: share of such examples that may be unreadable; they are replaced by the next.

    Raises:
      UserError: an argument does not fit, or too many examples cannot be read.
    """
    _check(len(source), batch_size, epochs, steps, start, train, drop_remainder, repeats)
    process = _process_of(sharding, batch_size)
    if isinstance(source, Arrays):
        reader: ArrayReader | Reader = ArrayReader(source, process)
    else:
        reader = Reader(source, threads, damaged_share, process)
    if train:
        last = start + steps if steps else _ENDLESS
        last = max(1, round(epochs * len(source) / batch_size)) if epochs else last
        found = reader.train_batches(seed, start, last, batch_size, repeats)
    else:
        whole = len(source) // batch_size
        count = whole if drop_remainder else -(-len(source) // batch_size)
        last = min(count, start + steps) if steps else count
        found = itertools.islice(reader.eval_batches(batch_size), start, last)
    return found if sharding is None else _ahead(found, sharding)


def _check(
    examples: int,
    batch_size: int,
    epochs: float,
    steps: int,
    start: int,
    train: bool,
    drop_remainder: bool,
    repeats: int,
) -> None:
    """Raise UserError for arguments that do not fit."""
    if not examples:
        raise UserError("batches: the source holds no examples")
    if batch_size < 1 or min(steps, start, epochs) < 0 or repeats < 1:
        raise UserError(
            f"batches: batch_size is {batch_size}, steps {steps}, epochs {epochs}, start {start}, "
            f"repeats {repeats}; batch_size and repeats must be at least 1, the others at least 0"
        )
    if epochs and (steps or not train):
        raise UserError(
            f"batches: epochs is {epochs}; "
            + ("an evaluation is one pass" if not train else f"steps is {steps}: give one of them")
        )
    if batch_size % repeats or (repeats > 1 and not train):
        raise UserError(
            f"batches: repeats is {repeats}; it is for training, and must divide batch_size, "
            f"{batch_size}"
        )
    if drop_remainder and train:
        raise UserError(
            "batches: drop_remainder is for train=False; in training batches span epochs, so "
            "all are full"
        )


def _process_of(sharding: jax.sharding.Sharding | None, batch_size: int) -> tuple[int, int]:
    """(i, p): this is process i of p that share a batch; raises UserError if it cannot be split."""
    if sharding is None:
        return 0, 1
    try:
        sharding.shard_shape((batch_size,))
    except ValueError as error:
        raise UserError(
            f"batches: {batch_size} examples cannot be laid out by {sharding}: {error}"
        ) from error
    processes = sorted({device.process_index for device in sharding.device_set})
    return processes.index(jax.process_index()), len(processes)


class ArrayReader:
    """The batches of `loading.Reader`, of a source in memory.

    Args:
      source: in memory.
      process: (i, p): this is process i of p, which reads the i-th part of every batch.
    """

    def __init__(self, source: Arrays, process: tuple[int, int] = (0, 1)):
        self.source, self.process = source, process

    def train_batches(
        self, seed: int, first: int, last: int, batch_size: int, repeats: int = 1
    ) -> Iterator[Batch]:
        """The batches of steps first ... last - 1: `image`, the targets and `position`."""
        position = np.arange(batch_size, dtype=np.int32)
        for step in range(first, last):
            index = train_indices(seed, step, batch_size, len(self.source), repeats)
            yield self._gathered(index) | {"position": self._own(position)}

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Every example once: `image`, the targets, `index` and `mask`."""
        for batch in eval_batches(len(self.source), batch_size):
            own = {name: self._own(value) for name, value in batch.items()}
            yield self._gathered(batch["index"]) | own

    def _gathered(self, index: np.ndarray) -> Batch:
        own = self._own(index)
        targets = {name: value[own] for name, value in self.source.arrays.items()}
        return {"image": self.source.images[own], **targets}

    def _own(self, values: np.ndarray) -> np.ndarray:
        return np.split(values, self.process[1])[self.process[0]]


def _ahead(found: Iterable[Batch], sharding: jax.sharding.Sharding) -> Iterator[Batch]:
    """The batches on the devices, some of them sent ahead."""
    sent: collections.deque[Batch] = collections.deque()
    for batch in found:
        sent.append(
            {
                name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
                for name, value in batch.items()
            }
        )
        if len(sent) > _AHEAD:
            yield sent.popleft()
    yield from sent
