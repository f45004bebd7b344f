"""Loading: how batches reach the device.

The resident way: the whole set lies in device memory as uint8, and a batch is a list of indices, gathered on the device. The position
in the data is a function of (seed, step): step n trains on examples n * B ... (n + 1) * B - 1 of an endless sequence of shuffled epochs,
whatever came before. Epochs run on into one another, so that every batch is full and every example comes once an epoch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data.interface import Source, generator


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order [examples] int32 of one epoch, a permutation drawn from (seed, epoch)."""
    return generator(seed, epoch).permutation(examples).astype(np.int32)


def train_indices(seed: int, step: int, batch_size: int, examples: int, repeats: int = 1) -> np.ndarray:
    """Indices [batch_size] int32 of the examples of one training step, counted from 0.

    With `repeats`, which divides the batch, it holds batch_size / repeats examples, each so many times: repeated augmentation (Hoffer et
    al. 2020, arXiv:1901.09335; Berman et al. 2019, arXiv:1902.05509). The steps of an epoch then see 1 / repeats of all examples.
    """
    different = batch_size // repeats
    position = np.arange(step * different, (step + 1) * different)
    epochs = position // examples
    parts = [epoch_order(seed, int(e), examples)[position[epochs == e] % examples] for e in range(epochs[0], epochs[-1] + 1)]
    # One round after the other, so that the devices' parts hold different examples.
    return np.tile(np.concatenate(parts), repeats)


def eval_batches(examples: int, batch_size: int) -> list[dict[str, np.ndarray]]:
    """Batches that hold every example exactly once: `index` [batch_size] int32 and `mask` [batch_size] float32.

    The last batch is filled up with example 0, masked out by 0.
    """
    padded = -(-examples // batch_size) * batch_size
    index = np.where(np.arange(padded) < examples, np.arange(padded), 0).astype(np.int32)
    mask = (np.arange(padded) < examples).astype(np.float32)
    return [{"index": i, "mask": m} for i, m in zip(index.reshape(-1, batch_size), mask.reshape(-1, batch_size), strict=True)]


def resident(source: Source) -> dict[str, np.ndarray]:
    """What is put into device memory: `images` [N, H, W, C] uint8 and `labels` [N] int32."""
    return {"images": source.images, "labels": source.labels}


def take(data: dict[str, jax.Array], index: jax.Array) -> dict[str, jax.Array]:
    """Gather a batch: `image` [B, H, W, C] uint8 and `label` [B] int32."""
    return {"image": jnp.take(data["images"], index, axis=0, mode="clip"), "label": jnp.take(data["labels"], index, mode="clip")}
