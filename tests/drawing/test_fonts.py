"""Names in any script: a font that has their characters is found, or one line of warning."""

import logging
import warnings

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from jaxconv.drawing import fonts
from jaxconv.drawing.parts import picture
from jaxconv.drawing.samples import captioned_grid

RARE = "\U000f0001\U000f0002"  # for private use: no installed font has them


def make_font(path, name, characters, style="Regular"):
    """A font in which each of the characters is a black square."""
    glyphs = [".notdef", *(f"g{n}" for n in range(len(characters)))]
    pen = TTGlyphPen(None)
    for k, point in enumerate([(0, 0), (0, 900), (900, 900), (900, 0)]):
        (pen.lineTo if k else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap(dict(zip(map(ord, characters), glyphs[1:], strict=True)))
    builder.setupGlyf(dict.fromkeys(glyphs, square))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": style})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No warning was given before, and fonts that a test adds are gone after it."""
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    caches = (fonts._warn, fonts.fonts_for)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def saved(figure, path):
    fonts.save_figure(figure, path, dpi=100)
    return matplotlib.image.imread(path)


def with_text(*texts, **settings):
    figure = Figure(figsize=(3, 2))
    for n, text in enumerate(texts):
        figure.text(0.2, 0.2 + 0.3 * n, text, fontsize=30, **settings)
    return figure


@pytest.mark.parametrize("way", ["listed", "installed later"])
def test_an_installed_font_is_found(tmp_path, monkeypatch, way, caplog):
    make_font(tmp_path / "rare.ttf", "Rare Sans", RARE)
    make_font(tmp_path / "half.ttf", "Half Sans", RARE[:1])
    files = [str(tmp_path / name) for name in ("half.ttf", "rare.ttf", "damaged.ttf")]
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    if way == "listed":
        for file in files[:2]:
            font_manager.fontManager.addfont(file)
    else:
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    figure = with_text(f"a {RARE}", "plain", RARE, family="monospace")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = saved(figure, tmp_path / "a.png")
    assert [text.get_fontfamily() for text in figure.texts] == [
        ["monospace", "Rare Sans"],
        ["monospace"],
        ["monospace", "Rare Sans"],
    ]
    assert not caplog.records and found[..., :3].min() == 0
    # Saved again, as for SVG and PNG, nothing is added.
    again = saved(figure, tmp_path / "b.png")
    assert figure.texts[0].get_fontfamily() == ["monospace", "Rare Sans"]
    np.testing.assert_array_equal(found, again)


def test_several_fonts_together(tmp_path):
    for number, character in enumerate(RARE):
        make_font(tmp_path / f"{number}.ttf", f"Rare {number}", character)
        font_manager.fontManager.addfont(str(tmp_path / f"{number}.ttf"))
    figure = with_text(RARE)
    assert fonts.set_fonts(figure) == ""
    assert figure.texts[0].get_fontfamily()[1:] == ["Rare 0", "Rare 1"]


def test_one_line_where_no_font_has_them(tmp_path, caplog):
    """However many pictures and letters there are; and none of matplotlib's own warnings."""
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="jaxconv"):
        warnings.simplefilter("error")
        for number in range(3):
            saved(with_text(f"a {RARE}", RARE), tmp_path / f"{number}.png")
        part = picture(captioned_grid([np.zeros((4, 4, 1))] * 2, [f"{RARE}\nb", "c"]), "cats")
    assert part.width and len(caplog.records) == 1
    assert "install a font that has them, such as Noto Sans CJK" in caplog.text


def test_names_that_are_no_text(tmp_path):
    """Half a surrogate pair, as a file name that is not UTF-8 has: matplotlib cannot draw it."""
    figure = with_text("caf\udce9.png\nline 2")
    saved(figure, tmp_path / "a.png")
    assert figure.texts[0].get_text() == "caf\\xe9.png\nline 2"
