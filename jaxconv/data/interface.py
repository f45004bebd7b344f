"""The interface of every source of examples: length, random access, class names, shapes.

    Arrays   examples in memory
    Part     a subset of another source's examples
    Stored   examples that are read and decoded on demand: stored.py

An example's element is always called `image`, whatever its kind. There are three kinds:

    image    [H, W, C] uint8; augmented and normalised on the device
    signal   a waveform [L, C], a spectrogram [T, F, C], a volume [D, H, W, C] ...: normalised on
             the device, not augmented
    text     codes [L]: of bytes or characters, uint8, which the device makes one-hot [L, V]; of
             words, uint16, which a network embeds
"""

import abc
import dataclasses
import logging
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import numpy as np

from jaxconv.errors import UserError

log = logging.getLogger(__name__)


class DamagedError(Exception):
    """An example cannot be read; the message says why."""


# Arrays by name, on the host or on the device: `image`, `label`, `position` ...
Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Element:
    """The form of every example's element.

    Attributes:
      shape: as stored, without the batch axis.
      kind: `image`, `signal` or `text`.
      dtype: as stored.
      codes: V, for texts.
    """

    shape: tuple[int, ...]
    kind: str = "image"
    dtype: str = "uint8"
    codes: int = 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape that the network sees."""
        return (*self.shape, self.codes) if self.kind == "text" else self.shape

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Target:
    """An entry of an example other than its `image`, of static shape: a label, boxes, a mask ...

    Attributes:
      shape: per example.
      dtype: the same on the host and on the devices.
      moves: how it moves with the pixels of its image, see geometry.py: `boxes`, `points`,
        `keypoints`, `mask`, `mask:255`; empty if it does not.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "int32"
    moves: str = ""

    @property
    def size(self) -> int:
        """Size in bytes; 0 for a scalar, which is negligible next to an image."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize if self.shape else 0


def moves_of(targets: Mapping[str, Target]) -> dict[str, str]:
    """`Target.moves` of the targets that move with the pixels of their image, by name."""
    return {name: target.moves for name, target in targets.items() if target.moves}


# The targets of a classification source.
LABEL = {"label": Target()}
# The target with all labels of an example that has several: [R] int32, padded by -1. Its `label` is
# the first of them; a set to evaluate on may have it, whatever the network was trained with.
SEVERAL = "label_set"
# Names that a batch uses itself; no target may have them.
RESERVED = (
    *("image", "position", "index", "mask", "member_mask", "target", "own_size"),
    *("random_key", "taught"),
)
# In the batch of a training step with a teacher, see train/distill.py: what it says.
TAUGHT = "taught"
# In a batch of masks of several sizes, padded at the bottom and the right: [B, 2] int32, the height
# and width of each without padding.
OWN_SIZE = "own_size"
# In the batch that a task gets in training: a JAX key for each example [B], by the step and by its
# position in the global batch, so that what is drawn does not depend on the number of devices.
RANDOM_KEY = "random_key"


class Source(abc.ABC):
    """Examples with random access: `image`, and the targets.

    Attributes:
      class_names: one name per class; empty if there are none.
      targets: the other entries of an example, by name; the names in `RESERVED` are not allowed.
      element: the form of the examples.
      random: whether the random crops of `config.augment` are made while examples are read, so that
        no two passes are alike.
      decoder: the libraries that decode the elements, with versions; empty if `checksum` covers the
        elements themselves.
      notes: what a person should know of how the examples were read, or left out; one line each.
        Every training logs them, see data/reading.py.
      words: of a text with a code for each word, the vocabulary, see `signals.vocabulary_of`.
    """

    class_names: tuple[str, ...]
    element: Element
    targets: Mapping[str, Target] = LABEL
    decoder: str = ""
    random: bool = False
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, i: int, key: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """Example i: `image` and the targets by name.

        Args:
          i: index, from 0.
          key: seed and position in the run's endless sequence of examples; random crops are a
            function of it.

        Raises:
          DamagedError: the example cannot be read.
        """

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"there are {len(self)} examples; example {i} is out of range")
        return self.read(i % len(self))

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32; by default, all examples are read."""
        return np.array([self.read(i)["label"] for i in range(len(self))], np.int32)

    def target(self, i: int, name: str) -> Any:
        """One target of example i, possibly of another size than in `read`; raises DamagedError.

        By default, the example is read.
        """
        return self.read(i)[name]

    @abc.abstractmethod
    def name(self, i: int) -> str:
        """The name of example i in messages, such as its path."""

    @abc.abstractmethod
    def checksum(self) -> int:
        """A CRC-32 that changes when the examples do."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape that the network sees, (H, W, C) for images."""
        return self.element.input_shape

    @property
    def size(self) -> int:
        """Size in bytes of all elements and of all targets that are not scalars."""
        return len(self) * (self.element.size + sum(t.size for t in self.targets.values()))


def as_targets(value: Any) -> dict[str, Any]:
    """Targets by name: a mapping is copied, a single number becomes the `label`."""
    return dict(value) if isinstance(value, Mapping) else {"label": np.int32(value)}


