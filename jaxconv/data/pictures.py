"""An image file by Pillow: opened, turned upright, and its colours as grey or RGB of 8 bits.

16 bits                     the upper 8
palette, CMYK, YCbCr        as Pillow converts them; colour profiles are not applied
Lab                         to sRGB, by LittleCMS
transparency                left out: the stored colours, as timm, torchvision and Keras read
                            them; or laid on a background
several frames or pages     the first
32-bit numbers              an error
"""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.interface import DamagedError

UPRIGHT = 1
_ORIENTATION = 0x0112
_GREY_MODES = ("1", "L", "LA", "La")
_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG that hold a colour profile or a text. Pillow refuses a file if one is larger than
# a megabyte, and none of them changes the pixels.
_TEXTS = (b"iCCP", b"zTXt", b"tEXt", b"iTXt")
# An XMP text, not compressed: it may hold the orientation.
_XMP = b"XML:com.adobe.xmp\0\0"
_MOST_XMP = 1 << 16


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[Any]:
    """Pillow's image of a file's content, of which only the header has been read.

    Raises:
      DamagedError: in place of any error of opening it, and of what is done with it.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(_without_texts(data))) as image:
            yield image
    except Exception as error:  # Pillow's readers raise many kinds of errors for damaged bytes
        why = (
            re.sub(r" <_io.BytesIO[^>]*>", "", " ".join(str(error).split())) or type(error).__name__
        )
        raise DamagedError(f"cannot be read as an image ({why})") from error


def _without_texts(data: bytes) -> bytes:
    """A PNG without its profile and texts; any other file as it is."""
    if not data.startswith(_PNG) or not any(name in data for name in _TEXTS):
        return data
    kept, place = [_PNG], len(_PNG)
    while place < len(data):
        # A chunk: the length in four bytes, the name in four, the content, and a checksum of four.
        length, name = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        xmp = length < _MOST_XMP and data.startswith(_XMP, place + 8)
        if name not in _TEXTS or xmp:
            kept.append(data[place : place + 12 + length])
        place += 12 + length
    return b"".join(kept)


def orientation(image: Any) -> int:
    """The orientation 1 ... 8 of an image by its EXIF or XMP data; 1, upright, if there is none.

    A value that is not stored as a number counts as none, as in browsers and in Pillow. Damaged
    EXIF data counts as none too: the pixels are not damaged by it.
    """
    # TIFF files are turned by Pillow itself, and a PNG may hold the data behind its pixels. Only of
    # a JPEG the pixels must not be decoded yet, since they may be wanted smaller.
    if image.format not in ("JPEG", "MPO"):
        image.load()
    try:
        value = image.getexif().get(_ORIENTATION, UPRIGHT)
    except Exception:  # any kind, of damaged bytes
        return UPRIGHT
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT


def upright(image: Any, turned: int) -> Any:
    """The image turned upright, by its orientation."""
    from PIL.Image import Transpose

    way = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    # Pillow forgets what is transparent when it turns a palette.
    return _with_info(image.transpose(way[turned]), image) if turned in way else image


def _with_info(image: Any, of: Any) -> Any:
    image.info = dict(of.info)
    return image


def upright_size(data: bytes) -> tuple[int, int]:
    """Height and width of an image file turned upright, by its header; raises DamagedError."""
    with opened(data) as image:
        # From 5 on, the orientations exchange rows and columns. Pillow turns a TIFF file as it
        # loads it, so the orientation is asked for first.
        sideways = orientation(image) > 4
        width, height = image.size
        return (width, height) if sideways else (height, width)


def size_or_zeros(path: Path) -> tuple[int, int]:
    """Height and width of an image file; zeros if it cannot be read, which is said later."""
    try:
        return upright_size(path.read_bytes())
    except (DamagedError, OSError, ValueError):
        return (0, 0)


def is_grey(data: bytes) -> bool:
    """Whether an image file has one channel, by its header; raises DamagedError."""
    with opened(data) as image:
        return has_one_channel(image)


def has_one_channel(image: Any) -> bool:
    """Whether an image is grey, with or without transparency."""
    return image.mode in _GREY_MODES or image.mode.startswith("I")


def to_pixels(image: Any, channels: int, background: str = "") -> np.ndarray:
    """The pixels [H, W, C] uint8.

    Args:
      image: turned upright.
      channels: 1 for grey, 3 for colour, 0 for that of the file.
      background: a colour that transparent images are laid on, see `config.data.background`; empty
        to leave transparency out.

    Raises:
      ValueError: the pixels are of a kind that has no one meaning as 8 bits.
    """
    grey = channels == 1 or (channels == 0 and has_one_channel(image))
    image = _in_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if background:
            image = _laid_on(image, background)
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _in_eight_bits(image: Any) -> Any:
    from PIL import Image, ImageCms

    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers; save it with 8 or 16 bits")
    if image.mode == "I" and image.format not in ("PNG", "PPM", None):
        raise ValueError("its pixels are 32-bit integers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 255
        values = np.asarray(image).astype(np.uint16)
        eight = Image.fromarray((values >> 8).astype(np.uint8))
        clear = image.info.get("transparency")
        if clear is not None:
            eight.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        return eight
    if image.mode == "LAB":
        lab, rgb = (ImageCms.createProfile(name) for name in ("LAB", "sRGB"))
        return ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    return image


def _laid_on(image: Any, background: str) -> Any:
    from PIL import Image, ImageColor

    paper = Image.new("RGBA", image.size, (*ImageColor.getrgb(background)[:3], 255))
    paper.alpha_composite(image)
    return paper
