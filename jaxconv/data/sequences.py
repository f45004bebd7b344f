"""Sources of Python sequences, such as data sets of PyTorch and of Hugging Face."""

import contextlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxconv.data.classes import one_hot
from jaxconv.data.interface import DamagedError, Element
from jaxconv.data.layout import Elements, Reading, as_array, read_elements
from jaxconv.data.stored import StoredSource
from jaxconv.errors import UserError, short

# Where items of Hugging Face's and of PyTorch's sets have their element and its label.
IMAGE_KEYS = ("image", "img", "pixel_values")
LABEL_KEYS = ("label", "labels", "fine_label", "coarse_label", "target")


class Items:
    """Records of a Python sequence, see `from_sequence`.

    Args:
      sequence: of the items.
      image_key, label_key: where items that are mappings have element and label; empty to find
        them.
      reading: how elements are to be read.
    """

    has_labels = False

    def __init__(self, sequence: Sequence[Any], image_key: str, label_key: str, reading: Reading):
        self._sequence, self._reading = sequence, reading
        self._keys = {"image_key": image_key, "label_key": label_key}
        self._in_colour = False
        self.first = self._first_good()
        self.notes = self.first.notes
        # The first element determines how all are read.
        self._reading = reading._replace(layout=self.first.layout)
        self._in_colour = self.first.kind == "image" and self.first.values.shape[-1] == 3

    def __len__(self) -> int:
        return len(self._sequence)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        element, label = self._item(i)
        return self._elements(element, i).values[0], label

    def _elements(self, element: Any, i: int) -> Elements:
        """The element as [1, ..., C]."""
        reading = self._reading._replace(what=self.name(i))
        if self._in_colour and hasattr(element, "convert"):
            element = element.convert("RGB")  # grey images of PIL among those in colour
        array = as_array(element, reading, "element")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DamagedError("holds numbers that are infinite or NaN")
        return read_elements(array[None], reading)

    def _item(self, i: int) -> tuple[Any, int]:
        """Element and label of an item."""
        item = self._sequence[i]
        if isinstance(item, Mapping):
            for name, known in (("image_key", IMAGE_KEYS), ("label_key", LABEL_KEYS)):
                self._keys[name] = self._keys[name] or _find_key(item, name, known)
            missing = [f"{name}={key!r}" for name, key in self._keys.items() if key not in item]
            if missing:
                raise UserError(
                    f"{self.name(i)}: has the keys {', '.join(map(str, item))}, and not "
                    f"{' and '.join(missing)}"
                )
            item = item[self._keys["image_key"]], item[self._keys["label_key"]]
        if not isinstance(item, tuple | list) or len(item) != 2:
            size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
            raise UserError(
                f"{self.name(i)}: is a {type(item).__name__}{size}; it must be (element, label) or "
                '{"image": element, "label": label}'
            )
        return item[0], self._label(item[1], i)

    def _label(self, value: Any, i: int) -> int:
        """A label as an integer: of a number, a tensor of one, or a one-hot row."""
        if isinstance(value, int | np.integer):
            return int(value) - self._reading.first_label
        array = as_array(value, self._reading._replace(what=self.name(i)), "label")
        if one_hot(array[None]):
            return int(array.argmax())
        if array.size != 1 or array.dtype.kind not in "biuf" or array != np.round(array):
            raise UserError(
                f"{self.name(i)}: has the label {short(array.tolist())!r}; it must be an integer, "
                "or a one-hot row"
            )
        return int(array.item()) - self._reading.first_label

    def _first_good(self) -> Elements:
        """The first readable element, as [1, ..., C]."""
        for i in range(len(self)):
            with contextlib.suppress(DamagedError):
                return self._elements(self._item(i)[0], i)
        raise UserError(f"none of the sequence's {len(self)} items can be read", exit_code=1)

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32; reads every item."""
        return np.array([self._item(i)[1] for i in range(len(self))], np.int32)

    def name(self, i: int) -> str:
        """`item i`."""
        return f"item {i}"

    def checksum(self) -> int:
        """CRC-32 of the first item, the last item and the length."""
        return zlib.crc32(repr([*map(self._end, (0, len(self) - 1)), len(self)]).encode())

    def _end(self, i: int) -> tuple[int, int]:
        """CRC-32 and label of an item; two zeros for a damaged item, which has no checksum."""
        try:
            element, label = self[i]
        except DamagedError:
            return 0, 0
        return zlib.crc32(np.ascontiguousarray(element)), label


def _find_key(item: Mapping[str, Any], name: str, known: Sequence[str]) -> str:
    """The key of an item that is known; raises UserError if there is none, or several."""
    found = [key for key in known if key in item]
    # `image` and `label` win over other known keys.
    if not found or (len(found) > 1 and known[0] not in found):
        choices = " or ".join(f"{name}={key!r}" for key in found or item)
        raise UserError(f"item 0: has the keys {', '.join(map(str, item))}; choose with {choices}")
    return found[0]


def from_sequence(
    sequence: Sequence[Any],
    class_names: Sequence[str],
    image_key: str = "",
    label_key: str = "",
    layout: str = "",
    scale: float = 0.0,
    first_label: int = 0,
) -> StoredSource:
    """A source of any Python sequence; several threads read items at once, as batches need them.

    Args:
      sequence: `len` and `[i]`; an item is (element, label) or a mapping such as {"image": element,
        "label": label}. Elements are arrays, tensors or PIL images of one shape: [H, W] or
        [H, W, C], uint8 or floating-point numbers from 0 to 1, or signals. An item that raises
        `jaxconv.data.DamagedError`, or holds NaN, is replaced by the next one.
      class_names: one name per class.
      image_key, label_key: where mappings have element and label; by default the one of
        `IMAGE_KEYS` and of `LABEL_KEYS` that the first item has.
      layout, scale, first_label: as in `from_arrays`; the layout is that of several elements, such
        as NCHW for elements [C, H, W].

    Raises:
      UserError: the sequence is empty, none of its items can be read, or the first readable element
        is not of these types and shapes.
    """
    if not len(sequence):
        raise UserError("the sequence is empty")
    reading = Reading("the sequence", layout, scale, first_label)
    records = Items(sequence, image_key, label_key, reading)
    first = records.first.values[0]

    def as_it_is(element: np.ndarray, key: tuple[int, int]) -> np.ndarray:
        return element

    return StoredSource(
        records,
        as_it_is,
        tuple(class_names),
        Element(first.shape, records.first.kind, str(first.dtype)),
    )
