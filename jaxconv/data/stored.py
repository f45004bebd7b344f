"""Examples in files or records: read and decoded on demand, or all of them loaded into memory."""

import dataclasses
import errno
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxconv import moved
from jaxconv.data.geometry import Size, Transform, move
from jaxconv.data.interface import (
    LABEL,
    Arrays,
    DamagedError,
    Element,
    Source,
    Target,
    as_targets,
    moves_of,
    size_in_words,
)
from jaxconv.errors import UserError, short

log = logging.getLogger(__name__)

# Seconds to wait before an example is read again, where the error may pass.
PAUSES = (0.1, 1.0, 5.0)
_PASSING = {
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "EAGAIN", "EBUSY", "EREMOTEIO", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN",
        "EHOSTUNREACH", "ENOLCK", "ENFILE", "EMFILE", "ENOMEM", "ENOTCONN", "ENOLINK",
    )
    if hasattr(errno, name)
}  # fmt: skip


class Records(Protocol):
    """What a `StoredSource` decodes: payloads, such as the bytes of a JPEG file, with random
    access.

    Attributes:
      has_labels: whether all labels are known without reading all records.


    It may also have `targets`, what a record has in addition to its payload if that is more than a
    label, and `notes`, see `Source`.
    """

    has_labels: bool

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        """Payload and targets of record i: a mapping by name, or only the label."""
        ...

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32."""
        ...

    def name(self, i: int) -> str:
        """The name of record i in messages."""
        ...

    def checksum(self) -> int:
        """A CRC-32 that changes when the records do."""
        ...


class Placed(NamedTuple):
    """Pixels [H, W, C] cropped from an image, and the transform that moves targets with them.

    Attributes:
      pixels, transform: these.
      size: (height, width) of the image; None unless it stands on a canvas, see canvas.py.
      seen: (height, width) of the part of the canvas that shows it.
      kept: which objects stay, see `geometry.move`.
    """

    pixels: np.ndarray
    transform: Transform
    size: Size | None = None
    seen: Size | None = None
    kept: str = "visible"


@dataclasses.dataclass(frozen=True)
class StoredSource(Source):
    """Labelled examples that are read and decoded on demand.

    Attributes:
      records: payloads and labels.
      decode: (payload, key) -> element, or `Placed` if targets move with the element; raises
        DamagedError. See `Source.read` for the key.
      class_names: one name per class.
      element: the form that every decoded element must have.
      decoder: libraries and versions that `decode` uses.
      random: whether `decode` is random by its key, so that no two passes are alike.
      targets: what an example has in addition to its element.
      words: see `Source`.
    """

    records: Records
    decode: Callable[[Any, tuple[int, int]], np.ndarray | Placed]
    class_names: tuple[str, ...]
    element: Element
    decoder: str = ""
    random: bool = False
    targets: Mapping[str, Target] = dataclasses.field(default_factory=lambda: LABEL)
    words: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the records, if they have any."""
        return getattr(self.records, "notes", ())

    def read(self, i: int, key: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """Read and decode example i.

        Raises:
          DamagedError: the example cannot be read.
          UserError: its form differs from that of the others, or its label is not a class.
        """
        payload, targets = self.records[i]
        element, targets = self.decode(payload, key), as_targets(targets)
        if isinstance(element, Placed):
            shape, moves = element.pixels.shape[:2], moves_of(self.targets)
            how = element.transform, shape, element.seen, element.kept
            targets = move(targets, moves, *how)
            if element.seen is not None:
                sizes = {"size": element.size, "seen": element.seen}
                targets |= {name: np.array(of, np.float32) for name, of in sizes.items()}
            element = element.pixels
        if element.shape != self.element.shape:
            found, wanted = (
                size_in_words(shape, self.element.kind)
                for shape in (element.shape, self.element.shape)
            )
            if found == wanted:
                found, wanted = (
                    f"of {shape[-1]} channels" for shape in (element.shape, self.element.shape)
                )
            advice = ""
            if self.element.kind == "image" and len(element.shape) == 3:
                advice = "; resize all images to one size, of files with --config.data.image_size=N"
            raise UserError(
                f"{self.name(i)}: is {found}, but {self.name(0)} is {wanted}{advice}", exit_code=1
            )
        if element.dtype != self.element.dtype:
            raise UserError(
                f"{self.name(i)}: has numbers of type {element.dtype}, but {self.name(0)} has "
                f"{self.element.dtype}; save all as one type",
                exit_code=1,
            )
        if "label" in targets:
            self.check_label(i, int(targets["label"]))
        return {"image": element, **targets}

    def target(self, i: int, name: str) -> Any:
        """One target of example i as it is stored, without decoding the example."""
        return as_targets(self.records[i][1])[name]

    def check_label(self, i: int, label: int) -> None:
        """Raise UserError if the label of example i is not a class; TFDS's missing label is -1."""
        if self.class_names and not 0 <= label < len(self.class_names):
            count = len(self.class_names)
            raise UserError(
                f"{self.name(i)}: has the label {label}, but the classes are 0 to {count - 1}; "
                "choose another split",
                exit_code=1,
            )

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32."""
        return self.records.labels_of_all()

    def name(self, i: int) -> str:
        """The name of example i in messages, such as its path."""
        return self.records.name(i)

    def checksum(self) -> int:
        """CRC-32 of what identifies the records, not of all their bytes."""
        return self.records.checksum()


def read_patiently(
    source: Source, i: int, key: tuple[int, int] = (0, 0), patient: bool = True
) -> dict[str, Any]:
    """Example i. An error that may pass, such as that of a busy network disk, is waited out unless
    `patient` is False.

    Raises:
      DamagedError: the example cannot be read.
    """
    pauses = iter(PAUSES if patient else ())
    while True:
        try:
            return source.read(i, key)
        except (DamagedError, OSError) as error:
            found, pause = error, next(pauses, None)
        if pause is None or not may_pass(found):
            break
        log.info("%s: %s; trying again", source.name(i), short(found))
        time.sleep(pause)
    if isinstance(found, DamagedError):
        raise found
    raise DamagedError(f"cannot be read ({found.strerror or short(found)})") from found


def may_pass(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is one of the moment."""
    if error is None:
        return False
    passing = isinstance(error, TimeoutError | ConnectionError | InterruptedError)
    return passing or getattr(error, "errno", None) in _PASSING or may_pass(error.__cause__)


def load(source: StoredSource, skip_unreadable: bool = False, what: str = "the source") -> Arrays:
    """Read all examples into memory.

    Args:
      source: what to read.
      skip_unreadable: leave out and log unreadable examples instead of stopping.
      what: the name of the source in messages.

    Raises:
      UserError: examples cannot be read, or have different sizes.
    """

    def read(i: int) -> dict[str, Any] | str:
        try:
            return read_patiently(source, i)
        except DamagedError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        examples = list(pool.map(read, range(len(source))))
    broken = [(i, why) for i, why in enumerate(examples) if isinstance(why, str)]
    if broken and not skip_unreadable:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(
            f"{source.name(broken[0][0])}: {broken[0][1]}{more}; fix or remove it, "
            "or leave out such files with --config.data.skip_unreadable=True",
            exit_code=1,
        )
    if len(broken) == len(examples):
        raise UserError(
            f"{what}: none of the {len(examples)} examples can be read; the first: {broken[0][1]}",
            exit_code=1,
        )
    if broken:
        log.warning("%s: left out %d unreadable of %d examples:", what, len(broken), len(examples))
        for i, why in broken:
            log.warning("  %s: %s", source.name(i), why)
    place = [i for i, example in enumerate(examples) if not isinstance(example, str)]
    good = [example for example in examples if not isinstance(example, str)]
    values = {
        name: np.stack([np.asarray(example[name], target.dtype) for example in good])
        for name, target in source.targets.items()
    }
    _check_classes(source, values, what)
    images = np.stack([example["image"] for example in good])
    return Arrays(
        images,
        values,
        source.class_names,
        source.element.kind,
        source.element.codes,
        lambda i: source.name(place[i]),
        {name: target.moves for name, target in source.targets.items() if target.moves},
        source.notes,
        source.words,
    )


def _check_classes(source: StoredSource, values: Mapping[str, np.ndarray], what: str) -> None:
    """Raise UserError if no example of some class could be read.

    This needs labels that are known without reading the examples.
    """
    if "label" not in values or not source.records.has_labels:
        return
    gone = set(np.unique(source.labels_of_all())) - set(np.unique(values["label"]))
    if gone:
        name = source.class_names[min(gone)]
        raise UserError(
            f"{what}: no example of class {name!r} can be read; fix some, or remove the class",
            exit_code=1,
        )


__getattr__ = moved.names_of(__name__)
