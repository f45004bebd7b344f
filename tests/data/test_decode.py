"""Image files in practice: all common forms of JPEG and PNG; damaged files, which never crash."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxconv.data.decode import choose_decoder, decode_image, decoder_versions, read_image
from jaxconv.data.geometry import eval_box
from jaxconv.data.interface import DamagedError
from jaxconv.data.pictures import is_grey
from jaxconv.errors import UserError


def decoders():
    try:
        return ["pillow", choose_decoder("simplejpeg")]
    except UserError:
        return ["pillow"]


def picture(height=60, width=80):
    """A smooth picture, so that decoders differ little."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    return np.rint(255 * np.stack([y, x, (x + y) / 2], axis=-1)).astype(np.uint8)


def encoded(pixels, form="JPEG", mode=None, **options):
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def decode(data, decoder, size=0, channels=3):
    return decode_image(
        data, size, channels, lambda height, width: eval_box(height, width, size), decoder
    )


@pytest.fixture(params=decoders())
def decoder(request):
    return request.param


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 95, "mode": "CMYK"}),
        ("PNG", {}),
        ("PNG", {"mode": "RGBA"}),
        ("GIF", {"mode": "P"}),
    ],
)
def test_forms_of_files(decoder, form, options):
    pixels = decode(encoded(picture(), form, **options), decoder)
    assert pixels.shape == (60, 80, 3) and pixels.dtype == np.uint8
    # A palette of 216 colours is coarse.
    assert np.abs(pixels.astype(int) - picture()).mean() < (20 if form == "GIF" else 6)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_grey_and_colour(decoder, form, mode, channels):
    data = encoded(picture(), form, mode=mode)
    assert is_grey(data) == (mode == "L")
    pixels = decode(data, decoder, channels=channels)
    assert pixels.shape == (60, 80, channels or (1 if mode == "L" else 3))
    grey = np.asarray(Image.fromarray(picture()).convert("L")).astype(int)[..., None]
    if mode == "L" or channels == 1:
        np.testing.assert_allclose(pixels.astype(int), np.broadcast_to(grey, pixels.shape), atol=4)


