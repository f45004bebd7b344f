"""From the bytes of an image file to the pixels that the network sees.

There are two decoders. They choose the same boxes, but their pixels differ slightly:

    simplejpeg   decodes JPEG with simplejpeg and everything else with Pillow, resizes with OpenCV;
                 faster (the extra `fast`)
    pillow       uses only Pillow

A JPEG that is resized to at most half its size is decoded at 1/2, 1/4 or 1/8 of its size. That is
faster than decoding all of it, and avoids aliasing.

`config.data.interpolation=bicubic` resizes as timm and torchvision do with it, by Pillow, of the
whole decoded image; a decoder is then called `simplejpeg bicubic` or `pillow bicubic` here.
"""

import contextlib
import importlib.metadata
import importlib.util
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.geometry import Box, Size, eval_box, whole_box
from jaxconv.data.interface import DamagedError
from jaxconv.data.pictures import UPRIGHT, opened, orientation, to_pixels, upright
from jaxconv.errors import missing

DECODERS = {
    "simplejpeg": ("simplejpeg", "opencv-python-headless", "pillow"),
    "pillow": ("pillow",),
    "simplejpeg bicubic": ("simplejpeg", "pillow"),
    "pillow bicubic": ("pillow",),
}

# JPEG markers: EXIF or XMP data, the beginning of the pixels, the header of a frame that is decoded
# from top to bottom, and those of all other frames.
_APP1, _PIXELS = 0xE1, 0xDA
_BASELINE = 0xC0
_OTHER_FRAMES = frozenset(range(0xC1, 0xD0)) - {0xC4, 0xC8, 0xCC}
# The most rows that are decoded together: four blocks of 8, if chroma is subsampled by four.
_LARGEST_BLOCK = 32
_own = threading.local()
# Height and width of an image -> the part to keep, and its size after resizing.
Choose = Callable[[int, int], tuple[Box, Size]]
# The most pixels for which a thread keeps a buffer.
_SCRATCH = 1 << 22


def choose_decoder(name: str, interpolation: str = "bilinear") -> str:
    """One of `DECODERS`; `auto` is simplejpeg if it and OpenCV are installed.

    Args:
      name: `config.data.decoder`.
      interpolation: `config.data.interpolation`.

    Raises:
      UserError: the decoder is not installed.
    """
    there = all(importlib.util.find_spec(module) for module in ("simplejpeg", "cv2"))
    if name == "simplejpeg" and not there:
        raise missing("config.data.decoder=simplejpeg", "simplejpeg")
    if name == "auto":
        name = "simplejpeg" if there else "pillow"
    return name if interpolation == "bilinear" else f"{name} {interpolation}"


def decoder_of(reading: Mapping[str, Any]) -> str:
    """The decoder of how a run or an exported network reads files, see `sources.reading_of`."""
    # Those of older versions have no interpolation.
    return choose_decoder(reading["decoder"], reading.get("interpolation", "bilinear"))


def decoder_versions(name: str) -> str:
    """The decoder's libraries and their versions."""
    return ", ".join(f"{package} {_version(package)}" for package in DECODERS[name])


