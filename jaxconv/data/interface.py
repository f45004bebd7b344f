"""What every source of examples offers: length, random access, class names, shapes.

    Arrays   examples in memory
    Part     some of the examples of another source
    Stored   examples that are read and decoded one by one, whenever they are asked for: stored.py

An example's element is called `image` throughout, whatever it is. There are three kinds:

    image    [H, W, C] uint8; augmented and normalised on the device
    signal   a waveform [L, C], a spectrogram [T, F, C], a volume [D, H, W, C] ...: normalised on
             the device, not augmented
    text     codes [L] uint8, which the device makes one-hot [L, V]
"""

import abc
import dataclasses
import logging
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

log = logging.getLogger(__name__)


class DamagedError(Exception):
    """An example cannot be read; the message says why."""


# Arrays by name, on the host or on the device: `image`, `label`, `position` ...
Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Element:
    """The form of every example's element.

    Attributes:
      shape: as it is stored, without the batch.
      kind: `image`, `signal` or `text`.
      dtype: as it is stored.
      codes: V, of a text.
    """

    shape: tuple[int, ...]
    kind: str = "image"
    dtype: str = "uint8"
    codes: int = 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape that a network sees."""
        return (*self.shape, self.codes) if self.kind == "text" else self.shape

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Target:
    """What an example has beside its `image`, with a static shape: a label, boxes, a mask ...

    Attributes:
      shape: of one example's.
      dtype: the same at rest and on the devices.
      moves: how it moves with the pixels of its image, see geometry.py: `boxes`, `points`, `mask`,
        `mask:255`; empty where it does not.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "int32"
    moves: str = ""

    @property
    def size(self) -> int:
        """Bytes; of a single number, which hardly count beside an image, none."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize if self.shape else 0


def moves_of(targets: Mapping[str, Target]) -> dict[str, str]:
    """How the targets move that move with the pixels of their image, by name."""
    return {name: target.moves for name, target in targets.items() if target.moves}


# What a source has that tells classes apart.
LABEL = {"label": Target()}
# Names that a batch has beside the targets of its examples.
RESERVED = ("image", "position", "index", "mask", "target")


class Source(abc.ABC):
    """Examples with random access: `image`, and the targets.

    Attributes:
      class_names: one name a class; empty where there are none.
      targets: what an example has beside its image, by name; names of `RESERVED` are taken.
      element: the form of the examples.
      random: whether random crops of `config.augment` are made as examples are read, so that no two
        passes are alike.
      decoder: what made the elements from files, with versions; nothing where `checksum` covers the
        elements themselves.
    """

    class_names: tuple[str, ...]
    element: Element
    targets: Mapping[str, Target] = LABEL
    decoder: str = ""
    random: bool = False

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, i: int, key: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """Example i: `image` and the targets by name.

        Args:
          i: from 0.
          key: a seed and a position in the run's endless sequence of examples, of which random
            crops are a function.

        Raises:
          DamagedError: it cannot be read.
        """

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"there are {len(self)} examples; there is no example {i}")
        return self.read(i % len(self))

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32; where they are not at hand, all examples are read."""
        return np.array([self.read(i)["label"] for i in range(len(self))], np.int32)

    @abc.abstractmethod
    def name(self, i: int) -> str:
        """What example i is called in messages, such as its path."""

    @abc.abstractmethod
    def checksum(self) -> int:
        """A CRC-32 that changes when the examples do."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape that a network sees, (H, W, C) for images."""
        return self.element.input_shape

    @property
    def size(self) -> int:
        """Bytes of all elements, and of the targets but for single numbers."""
        return len(self) * (self.element.size + sum(t.size for t in self.targets.values()))


def as_targets(value: Any) -> dict[str, Any]:
    """Targets by name: a mapping as it is, a number as the `label`."""
    return dict(value) if isinstance(value, Mapping) else {"label": np.int32(value)}


