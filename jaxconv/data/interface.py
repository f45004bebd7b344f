"""What every source of examples offers: length, random access, class names, shapes."""

import dataclasses
import zlib
from typing import Any

import jax
import numpy as np

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Source:
    """Labelled images in memory.

    Attributes:
      images: [N, H, W, C] uint8.
      labels: [N] int32, indices into `class_names`.
      class_names: one name a class.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.images[i], "label": self.labels[i]}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.images.shape[1:]


def generator(seed: int, stream: int | str, index: int = 0) -> np.random.Generator:
    """A random generator that is a function of the seed and of what it is for.

    Args:
      seed: any whole number; taken modulo 2**64.
      stream: a number, or a name such as a split's.
      index: of an example within the stream.
    """
    number = zlib.crc32(stream.encode()) if isinstance(stream, str) else stream
    # The index is the counter's highest word: the draws of two examples never meet.
    key, counter = np.array([seed % 2**64, number], np.uint64), np.array([0, 0, 0, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def example_keys(key: jax.Array, position: jax.Array) -> jax.Array:
    """One JAX key an example, from its position [B] in the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, position)


def checksum(source: Source) -> int:
    """CRC-32 of all images and labels."""
    return zlib.crc32(np.ascontiguousarray(source.labels), zlib.crc32(np.ascontiguousarray(source.images)))


def describe(source: Source) -> dict[str, Any]:
    """What a network depends on: the image's shape and the names of the classes, as plain lists for JSON."""
    return {"image_shape": list(source.image_shape), "class_names": list(source.class_names)}