def _version(package: str) -> str:
    # OpenCV has several package names, one per variant.
    for name in (package, package.removesuffix("-headless"), "opencv-contrib-python"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "of unknown version"


def decode_image(
    data: bytes,
    image_size: int,
    channels: int,
    choose_box: Callable[[int, int], Box],
    decoder: str,
    fast: bool = False,
    background: str = "",
) -> np.ndarray:
    """Decode an image file to [H, W, C] uint8, with the orientation of its EXIF data applied.

    Args:
      data: the file's content.
      image_size: height and width of the result in pixels; 0 keeps the whole image as it is.
      channels: see `decode_part`.
      choose_box: (height, width) -> the part to keep, in pixels of the upright image; used if
        `image_size` is not 0.
      decoder, fast, background: see `decode_part`.

    Raises:
      DamagedError: as in `decode_part`.
    """

    def choose(height: int, width: int) -> tuple[Box, Size]:
        return choose_box(height, width), (image_size, image_size)

    return decode_part(data, choose if image_size else None, channels, decoder, fast, background)


def decode_part(
    data: bytes,
    choose: Choose | None,
    channels: int,
    decoder: str,
    fast: bool = False,
    background: str = "",
) -> np.ndarray:
    """Decode a part of an image file and resize it: [H, W, C] uint8, turned upright by EXIF data.

    Args:
      data: the file's content.
      choose: (height, width) of the upright image -> the part to keep, and its size after resizing;
        None keeps the whole image as it is.
      channels: 1 for grey, 3 for colour, 0 for that of the file.
      decoder: one of `DECODERS`.
      fast: let simplejpeg repeat subsampled chroma instead of interpolating it, and stop decoding
        below the box, which together save a quarter of the time; and use a linear kernel to shrink
        to no less than half.
      background: see `pictures.to_pixels`.

    Raises:
      DamagedError: the file is not an image, is damaged, or is too large (Pillow's limit, about 179
        million pixels).
    """
    if not data:
        raise DamagedError("the file is empty")
    if decoder.startswith("simplejpeg"):
        # Pillow can read some files that simplejpeg rejects; otherwise its error message is the
        # better one.
        with contextlib.suppress(Exception):
            pixels = _decode_jpeg(data, choose, channels, decoder, fast)
            if pixels is not None:
                return pixels
    return _decode_by_pillow(data, choose, channels, decoder, background)


def _decode_jpeg(
    data: bytes, choose: Choose | None, channels: int, decoder: str, fast: bool
) -> np.ndarray | None:
    """The pixels; None if only Pillow can decode: other formats, CMYK, rotated or huge images."""
    import simplejpeg
    from PIL import Image

    if not simplejpeg.is_jpeg(data):
        return None
    *size, colourspace, _ = simplejpeg.decode_jpeg_header(data)
    height, width = map(int, size)
    if (
        colourspace in ("CMYK", "YCCK")
        or height * width > (Image.MAX_IMAGE_PIXELS or np.inf)
        or _orientation(data) != UPRIGHT
    ):
        return None
    box, resized = choose(height, width) if choose else ((0, 0, height, width), None)
    factor = _reduction(box, resized, decoder)
    grey = channels == 1 or (channels == 0 and colourspace.lower() == "gray")
    # Resizing copies the pixels out of the buffer. Without it, the thread's next image would
    # overwrite them.
    settings: dict[str, Any] = {
        "colorspace": "GRAY" if grey else "RGB",
        "buffer": _scratch(height * width * 3) if resized and height * width <= _SCRATCH else None,
    }
    if fast and factor == 1:
        rows = _cut_below(data, box[0] + box[2], height)
        if rows is not None:
            pixels = simplejpeg.decode_jpeg(rows, fastupsample=True, strict=False, **settings)
            return _cut_and_resize(pixels, box, resized, decoder, fast)
    least = {
        "min_height": -(-height // factor),
        "min_width": -(-width // factor),
        "min_factor": factor,
    }
    pixels = simplejpeg.decode_jpeg(data, fastupsample=fast, **least, **settings)
    return _cut_and_resize(
        pixels, _scaled(box, (height, width), pixels.shape[:2]), resized, decoder, fast
    )


def _scratch(size: int) -> np.ndarray:
    """This thread's buffer: allocating images of varying sizes would fragment the shared heap."""
    if len(getattr(_own, "memory", ())) < size:
        _own.memory = np.empty(size, np.uint8)
    return _own.memory


def _cut_below(data: bytes, bottom: int, height: int) -> bytes | None:
    """The JPEG with its height reduced to just below row `bottom`, so that libjpeg stops there.

    The pixels above are bit-identical. None if the file cannot be cut: progressive files, and those
    without an end marker, which may be truncated already.
    """
    rows = -(-bottom // _LARGEST_BLOCK) * _LARGEST_BLOCK
    if rows >= height or data[-2:] != b"\xff\xd9":
        return None
    for marker, place in _segments(data):
        if marker == _BASELINE:
            # The segment: marker, length, precision in one byte, then the height in two.
            return b"".join((data[: place + 5], rows.to_bytes(2), data[place + 7 :]))
        if marker in _OTHER_FRAMES:
            return None
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and place of each segment of a JPEG, up to the beginning of the pixels."""
    place = 2
    while place + 9 < len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a byte of padding
            place += 1
            continue
        yield marker, place
        if marker == _PIXELS:
            return
        place += 2 + int.from_bytes(data[place + 2 : place + 4])


def _orientation(data: bytes) -> int:
    markers = [marker for marker, _ in _segments(data)]
    # In a file that is not regular, Pillow may find what this loop does not.
    if _APP1 not in markers and markers[-1:] == [_PIXELS]:
        return UPRIGHT
    with opened(data) as image:
        return orientation(image)


def _decode_by_pillow(
    data: bytes, choose: Choose | None, channels: int, decoder: str, background: str
) -> np.ndarray:
    with opened(data) as image:
        turned = orientation(image)
        width, height = image.size[::-1] if turned >= 5 else image.size
        box, resized = choose(height, width) if choose else ((0, 0, height, width), None)
        factor = _reduction(box, resized, decoder)
        if factor > 1:
            image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
        pixels = to_pixels(upright(image, turned), channels, background)
        return _cut_and_resize(
            pixels, _scaled(box, (height, width), pixels.shape[:2]), resized, decoder
        )


def _reduction(box: Box, size: Size | None, decoder: str) -> int:
    """The largest of 8, 4, 2, 1 by which the box can shrink and still span the size; 1 for bicubic
    interpolation, which weighs all pixels.
    """
    if size is None or _is_bicubic(decoder):
        return 1
    least = min(old / new for old, new in zip(box[2:], size, strict=True))
    return next((factor for factor in (8, 4, 2) if least >= factor), 1)


def _is_bicubic(decoder: str) -> bool:
    return decoder.endswith(" bicubic")


def _scaled(box: Box, size: tuple[int, int], decoded: tuple[int, int]) -> tuple[float, ...]:
    """The box in pixels of an image that was decoded to another size."""
    if size == decoded:
        return box
    (y, x), (top, left, height, width) = (
        (new / old for new, old in zip(decoded, size, strict=True)),
        box,
    )
    return top * y, left * x, height * y, width * x


def _cut_and_resize(
    pixels: np.ndarray, box: tuple[float, ...], size: Size | None, decoder: str, fast: bool = False
) -> np.ndarray:
    return _resize_part(pixels, box, size, decoder, fast) if size else pixels


def _resize_part(
    pixels: np.ndarray,
    box: tuple[float, ...],
    size: tuple[int, int],
    decoder: str,
    fast: bool = False,
) -> np.ndarray:
    top, left = round(box[0]), round(box[1])
    part = pixels[top : top + max(1, round(box[2])), left : left + max(1, round(box[3]))]
    bicubic = _is_bicubic(decoder)
    if bicubic or decoder == "pillow":
        from PIL import Image

        image = Image.fromarray(part[..., 0] if part.shape[-1] == 1 else part)
        kernel = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
        pixels = np.asarray(image.resize((size[1], size[0]), kernel))
    else:
        import cv2

        # To shrink, the mean of the pixels is closest to Pillow. The linear kernel is faster, but
        # skips pixels, too many of them below one half.
        area = all(
            old >= (2 if fast else 1) * new for old, new in zip(part.shape, size, strict=False)
        )
        pixels = cv2.resize(
            part, size[::-1], interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR
        )
    return pixels[..., None] if pixels.ndim == 2 else pixels


def upright_size(data: bytes) -> Size:
    """(height, width) of an image file, upright by its EXIF data; raises DamagedError."""
    with opened(data) as image:
        width, height = image.size[::-1] if orientation(image) >= 5 else image.size
    return height, width


def read_image(
    file: Path | str,
    image_size: int = 0,
    channels: int = 0,
    decoder: str = "auto",
    background: str = "",
) -> np.ndarray:
    """Read one image file to [H, W, C] uint8, with the orientation of its EXIF data applied.

    Args:
      file: its path.
      image_size: the shorter side is resized to this and the middle square kept; 0 keeps the image
        as it is.
      channels: 1 for grey, 3 for colour, 0 for that of the file.
      decoder: see `choose_decoder`.
      background: see `config.data.background`.

    Raises:
      DamagedError: the file is not an image, or is damaged.
    """
    decoder = choose_decoder(decoder)
    return decode_middle(
        Path(file).read_bytes(), image_size, channels, decoder, background=background
    )


def decode_middle(
    data: bytes,
    image_size: int,
    channels: int,
    decoder: str,
    crop_ratio: float = 1.0,
    background: str = "",
) -> np.ndarray:
    """Decode an image file for evaluation: [H, W, C] uint8.

    See `decode_image`, and `geometry.eval_box` for `crop_ratio`.
    """

    def middle(height: int, width: int) -> Box:
        return eval_box(height, width, image_size, crop_ratio)

    return decode_image(data, image_size, channels, middle, decoder, background=background)


def decode_whole(
    data: bytes,
    scale: int,
    step: int,
    longest: int,
    channels: int,
    decoder: str,
    background: str = "",
) -> np.ndarray:
    """Decode an image file for dense evaluation: [H, W, C] uint8 of `geometry.whole_box`'s size."""

    def choose(height: int, width: int) -> tuple[Box, Size]:
        return whole_box(height, width, scale, step, longest)

    return decode_sized(data, choose, channels, decoder, background)


def decode_sized(
    data: bytes,
    choose: Callable[[int, int], tuple[Box, Size]],
    channels: int,
    decoder: str,
    background: str = "",
) -> np.ndarray:
    """Decode an image file and resize a part of it: [H, W, C] uint8.

    Args:
      data: the file's content.
      choose: (height, width) -> the part, and its size after resizing.
      channels, decoder, background: see `decode_image`.

    Raises:
      DamagedError: as in `decode_image`.
    """
    pixels = decode_image(
        data,
        0,
        channels,
        lambda height, width: (0, 0, height, width),
        decoder,
        background=background,
    )
    box, size = choose(*pixels.shape[:2])
    return _resize_part(pixels, box, size, decoder)