def test_palette_with_transparency_and_sixteen_bits(decoder):
    data = encoded(picture(), "PNG", mode="P", transparency=0)
    assert decode(data, decoder).shape == (60, 80, 3)
    deep = np.array([[0, 256, 30_000], [40_000, 65_535, 255]], np.uint16)
    np.testing.assert_array_equal(
        decode(encoded(deep, "PNG"), decoder, channels=1)[..., 0], deep >> 8
    )
    with pytest.raises(DamagedError, match="floating point numbers"):
        decode(encoded(np.ones((4, 4), np.float32), "TIFF"), decoder)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image(decoder, orientation):
    """All eight orientations, whole and resized; a corner shows where the top left went."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(pixels, quality=95, exif=exif)
    turned = decode(data, decoder)
    assert turned.shape[:2] == ((64, 96) if orientation < 5 else (96, 64))
    corner = {
        1: (0, 0),
        2: (0, 1),
        3: (1, 1),
        4: (1, 0),
        5: (0, 0),
        6: (0, 1),
        7: (1, 1),
        8: (1, 0),
    }[orientation]
    corners = {
        (y, x): turned[-8 if y else 8, -8 if x else 8].mean() for y in (0, 1) for x in (0, 1)
    }
    assert max(corners, key=corners.get) == corner
    # Resized, and decoded at half its size on the way: the same picture, only smaller.
    small = decode(data, decoder, size=16)
    whole = Image.fromarray(turned)
    side, (left, top) = 64, ((length - 64) // 2 for length in whole.size)
    expected = whole.crop((left, top, left + side, top + side)).resize(
        (16, 16), Image.Resampling.BOX
    )
    assert np.abs(small.astype(int) - np.asarray(expected)).mean() < 8


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (20_000, 3), (3, 20_000)])
def test_odd_sizes(decoder, size):
    width, height = size
    for form in ("JPEG", "PNG"):
        data = encoded(np.full((height, width, 3), 90, np.uint8), form)
        assert decode(data, decoder).shape == (height, width, 3)
        np.testing.assert_allclose(decode(data, decoder, size=8), np.full((8, 8, 3), 90), atol=2)


def test_too_large(decoder, monkeypatch):
    data = encoded(picture())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000)
    with pytest.raises(DamagedError, match="exceeds limit of 4000 pixels"):
        decode(data, decoder)


def test_boxes_are_cut_before_resizing(decoder):
    pixels = picture(400, 600)
    for data in (encoded(pixels, quality=95), encoded(pixels, "PNG")):
        for size, box in (
            (20, (40, 100, 200, 300)),
            (64, (10, 20, 80, 90)),
            (50, (0, 0, 400, 600)),
        ):
            found = decode_image(data, size, 3, lambda height, width: box, decoder)  # noqa: B023
            top, left, height, width = box
            part = Image.fromarray(pixels[top : top + height, left : left + width])
            expected = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
            np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 0},
        {"subsampling": 2, "restart_marker_rows": 1},
        {"progressive": True},
        {"mode": "L"},
    ],
)
@pytest.mark.parametrize("bottom", [1, 40, 64, 65, 199, 200])
def test_fast_way_stops_below_the_box(options, bottom):
    """The pixels are bit-identical to those of the whole picture."""
    if len(decoders()) == 1:
        pytest.skip("simplejpeg and OpenCV are not installed")
    import simplejpeg

    noise = np.random.default_rng(0).integers(0, 256, (200, 250, 3), np.uint8)
    data = encoded(noise, quality=90, **options)
    whole = simplejpeg.decode_jpeg(data, fastupsample=True)
    box = (bottom - 1 if bottom < 30 else bottom - 30, 10, min(bottom, 30), 30)
    top, left, height, width = box
    found = decode_image(data, 30, 3, lambda h, w: box, "simplejpeg", fast=True)
    if height == 30:
        np.testing.assert_array_equal(found, whole[top : top + height, left : left + width])
    cut = data[: 2 * len(data) // 3]
    with pytest.raises(DamagedError, match="truncated"):
        decode_image(cut, 30, 3, lambda h, w: box, "simplejpeg", fast=True)


def test_decoders_agree():
    if len(decoders()) == 1:
        pytest.skip("simplejpeg and OpenCV are not installed")
    data = encoded(picture(300, 400), quality=90)
    np.testing.assert_array_equal(decode(data, "pillow"), decode(data, "simplejpeg"))
    for size in (32, 100, 224):
        assert (
            np.abs(
                decode(data, "pillow", size).astype(int) - decode(data, "simplejpeg", size)
            ).max()
            <= 4
        )


def test_decoders_agree_on_grain_too():
    """A picture with noise, shrunk to 0.7: a linear kernel would be off by 2.5 levels on average,
    and by 24 at most.
    """
    if len(decoders()) == 1:
        pytest.skip("simplejpeg and OpenCV are not installed")
    grainy = np.clip(
        np.asarray(picture(328, 328)).astype(int)
        + np.random.default_rng(0).normal(0, 11, (328, 328, 3)),
        0,
        255,
    )
    data = encoded(grainy.astype(np.uint8), quality=95)
    difference = np.abs(decode(data, "pillow", 224).astype(int) - decode(data, "simplejpeg", 224))
    assert difference.mean() < 1.5 and difference.max() <= 12


def test_names(monkeypatch, tmp_path):
    assert "pillow 1" in decoder_versions("pillow") and "simplejpeg" in decoder_versions(
        "simplejpeg"
    )
    (tmp_path / "one.jpg").write_bytes(encoded(picture()))
    assert read_image(tmp_path / "one.jpg", 20).shape == (20, 20, 3)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_decoder("auto") == "pillow"
    with pytest.raises(
        UserError, match="simplejpeg, which is not installed: pip install 'jaxconv.fast.'"
    ):
        choose_decoder("simplejpeg")


WHOLE = [
    encoded(picture(), quality=90),
    encoded(picture(), progressive=True),
    encoded(picture(), mode="CMYK"),
    encoded(picture(), mode="L"),
    encoded(picture(), "PNG"),
    encoded(picture(), "PNG", mode="P"),
    encoded(picture(), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"),
]


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(WHOLE),
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.sampled_from(decoders()),
    st.booleans(),
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF data
def test_cut_and_flipped_bytes(whole, share, flips, decoder, fast):
    """The result is an image of the right form, or a DamagedError."""
    data = bytearray(whole[: round(share * len(whole))])
    for place, value in flips:
        if data:
            data[int(place * len(data))] = value
    try:
        pixels = decode_image(
            bytes(data),
            16,
            3,
            lambda height, width: (0, 0, max(1, height // 2), width),
            decoder,
            fast,
        )
        assert pixels.shape == (16, 16, 3)
    except DamagedError as error:
        assert str(error)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe1\xff\xffExif\0\0" + bytes(100),
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_no_images(decoder, data):
    with pytest.raises(DamagedError):
        decode(data, decoder)


def test_cut_file_is_damaged(decoder):
    data = encoded(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8), quality=90)
    with pytest.raises(DamagedError, match="truncated"):
        decode(data[: len(data) // 2], decoder)


def test_bicubic_is_pillow_s(decoder):
    """Of the whole part, also where it shrinks a lot; grey and colour."""
    data = encoded(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8), "PNG")
    with Image.open(io.BytesIO(data)) as image:
        middle = image.crop((15, 0, 105, 90))
    bicubic = choose_decoder(decoder, "bicubic")
    for side in (20, 40, 130):
        for channels, part in ((3, middle), (1, middle.convert("L"))):
            wanted = np.asarray(part.resize((side, side), Image.Resampling.BICUBIC))
            found = decode(data, bicubic, side, channels)
            np.testing.assert_array_equal(found, wanted.reshape(side, side, channels))
            assert np.abs(found - decode(data, decoder, side, channels).astype(int)).max() > 5
    jpeg = encoded(picture(), quality=95)
    with Image.open(io.BytesIO(jpeg)) as image:
        wanted = image.crop((10, 0, 70, 60)).resize((12, 12), Image.Resampling.BICUBIC)
    found = decode(jpeg, bicubic, 12)
    np.testing.assert_allclose(found.astype(int), np.asarray(wanted).astype(int), atol=2)
    assert "pillow" in decoder_versions(bicubic)