@dataclasses.dataclass(frozen=True)
class Arrays(Source):
    """Examples in memory.

    Attributes:
      images: [N, ...] of uint8 for images and texts.
      values: the targets [N, ...] by name; a single array [N] int32 is the `label`, indices into
        `class_names`.
      class_names: one name per class.
      kind: of the elements.
      codes: V, for texts.
      name_of: maps i to the name of the example, such as the path that it was read from.
      moves: `Target.moves` of the targets that move with the pixels.
      notes, words: see `Source`.
    """

    images: np.ndarray
    values: np.ndarray | Mapping[str, np.ndarray]
    class_names: tuple[str, ...] = ()
    kind: str = "image"
    codes: int = 0
    name_of: Callable[[int], str] = "example {}".format
    moves: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            object.__setattr__(self, "values", {"label": self.values})

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values()), self.images))

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The targets [N, ...] by name: `values`, in which `__post_init__` names a single array."""
        return cast(Mapping[str, np.ndarray], self.values)

    @property
    def labels(self) -> np.ndarray:
        """The target `label` [N] int32."""
        return self.arrays["label"]

    @property
    def element(self) -> Element:  # type: ignore[override]
        """The form of the examples."""
        return Element(self.images.shape[1:], self.kind, str(self.images.dtype), self.codes)

    @property
    def targets(self) -> dict[str, Target]:  # type: ignore[override]
        """The entries of an example other than its image."""
        return {
            name: Target(value.shape[1:], str(value.dtype), self.moves.get(name, ""))
            for name, value in self.arrays.items()
        }

    def read(self, i: int, key: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """Example i: `image` and the targets."""
        return {"image": self.images[i]} | {name: v[i] for name, v in self.arrays.items()}

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32."""
        return self.labels

    def name(self, i: int) -> str:
        """The name of example i in messages."""
        return self.name_of(i)

    def checksum(self) -> int:
        """CRC-32 of all images and targets."""
        value = zlib.crc32(np.ascontiguousarray(self.images))
        for target in self.arrays.values():
            value = zlib.crc32(np.ascontiguousarray(target), value)
        return value


def evenly(count: int, most: int, first: int = 0) -> np.ndarray:
    """At most `most` of the numbers first ... count - 1, evenly spaced, in ascending order."""
    return np.unique(np.linspace(first, count - 1, min(count - first, most)).round().astype(int))


class Part(Source):
    """Some examples of another source, in the same order.

    Args:
      source: the other.
      which: how many, evenly spaced, or their indices [N] in ascending order.
    """

    def __init__(self, source: Source, which: int | np.ndarray):
        self.source = source
        by_count = isinstance(which, int)
        self.places = evenly(len(source), which) if by_count else which
        self._key = len(self.places).to_bytes(8, "little") if by_count else self.places.tobytes()
        self.class_names, self.element, self.targets = (
            source.class_names,
            source.element,
            source.targets,
        )
        self.decoder, self.random, self.notes = source.decoder, source.random, source.notes
        self.words = source.words

    def __len__(self) -> int:
        return len(self.places)

    def read(self, i: int, key: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """Example i of the part, read by the source."""
        return self.source.read(int(self.places[i]), key)

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32."""
        return self.source.labels_of_all()[self.places]

    def target(self, i: int, name: str) -> Any:
        """One target of example i of the part, by the source."""
        return self.source.target(int(self.places[i]), name)

    def name(self, i: int) -> str:
        """The source's name for the example."""
        return self.source.name(int(self.places[i]))

    def checksum(self) -> int:
        """The source's checksum, combined with the number or the places of the examples."""
        return zlib.crc32(self._key, self.source.checksum())


def size_in_words(shape: tuple[int, ...], kind: str) -> str:
    """`640x480 pixels` for an image (480, 640, C); for other kinds all sizes, joined by `x`."""
    return f"{shape[1]}x{shape[0]} pixels" if kind == "image" else " x ".join(map(str, shape))


def generator(seed: int, stream: int | str, index: int = 0) -> np.random.Generator:
    """A random generator that is a function of the seed, the stream and the index.

    Args:
      seed: any integer; taken modulo 2**64.
      stream: a number, or a name such as a split's.
      index: of an example within the stream.
    """
    number = zlib.crc32(stream.encode()) if isinstance(stream, str) else stream
    # The index is the counter's highest word, so the draws of two examples never overlap.
    key, counter = (
        np.array([seed % 2**64, number], np.uint64),
        np.array([0, 0, 0, index], np.uint64),
    )
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def example_keys(key: jax.Array, position: jax.Array) -> jax.Array:
    """One JAX key per example, from its position [B] in the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, position)


def keys_of(key: jax.Array, batch: Batch) -> jax.Array:
    """One JAX key per example of a batch, by its `position`.

    Raises:
      UserError: the batch has none.
    """
    if "position" not in batch:
        raise UserError(
            f"the batch has {', '.join(batch)}, but no position, which an augmentation draws by: "
            'add "position": jax.numpy.arange(B), the places of its examples in the global batch'
        )
    return example_keys(key, batch["position"])


def describe(source: Source) -> dict[str, Any]:
    """What a network depends on, for JSON: the shape and kind of its input, whether it is cropped
    while reading, the classes, the words of texts that have a code for each, and the targets if
    they are more than a label.
    """
    described = {
        "image_shape": list(source.image_shape),
        "kind": source.element.kind,
        "cropped": source.random,
        "class_names": list(source.class_names),
    }
    if source.words:
        described["words"] = list(source.words)
    if dict(source.targets) != LABEL:
        described["targets"] = {
            name: {**dataclasses.asdict(target), "shape": list(target.shape)}
            for name, target in source.targets.items()
        }
    return described


def read_targets(description: Mapping[str, Any]) -> dict[str, Target]:
    """The targets of an example, from a description that `describe` made."""
    if "targets" not in description:
        return LABEL
    return {
        name: Target(tuple(value["shape"]), value["dtype"], value["moves"])
        for name, value in description["targets"].items()
    }
