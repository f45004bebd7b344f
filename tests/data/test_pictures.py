"""What Pillow opens: orientation wherever it is stored, 16 bits, Lab, CMYK, palettes, transparency
on a background, profiles and texts of any size.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features
from PIL.PngImagePlugin import PngInfo

from jaxconv.checks import check_config
from jaxconv.config import default_config
from jaxconv.data.decode import decode_image, decode_middle, read_image
from jaxconv.data.interface import DamagedError, describe
from jaxconv.data.pictures import is_grey
from jaxconv.data.sources import open_given, open_source, reading_of
from jaxconv.errors import UserError
from jaxconv.predict import GivenRecords, find_items
from tests.conftest import tiny_config, write_images
from tests.data.test_decode import decode, decoder, encoded, picture  # noqa: F401

FORMS = ["JPEG", "MPO", "PNG", "TIFF"]
FORMS += [form for form in ("WEBP", "AVIF") if features.check_module(form.lower())]


def exif(value, kind=3):
    """EXIF data with one entry, the orientation, stored as this type."""
    number = struct.pack("<H" if kind == 3 else "<I", value) if isinstance(value, int) else value
    entry = struct.pack("<HHI", 0x0112, kind, 1 if kind in (3, 4) else len(number) or 1)
    return b"II*\0\x08\0\0\0" + b"\x01\0" + entry + number.ljust(4, b"\0") + bytes(4)


def segment(content, marker=0xE1):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


def with_segments(jpeg, *segments):
    return b"".join((jpeg[:2], *segments, jpeg[2:]))


# [H, W] of the picture turned upright by each orientation, in numpy.
TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("turned", TURNS)
def test_orientation_in_every_format(decoder, form, turned):  # noqa: F811
    pixels, data = picture(64, 96), Image.Exif()
    data[0x0112] = turned
    options = {"WEBP": {"lossless": True}, "PNG": {}, "TIFF": {}}.get(form, {"quality": 95})
    file = encoded(pixels, form, exif=data, **options)
    upright = TURNS[turned](pixels).astype(int)
    np.testing.assert_allclose(decode(file, decoder).astype(int), upright, atol=8)
    # The box is of the upright picture.
    asked = []
    found = decode_image(
        file, 16, 3, lambda height, width: asked.append((height, width)) or (32, 8, 16, 16), decoder
    )
    assert asked[-1] == upright.shape[:2]
    np.testing.assert_allclose(found.astype(int), upright[32:48, 8:24], atol=8)


@pytest.mark.parametrize(
    "before",
    [(), (segment(bytes(60_000), 0xE2),), (segment(bytes(9), 0xE0), b"\xff\xff")],
    ids=["first", "past 60 kB", "after padding"],
)
def test_orientation_wherever_it_stands_in_a_jpeg(decoder, before):  # noqa: F811
    whole, turn = encoded(picture(), quality=95), segment(b"Exif\0\0" + exif(6))
    data = with_segments(whole, *before, turn)
    assert decode(data, decoder).shape == (80, 60, 3)
    xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    data = with_segments(whole, *before, segment(b"http://ns.adobe.com/xap/1.0/\0" + xmp))
    assert decode(data, decoder).shape == (80, 60, 3)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(b"\x06", 1), (b"6\0", 2), (b"\x06", 7), (b"", 2), (0, 3), (9, 3), (70_000, 4)],
)
def test_an_orientation_that_is_no_such_number_is_upright(decoder, value, kind):  # noqa: F811
    whole = encoded(picture(), quality=95)
    data = with_segments(whole, segment(b"Exif\0\0" + exif(value, kind)))
    np.testing.assert_array_equal(decode(data, decoder), decode(whole, decoder))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
def test_damaged_exif_data_does_not_damage_the_picture(decoder):  # noqa: F811
    whole = encoded(picture(), quality=95)
    for damaged in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + exif(6)[:15]):
        data = with_segments(whole, segment(damaged))
        np.testing.assert_array_equal(decode(data, decoder), decode(whole, decoder))


def texts():
    info = PngInfo()
    info.add_text("short", "x" * 100)
    info.add_text("long", "x" * 3_000_000, zip=True)
    info.add_itxt("longer", "y" * 3_000_000, zip=True)
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="8"/>')
    return {"pnginfo": info, "icc_profile": bytes(2_000_000)}


def test_large_profiles_and_texts_of_a_png(decoder):  # noqa: F811
    """Also behind the pixels; what else the file says is kept."""
    data = encoded(picture(), "PNG", **texts())
    np.testing.assert_array_equal(decode(data, decoder), TURNS[8](picture()))
    late = b"zTXt" + b"name\0\0" + zlib.compress(bytes(3_000_000))
    chunk = (len(late) - 4).to_bytes(4) + late + zlib.crc32(late).to_bytes(4)
    data = encoded(picture(), "PNG")
    end = data.index(b"IEND") - 4
    np.testing.assert_array_equal(decode(data[:end] + chunk + data[end:], decoder), picture())
    assert is_grey(encoded(picture(), "PNG", mode="L", **texts()))


def test_a_text_that_is_cut_off_is_damage_or_not_as_without_it(decoder):  # noqa: F811
    data = encoded(picture(), "PNG", **texts())
    for cut in (40, 500, data.index(b"IDAT") + 30):
        with pytest.raises(DamagedError):
            decode(data[:cut], decoder)


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("PPM", "I")]
)
def test_sixteen_bits_of_grey(decoder, form, mode):  # noqa: F811
    deep = np.array([[0, 256, 30_000], [40_000, 65_535, 255]], np.uint16)
    image = Image.fromarray(deep.astype({"I": np.int32, "I;16B": ">u2"}.get(mode, np.uint16)))
    file = io.BytesIO()
    image.save(file, form)
    assert is_grey(file.getvalue())
    found = decode(file.getvalue(), decoder, channels=0)
    np.testing.assert_array_equal(found[..., 0], deep >> 8)


def test_sixteen_bits_of_colour(decoder):  # noqa: F811
    """A PNG and a TIFF, written by hand: Pillow writes neither."""
    deep = np.random.default_rng(0).integers(0, 65_536, (4, 5, 3), np.uint16)

    def chunk(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode(png, decoder), deep >> 8)
    tags = [(256, 3, 1, 5), (257, 3, 1, 4), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 14), (277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, deep.nbytes)]
    body = struct.pack("<HHH", 16, 16, 16) + deep.tobytes()
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    tiff = b"II*\0" + struct.pack("<I", 8 + len(body)) + body
    tiff += struct.pack("<H", len(tags)) + entries + bytes(4)
    np.testing.assert_array_equal(decode(tiff, decoder), deep >> 8)


@pytest.mark.parametrize("numbers", [np.int32, np.float32])
def test_numbers_without_one_meaning_are_refused(decoder, numbers):  # noqa: F811
    with pytest.raises(DamagedError, match="its pixels are .* numbers|32-bit integers; save it"):
        decode(encoded(np.ones((4, 4), numbers), "TIFF"), decoder)


def test_lab_and_cmyk(decoder):  # noqa: F811
    """Colours come out as they went in."""
    pixels = picture()
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    lab = ImageCms.profileToProfile(Image.fromarray(pixels), *profiles, outputMode="LAB")
    file = io.BytesIO()
    lab.save(file, "TIFF")
    found = decode(file.getvalue(), decoder).astype(int)
    assert np.abs(found - pixels).mean() < 2
    assert decode(file.getvalue(), decoder, channels=1).shape == (60, 80, 1)
    for form in ("JPEG", "TIFF"):
        found = decode(encoded(pixels, form, mode="CMYK"), decoder).astype(int)
        assert np.abs(found - pixels).mean() < 6


def test_the_first_of_several_frames(decoder):  # noqa: F811
    frames = [Image.fromarray(np.full((6, 8, 3), 40 * n, np.uint8)) for n in (1, 2, 3)]
    for form in ("GIF", "TIFF", "PNG", "WEBP"):
        if form == "WEBP" and "WEBP" not in FORMS:
            continue
        file = io.BytesIO()
        options = {"lossless": True} if form == "WEBP" else {}
        frames[0].save(file, form, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode(file.getvalue(), decoder), np.full((6, 8, 3), 40))


def transparent():
    """Files of one picture, whose left half is clear and red below; with the pixels on white."""
    colours = np.zeros((4, 6, 4), np.uint8)
    colours[:, :3] = (255, 0, 0, 0)
    colours[:, 3:] = (0, 100, 200, 255)
    on_white = np.where(colours[..., 3:] > 0, colours[..., :3], 255).astype(np.uint8)
    file = lambda image, form="PNG", **options: _saved(image, form, **options)  # noqa: E731
    rgba = Image.fromarray(colours)
    rgb, palette = rgba.convert("RGB"), rgba.convert("RGB").quantize(2)
    red = palette.getpixel((0, 0))
    yield "RGBA", file(rgba), on_white
    yield "RGB with one clear colour", file(rgb, transparency=(255, 0, 0)), on_white
    yield "palette", file(palette, transparency=red), on_white
    yield (
        "palette with alpha",
        file(palette, transparency=bytes(255 * (n != red) for n in (0, 1))),
        (on_white),
    )
    yield "GIF", file(palette, "GIF", transparency=red), on_white
    yield "TIFF", file(rgba, "TIFF"), on_white
    if "WEBP" in FORMS:
        yield "WebP", file(rgba, "WEBP", lossless=True, exact=True), on_white


def _saved(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "on_white"), [pytest.param(d, w, id=n) for n, d, w in transparent()]
)
def test_transparency(decoder, data, on_white):  # noqa: F811
    """Left out by default: the colour below is seen. Laid on any colour where one is set."""
    stored = on_white.copy()
    stored[:, :3] = (255, 0, 0)
    whole = lambda height, width: (0, 0, height, width)  # noqa: E731
    np.testing.assert_allclose(decode(data, decoder), stored, atol=1)
    for colour, rgb in (("white", (255,) * 3), ("#102030", (16, 32, 48)), ("#10203080", None)):
        found = decode_image(data, 0, 3, whole, decoder, background=colour)
        wanted = on_white.copy()
        wanted[:, :3] = rgb or (16, 32, 48)
        np.testing.assert_allclose(found, wanted, atol=1)
    grey = decode_image(data, 0, 1, whole, decoder, background="white")
    assert grey.shape == (4, 6, 1) and (grey[:, :3] == 255).all()


@pytest.mark.parametrize("mode", ["LA", "L", "I;16"])
def test_transparency_of_grey(decoder, mode):  # noqa: F811
    if mode == "LA":
        data = _saved(Image.merge("LA", [Image.new("L", (3, 2), 7), Image.new("L", (3, 2), 0)]))
    else:
        data = _saved(Image.new(mode, (3, 2), 7), transparency=7)
    whole = lambda height, width: (0, 0, height, width)  # noqa: E731
    assert is_grey(data)
    stored = 0 if mode == "I;16" else 7
    assert (decode(data, decoder, channels=0) == np.full((2, 3, 1), stored)).all()
    found = decode_image(data, 0, 0, whole, decoder, background="white")
    np.testing.assert_array_equal(found, np.full((2, 3, 1), 255))


def test_half_clear_is_half_of_each(decoder):  # noqa: F811
    data = _saved(Image.new("RGBA", (2, 2), (200, 100, 0, 51)))
    found = decode_middle(data, 2, 3, decoder, background="white")
    np.testing.assert_array_equal(found[0, 0], [244, 224, 204])


def test_the_background_is_one_for_training_evaluation_and_predict(tmp_path):
    write_images(tmp_path, size=(8, 8), count=1)
    for file in tmp_path.rglob("*.png"):
        Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(file)
    config = default_config()
    config.data.source, config.data.background = f"folder:{tmp_path}", "#ff8000"
    check_config(tiny_config(data__source=f"folder:{tmp_path}", data__background="#ff8000"))
    train = open_source(config.data, "train")
    test = open_source(config.data, "test", like=describe(train))
    reading = reading_of(config.data, "image", (8, 8, 3), {})
    given = open_given(
        GivenRecords(find_items([str(tmp_path)], "image")), reading, "image", (8, 8, 3)
    )
    for source in (train, test, given):
        np.testing.assert_array_equal(source[0]["image"][0, 0], [255, 128, 0])
    # A network that an earlier version has exported.
    del reading["background"]
    given = open_given(
        GivenRecords(find_items([str(tmp_path)], "image")), reading, "image", (8, 8, 3)
    )
    np.testing.assert_array_equal(given[0]["image"][0, 0], [9, 9, 9])
    file = next(tmp_path.rglob("*.png"))
    assert read_image(file, background="white").min() == 255


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__background": "whit", "data__source": "folder:x"}, "'whit', did you mean 'white'"),
        ({"data__background": "white", "data__source": "xo"}, "and xo holds no image files"),
        ({"data__background": "white", "data__source": "text:x"}, "text:x holds no image files"),
    ],
)
def test_backgrounds_that_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check_config(tiny_config(**changes))


def test_a_header_of_a_huge_picture_is_damage(tmp_path, caplog):
    """In a grey set too, whose files are asked for their channels before they are read."""
    write_images(tmp_path, mode="L", count=2)
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + head
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + zlib.crc32(chunk).to_bytes(4)
    (tmp_path / "train/cat/900.png").write_bytes(huge + bytes(4) + b"IDAT" + bytes(4))
    config = default_config().data
    config.source = f"folder:{tmp_path}"
    with pytest.raises(UserError, match=r"900.png: cannot be read as an image \(.*exceeds limit"):
        open_source(config, "train")
    config.skip_unreadable = True
    assert len(open_source(config, "train")) == 4 and "900.png" in caplog.text
