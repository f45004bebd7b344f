"""What an array holds: which axis is what, and on which scale its numbers lie.

    NHW   NHWC   NCHW      images: grey, or with their channels last or first
    NL    NLC    NCL       signals along one axis, such as sounds
    NTF   NTFC   NCTF      signals along two axes, such as spectrograms
    NDHW  NDHWC  NCDHW     volumes

A layout that the shape makes clear is inferred. An ambiguous one is refused, and the message lists
the settings to choose from: a misread array would train without an error, and badly.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxconv.errors import UserError, in_words, nearest

LAYOUTS = {
    layout: "image" if axes == "HW" else "signal"
    for axes in ("HW", "L", "TF", "DHW")
    for layout in (f"N{axes}", f"N{axes}C", f"NC{axes}")
}
# Sides of an image are longer; up to so many are the channels, by their number alone.
_CHANNELS = 4
# How far floating-point images may lie outside of 0 to 1, as resizing by a cubic kernel makes them.
_OVERSHOOT = 0.1
_WHITES = (1, 255, 1023, 4095, 65535)


class Reading(NamedTuple):
    """How arrays are to be read.

    Attributes:
      what: the name of the source in messages.
      layout: one of `LAYOUTS`; empty to find it.
      scale: the value of white, which numbers are divided by; 0 for 255 of uint8, and 1 of
        floating-point numbers.
      first_label: the label of the first class.
      like: description of the data that the network was trained with, see `interface.describe`; it
        settles what `layout` leaves open.
      form: how a setting is written, in messages.
    """

    what: str
    layout: str = ""
    scale: float = 0.0
    first_label: int = 0
    like: Mapping[str, Any] | None = None
    form: str = "{}={!r}"

    def setting(self, name: str, value: Any) -> str:
        """A setting as the person writes it."""
        return self.form.format(name, value)

    def error(self, message: str) -> UserError:
        """An error about these arrays."""
        return UserError(f"{self.what}: {message}", exit_code=1)


class Elements(NamedTuple):
    """Elements [N, ..., C], what they were read as, and notes about them."""

    values: np.ndarray
    layout: str
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`image` or `signal`."""
        return LAYOUTS[self.layout]


def as_array(value: Any, reading: Reading, name: str = "examples") -> np.ndarray:
    """The array [N, ...] of an array, of a tensor of PyTorch or JAX, or of a list of such, of PIL
    images or of numbers.

    Raises:
      UserError: it is something else, or the parts of the list have different shapes.
    """
    if not isinstance(value, list | tuple):
        return _one(value, reading, name)
    if not value or isinstance(value[0], int | float | bool | str):
        array = np.asarray(value)
        return array.reshape(0, 0, 0) if not value and name == "examples" else array
    parts = [_one(part, reading, name) for part in value]
    for i, part in enumerate(parts):
        if part.shape != parts[0].shape:
            raise reading.error(
                f"of the {name}, number {i} is {part.shape} and number 0 {parts[0].shape}; give "
                "all one shape"
            )
    return np.stack(parts)


def _one(value: Any, reading: Reading, name: str) -> np.ndarray:
    if hasattr(value, "getbands"):  # an image of PIL
        return _pixels(value)
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except Exception as error:  # numpy and other libraries raise many kinds of errors
        raise reading.error(
            f"the {name} cannot be made an array ({in_words(error)}); give a numpy array"
        ) from error
    if array.dtype.kind not in "biufUS":
        raise reading.error(
            f"the {name} are {type(value).__name__} of {array.dtype}; give arrays of numbers"
        )
    return array


def _pixels(image: Any) -> np.ndarray:
    """A PIL image as [H, W] or [H, W, C]: a palette's colours and not their numbers, bits as 0 and
    255.
    """
    if image.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    return np.asarray(image.convert("L") if image.mode in ("1", "LA") else image)