@dataclasses.dataclass(frozen=True)
class Arrays(Source):
    """Examples in memory.

    Attributes:
      images: [N, ...] of uint8 for images and texts.
      values: the targets [N, ...] by name; an array [N] int32 alone is the `label`, indices into
        `class_names`.
      class_names: one name a class.
      kind: of the elements.
      codes: V, of a text.
      name_of: what example i is called, such as the path that it was read from.
      moves: of the targets that move with the pixels, how; see `Target`.
    """

    images: np.ndarray
    values: np.ndarray | Mapping[str, np.ndarray]
    class_names: tuple[str, ...] = ()
    kind: str = "image"
    codes: int = 0
    name_of: Callable[[int], str] = "example {}".format
    moves: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            object.__setattr__(self, "values", {"label": self.values})

    def __len__(self) -> int:
        return len(next(iter(self.values.values()), self.images))

    @property
    def labels(self) -> np.ndarray:
        """The target `label` [N] int32."""
        return self.values["label"]

    @property
    def element(self) -> Element:  # type: ignore[override]
        """The form of the examples."""
        return Element(self.images.shape[1:], self.kind, str(self.images.dtype), self.codes)

    @property
    def targets(self) -> dict[str, Target]:  # type: ignore[override]
        """What an example has beside its image."""
        return {
            name: Target(value.shape[1:], str(value.dtype), self.moves.get(name, ""))
            for name, value in self.values.items()
        }

    def read(self, i: int, key: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """Example i: `image` and the targets."""
        return {"image": self.images[i]} | {name: v[i] for name, v in self.values.items()}

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32."""
        return self.labels

    def name(self, i: int) -> str:
        """What example i is called in messages."""
        return self.name_of(i)

    def checksum(self) -> int:
        """CRC-32 of all images and targets."""
        value = zlib.crc32(np.ascontiguousarray(self.images))
        for target in self.values.values():
            value = zlib.crc32(np.ascontiguousarray(target), value)
        return value


def evenly(count: int, most: int, first: int = 0) -> np.ndarray:
    """At most so many of the numbers first ... count - 1, evenly spread over them, rising."""
    return np.unique(np.linspace(first, count - 1, min(count - first, most)).round().astype(int))


class Part(Source):
    """So many examples of another source, evenly spread over it, in their order."""

    def __init__(self, source: Source, count: int):
        self.source, self.places = source, evenly(len(source), count)
        self.class_names, self.element, self.targets = (
            source.class_names,
            source.element,
            source.targets,
        )
        self.decoder, self.random = source.decoder, source.random

    def __len__(self) -> int:
        return len(self.places)

    def read(self, i: int, key: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """Example i of the part, as the source reads it."""
        return self.source.read(int(self.places[i]), key)

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32."""
        return self.source.labels_of_all()[self.places]

    def name(self, i: int) -> str:
        """What the source calls the example."""
        return self.source.name(int(self.places[i]))

    def checksum(self) -> int:
        """The source's, with the number of examples."""
        return zlib.crc32(len(self).to_bytes(8, "little"), self.source.checksum())


def size_in_words(shape: tuple[int, ...], kind: str) -> str:
    """`640x480 pixels` of an image (480, 640, C); of other kinds every number, with `x` between."""
    return f"{shape[1]}x{shape[0]} pixels" if kind == "image" else " x ".join(map(str, shape))


def generator(seed: int, stream: int | str, index: int = 0) -> np.random.Generator:
    """A random generator that is a function of the seed and of what it is for.

    Args:
      seed: any whole number; taken modulo 2**64.
      stream: a number, or a name such as a split's.
      index: of an example within the stream.
    """
    number = zlib.crc32(stream.encode()) if isinstance(stream, str) else stream
    # The index is the counter's highest word: the draws of two examples never meet.
    key, counter = (
        np.array([seed % 2**64, number], np.uint64),
        np.array([0, 0, 0, index], np.uint64),
    )
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def example_keys(key: jax.Array, position: jax.Array) -> jax.Array:
    """One JAX key an example, from its position [B] in the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, position)


def describe(source: Source) -> dict[str, Any]:
    """What a network depends on: shape and kind of its input, whether it was cropped, the classes,
    and the targets where they are more than a label; for JSON.
    """
    described = {
        "image_shape": list(source.image_shape),
        "kind": source.element.kind,
        "cropped": source.random,
        "class_names": list(source.class_names),
    }
    if dict(source.targets) != LABEL:
        described["targets"] = {
            name: {**dataclasses.asdict(target), "shape": list(target.shape)}
            for name, target in source.targets.items()
        }
    return described


def read_targets(description: Mapping[str, Any]) -> dict[str, Target]:
    """The targets of an example, by what `describe` says."""
    if "targets" not in description:
        return LABEL
    return {
        name: Target(tuple(value["shape"]), value["dtype"], value["moves"])
        for name, value in description["targets"].items()
    }
