"""Fonts for the names of classes and files in any script, and figures written with them.

matplotlib's own font, DejaVu Sans, has no Chinese, Japanese, Korean, Thai ... characters. For those
an installed font that has them is used. If there is none, boxes are drawn instead, and one warning
says so.
"""

import functools
import logging
import warnings
from collections.abc import Iterable
from typing import Any

from jaxconv.files import printable

log = logging.getLogger(__name__)

# Fonts of boxes for every character, and of coloured pictures, which matplotlib cannot draw.
_UNUSABLE = ("last resort", "lastresort", "emoji", "adobe blank")
# The most fonts that one text may combine, besides matplotlib's own.
_MOST_FONTS = 4


def save_figure(figure: Any, file: Any, **settings: Any) -> None:
    """Save a matplotlib figure with fonts that have the characters of its texts.

    Args:
      figure: changed to use these fonts.
      file: a path or an open file.
      settings: of `figure.savefig`.
    """
    lacking = set_fonts(figure)
    with warnings.catch_warnings():
        if lacking:
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(file, **settings)


def set_fonts(figure: Any) -> str:
    """Give the texts of a figure fonts that have their characters.

    Returns:
      The characters that no installed font has; of these a warning was logged, once.
    """
    from matplotlib.font_manager import findfont
    from matplotlib.text import Text

    lacking: set[str] = set()
    for text in figure.findobj(Text):
        said = text.get_text()
        if said.isascii():
            continue
        # A character that is no Unicode, from a file name, would stop matplotlib.
        if any("\ud800" <= character <= "\udfff" for character in said):
            text.set_text("\n".join(printable(line) for line in said.split("\n")))
            said = text.get_text()
        own = findfont(text.get_fontproperties())
        found, missing = fonts_for("".join(sorted(set(said) - {"\n"})), own)
        if found:
            text.set_fontfamily([*dict.fromkeys([*text.get_fontfamily(), *found])])
        lacking |= set(missing)
    if lacking:
        _warn("".join(sorted(lacking)))
    return "".join(sorted(lacking))


@functools.cache
def _warn(characters: str) -> None:
    shown = " ".join(characters[:10]) + (" ..." if len(characters) > 10 else "")
    log.warning(
        "no installed font has the characters %s: pictures show boxes instead; install a font that "
        "has them, such as Noto Sans CJK",
        shown,
    )


@functools.lru_cache(maxsize=4096)
def fonts_for(characters: str, own: str) -> tuple[tuple[str, ...], str]:
    """Names of fonts for the characters that a text's own font lacks, and those that none has.

    Args:
      characters: different ones.
      own: the file of the text's font.
    """
    lacking = {character for character in characters if ord(character) not in _characters_of(own)}
    names: list[str] = []
    if not lacking:
        return (), ""
    for entries in (_listed_fonts, _new_fonts):
        while lacking and len(names) < _MOST_FONTS:
            name, has = _best(entries(), lacking)
            if not has:
                break
            names.append(name)
            lacking -= has
    return tuple(names), "".join(sorted(lacking))


def _best(fonts: Iterable[tuple[str, str]], wanted: set[str]) -> tuple[str, set[str]]:
    """The font with the most of the characters, and which it has; by name among equal ones."""
    best, most = "", set()
    for name, path in fonts:
        has = {character for character in wanted if ord(character) in _characters_of(path)}
        if len(has) > len(most):
            best, most = name, has
    return best, most


def _listed_fonts() -> list[tuple[str, str]]:
    """Name and file of each upright font that matplotlib knows, regular sans-serif ones first."""
    from matplotlib.font_manager import fontManager

    usable = [
        font
        for font in fontManager.ttflist
        if font.style == "normal" and not any(word in font.name.lower() for word in _UNUSABLE)
    ]
    usable.sort(key=lambda f: (abs(_weight(f) - 400), "sans" not in f.name.lower(), f.name))
    return [(font.name, font.fname) for font in usable]


def _weight(font: Any) -> int:
    from matplotlib.font_manager import weight_dict

    return font.weight if isinstance(font.weight, int) else weight_dict.get(font.weight, 400)


def _new_fonts() -> list[tuple[str, str]]:
    """The same, with fonts that were installed after matplotlib made its list."""
    from matplotlib import font_manager

    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        try:
            font_manager.fontManager.addfont(path)
        except (OSError, RuntimeError, ValueError):  # not a font that matplotlib can use
            continue
    return _listed_fonts()


@functools.lru_cache(maxsize=1024)
def _characters_of(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # the file is gone, or damaged
        return frozenset()