def read_elements(images: np.ndarray, reading: Reading) -> Elements:
    """Elements [N, ..., C] uint8 or float32, from an array [N, ...].

    Raises:
      UserError: the layout or the scale is not clear, numbers are not finite, or the array is of
        another type.
    """
    if reading.layout and reading.layout not in LAYOUTS:
        raise reading.error(
            f"the layout is {reading.layout!r}{nearest(reading.layout, LAYOUTS)}; it must be one "
            f"of {', '.join(LAYOUTS)}"
        )
    layout = reading.layout or _known(images, reading) or find_layout(images, reading)
    if len(layout) != images.ndim:
        raise reading.error(
            f"the layout is {layout}, and the examples are {images.dtype} {images.shape}"
        )
    _check_type(images, reading)
    channel = layout.find("C")
    images = images[..., None] if channel < 0 else np.moveaxis(images, channel, -1)
    if channel == 1:
        images = np.ascontiguousarray(images)
    return _on_scale(images, layout, reading)


def _known(images: np.ndarray, reading: Reading) -> str:
    """The layout, without channels or with them last, that makes what the network was trained
    with; empty if none does.
    """
    if not reading.like:
        return ""
    wanted = tuple(reading.like["image_shape"]), reading.like["kind"]
    for layout, kind in LAYOUTS.items():
        channel, own = layout.find("C"), images.shape[1:]
        found = (own if channel > 0 else (*own, 1)), kind
        if len(layout) == images.ndim and channel != 1 and found == wanted:
            return layout
    return ""


def find_layout(images: np.ndarray, reading: Reading) -> str:
    """The layout of an array [N, ...] that its shape and type make clear.

    Raises:
      UserError: they do not; the message has the settings to choose from.
    """
    shape, floating = images.shape, images.dtype.kind == "f"
    rank, channels = images.ndim, [size <= _CHANNELS for size in shape]
    if rank < 3 or rank > 5:
        flat = f"; reshape images to [N, H, W, C] ({_sides(shape[1])})" if rank == 2 else ""
        advice = f", or declare them signals with {reading.setting('layout', 'NL')}" if flat else ""
        raise reading.error(
            f"the examples are {images.dtype} {shape}; they must be uint8 or float32 [N, ..., C]"
            f"{flat}{advice}"
        )
    if rank == 3 and not floating:
        return "NHW"
    last = {3: "NLC", 4: "NHWC", 5: "NDHWC"}[rank]
    first = {3: "NCL", 4: "NCHW", 5: "NCDHW"}[rank]
    square = rank == 4 and shape[2] == shape[3] != shape[1]
    if channels[-1] and not (channels[1] and square):
        return last
    if channels[1]:
        raise reading.error(
            f"the examples are {shape}, which looks like {shape[1]} channels before the others, as "
            f"in PyTorch; if so, set {reading.setting('layout', first)}; if the channels are last, "
            f"set {reading.setting('layout', last)}"
        )
    if rank == 4 and not floating and shape[1] == shape[2] and 2 * shape[3] <= shape[1]:
        return last  # images with many channels
    raise reading.error(
        f"the examples are {images.dtype} {shape}, which may be {_choices(shape, reading)}"
    )


def _choices(shape: tuple[int, ...], reading: Reading) -> str:
    """What arrays of a shape without a clear layout may be, each with the setting for it."""
    sizes = dict(enumerate(shape))
    texts = {
        3: {
            "NHW": "grey images of {2}x{1} pixels",
            "NLC": "signals of {1} samples with {2} channels",
            "NTF": "spectrograms of {1} frames and {2} frequencies",
        },
        4: {
            "NHWC": "images of {2}x{1} pixels with {3} channels",
            "NCHW": "images of {3}x{2} pixels with {1} channels",
            "NDHW": "volumes of {1}x{2}x{3}",
        },
        5: {"NDHWC": "volumes with {4} channels", "NCDHW": "volumes with {1} channels"},
    }[len(shape)]
    return (
        " or ".join(
            f"{text.format(*sizes.values())} ({reading.setting('layout', layout)})"
            for layout, text in texts.items()
        )
        + "; set one of them"
    )


def _sides(count: int) -> str:
    """`784 = 28 x 28`, or with three channels, where there is such a square."""
    for channels in (1, 3):
        side = math.isqrt(count // channels)
        if side * side * channels == count and side > 1:
            return f"{count} = {side} x {side}" + (f" x {channels}" if channels > 1 else "")
    return f"{count} numbers each"


def _check_type(images: np.ndarray, reading: Reading) -> None:
    if images.dtype == np.uint8 or images.dtype.kind == "f":
        return
    if images.dtype.kind in "biu" and reading.scale:
        return
    advice = ""
    if images.dtype.kind in "biu" and images.size:
        low, high = int(images.min()), int(images.max())
        white = next((white for white in _WHITES if white >= high), high)
        advice = f" (they go from {low} to {high}: " + (
            "make them uint8)"
            if white == 255 and low >= 0
            else f"set the value of white, {reading.setting('scale', float(white))})"
        )
    raise reading.error(
        f"the examples are {images.dtype} {images.shape}; they must be uint8 or float32 [N, ..., C]"
        f"{advice}"
    )


def _on_scale(images: np.ndarray, layout: str, reading: Reading) -> Elements:
    """Elements with their channels last -> uint8 as it is, or float32 divided by the scale."""
    kind, asked = LAYOUTS[layout], reading.layout or reading.like
    if images.dtype == np.uint8 and reading.scale in (0, 255):
        clear = reading.like or reading.scale or len(images) == 1
        if not clear and images.max() == 1:
            raise reading.error(
                "the largest value is 1, and uint8 goes to 255, so that the examples would all be "
                f"black; if 1 is white, set {reading.setting('scale', 1.0)}, and else "
                f"{reading.setting('scale', 255.0)}"
            )
        return Elements(images, layout)
    with np.errstate(over="ignore"):  # check_finite reports overflow
        images = images.astype(np.float32, copy=reading.scale not in (0, 1))
    if reading.scale not in (0, 1):
        images /= np.float32(reading.scale)
    low, high = check_finite(images, reading.what)
    if kind == "signal" or (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
        if high <= 1 / 128 and low >= 0 < high and reading.scale > 1:
            raise reading.error(
                f"the largest value is {high * reading.scale:g}, which is black by "
                f"{reading.setting('scale', reading.scale)}; leave that out"
            )
        return Elements(images, layout)
    as_signals = layout.replace("H", "T").replace("W", "F")
    if low < -_OVERSHOOT and not asked:
        note = (
            f"values from {low:.4g} to {high:.4g} are not colors: read as signals along two axes, "
            "which are normalised by data.mean and data.std, and not augmented"
        )
        return Elements(images, as_signals, (note,))
    white = next((white for white in _WHITES if white >= high), high)
    advice = (
        f"if {white:g} is white, set {reading.setting('scale', float(white))}"
        if low >= -_OVERSHOOT
        else "shift them"
    )
    raise reading.error(
        f"the examples go from {low:.4g} to {high:.4g}, and images of floating-point numbers from "
        f"0 to 1; {advice}, or if they are not images, set {reading.setting('layout', as_signals)}"
    )


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Images uint8, or floating-point from 0 to 1, as uint8."""
    if images.dtype == np.uint8:
        return images
    return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)


def check_finite(images: np.ndarray, what: str) -> tuple[float, float]:
    """The least and the greatest of the numbers [N, ...].

    Raises:
      UserError: some are infinite or NaN; the message names the examples.
    """
    low, high = (float(value) for value in (images.min(), images.max()))
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    bad = ~np.isfinite(images)
    numbers = np.flatnonzero(bad.reshape(len(images), -1).any(axis=1))
    first = int(numbers[0])
    place = tuple(int(axis[0]) for axis in np.nonzero(bad[first]))
    more = f", and {len(numbers) - 1} more examples have such" if len(numbers) > 1 else ""
    raise UserError(
        f"{what}: example {first} of {len(images)} is {images[first][place]} at {list(place)}"
        f"{more}; numbers must be finite: fix these examples or leave them out",
        exit_code=1,
    )
