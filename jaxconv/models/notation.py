"""The notation: a network as a line of text, like the lecture's
[(CONV-RELU)*N-POOL?]*M-(FC-RELU)*K,SOFTMAX.

    [(conv3-64 relu)*2 maxpool2]*2 fc128 relu dropout0.5 fc10

    text     one or more items separated by spaces; an item is a layer, or a text in ( ) or [ ], and
             *N repeats it; or { text | text } of texts side by side, each of which takes the same
             input, and whose outputs are concatenated along the channels
    convF-K  K filters of F pixels, or convFxF-K, one number per axis; without -K, one filter per
             class; /S stride, pP padding ((F - 1)/2 by default), gG groups, dD dilation, nobias;
             floor (the default), exact, ceil
    maxpoolF, avgpoolF   /S stride (F by default), pP padding, floor, exact, ceil
    globalpool, globalmaxpool   the mean, or the largest, over all positions
    adaptpoolN           the mean of N by N even parts
    bn, lrn, lrnN        BatchNorm, local response norm over N (5) feature maps
    relu, tanh, sigmoid, gelu, silu
    dropoutP             dropout of a share P in training
    fcN                  N neurons; without N, one per class
    embedN               N numbers for each code of a text; only at the beginning

The input sets the number of axes: the same text works for a waveform, an image or a volume. The
softmax is part of the loss.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from jaxconv.errors import nearest


class NotationError(ValueError):
    """A mistake in a text, at the character `position`, counted from 0."""

    def __init__(self, text: str, position: int, message: str):
        shown = (
            text
            if len(text) <= 60
            else "..." * (position > 30) + text[max(0, position - 30) : position + 30] + "..."
        )
        super().__init__(f"character {position + 1} of {shown!r}: {message}")
        self.position = position


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: its kind, such as `conv`, and its settings, by default those of the kind."""

    kind: str
    window: tuple[int, ...] = ()
    count: int | None = None
    share: float = 0.0
    stride: int | None = None
    padding: int | None = None
    groups: int = 1
    dilation: int = 1
    rounding: str = "floor"
    bias: bool = True

    def __str__(self) -> str:
        text = self.kind + "x".join(map(str, self.window))
        if self.count is not None:
            text += f"-{self.count}" if self.kind == "conv" else str(self.count)
        if self.kind == "dropout":
            text += (
                f"{self.share:g}" if float(f"{self.share:g}") == self.share else repr(self.share)
            )
        text += f"/{self.stride}" if self.stride is not None else ""
        text += f"p{self.padding}" if self.padding is not None else ""
        text += f"g{self.groups}" if self.groups != 1 else ""
        text += f"d{self.dilation}" if self.dilation != 1 else ""
        return (
            text
            + ("" if self.bias else "nobias")
            + (self.rounding if self.rounding != "floor" else "")
        )


@dataclasses.dataclass(frozen=True)
class Branches:
    """Texts side by side, in braces."""

    paths: tuple["Items", ...]

    def __str__(self) -> str:
        return "{" + " | ".join(map(show, self.paths)) + "}"


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Items in brackets, repeated `times` times."""

    items: tuple["Layer | Repeat | Branches", ...]
    times: int = 1

    def __str__(self) -> str:
        return f"[{show(self.items)}]" + (f"*{self.times}" if self.times != 1 else "")


Items = tuple[Layer | Repeat | Branches, ...]
# The kinds that `expand` gives for the braces: the beginning, each next path, and the end.
BRACES = ("{", "|", "}")
_CLOSING = {"(": ")", "[": "]", "{": "}"}

# What may follow a kind's name: a pattern, the field that it sets, and how messages describe it.
# Options come last, in any order.
_WINDOW = (r"(\d+(?:x\d+)*)", "window", "the window's size, such as 3")
_OPTIONS = {
    "/": (r"/(\d+)", "stride"),
    "p": (r"p(\d+)", "padding"),
    "g": (r"g(\d+)", "groups"),
    "d": (r"d(\d+)", "dilation"),
    "nobias": (r"(nobias)", "bias"),
    "rounding": (r"(floor|exact|ceil)", "rounding"),
}
_POOLING = ("/", "p", "rounding")
# kind: (its required part or None, its optional part or None, options)
KINDS: dict[str, tuple[tuple[str, str, str] | None, tuple[str, str] | None, tuple[str, ...]]] = {
    "conv": (_WINDOW, (r"-(\d+)", "count"), tuple(_OPTIONS)),
    "maxpool": (_WINDOW, None, _POOLING),
    "avgpool": (_WINDOW, None, _POOLING),
    "globalpool": (None, None, ()),
    "globalmaxpool": (None, None, ()),
    "adaptpool": ((r"(\d+)", "count", "the number of parts, such as 7"), None, ()),
    "bn": (None, None, ()),
    "lrn": (None, (r"(\d+)", "count"), ()),
    "relu": (None, None, ()),
    "tanh": (None, None, ()),
    "sigmoid": (None, None, ()),
    "gelu": (None, None, ()),
    "silu": (None, None, ()),
    "dropout": (
        (r"(0?\.\d+(?:e-?\d+)?|\d(?:\.\d+)?(?:e-\d+)?)", "share", "the share to drop, such as 0.5"),
        None,
        (),
    ),
    "fc": (None, (r"(\d+)", "count"), ()),
    "embed": ((r"(\d+)", "count", "the numbers for each code, such as 128"), None, ()),
}
_POSITIVE = ("window", "count", "stride", "groups", "dilation")


def parse(text: str) -> Items:
    """Parse a text.

    Raises:
      NotationError: the text has a mistake; the message gives the character, what was expected and
        the nearest name.
    """
    items, position = _parse_items(text, _skip(text, 0), closing="")
    if not items:
        raise NotationError(text, position, "expected a layer, such as conv3-64")
    return items


def show(items: Items) -> str:
    """Format what `parse` returned as text."""
    return " ".join(map(str, items))


def expand(items: Items) -> Iterator[Layer]:
    """The layers in order, with repetitions expanded, and `BRACES` where there are some."""
    for item in items:
        if isinstance(item, Layer):
            yield item
        elif isinstance(item, Branches):
            for n, path in enumerate(item.paths):
                yield Layer(BRACES[min(n, 1)])
                yield from expand(path)
            yield Layer(BRACES[2])
        else:
            for _ in range(item.times):
                yield from expand(item.items)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _parse_items(text: str, position: int, closing: str) -> tuple[Items, int]:
    items: list[Layer | Repeat | Branches] = []
    while position < len(text) and text[position] not in ")]}|":
        if text[position] in _CLOSING:
            item, position = _parse_brackets(text, position)
        else:
            item, position = _parse_layer(text, position)
        if position < len(text) and text[position] == "*":
            times = re.compile(r"\*\s*(\d+)").match(text, position)
            if not times or int(times[1]) < 1:
                raise NotationError(text, position + 1, "expected a number of times, such as *2")
            item = (
                dataclasses.replace(item, times=int(times[1]))
                if isinstance(item, Repeat)
                else Repeat((item,), int(times[1]))
            )
            position = times.end()
        elif (
            position < len(text)
            and not text[position].isspace()
            and text[position] not in "([{)]}|"
        ):
            raise NotationError(
                text, position, f"expected a space, a bracket or *N after {str(item)!r}"
            )
        items.append(item)
        position = _skip(text, position)
    if closing:
        if position == len(text):
            raise NotationError(text, position, f"expected {closing!r} to close a bracket")
        if text[position] != closing and not (closing == "}" and text[position] == "|"):
            raise NotationError(text, position, f"expected {closing!r}, not {text[position]!r}")
    elif position < len(text):
        wrong = "is for { text | text }" if text[position] == "|" else "has no opening bracket"
        raise NotationError(text, position, f"{text[position]!r} {wrong}")
    return tuple(items), position


def _parse_brackets(text: str, position: int) -> tuple[Repeat | Branches, int]:
    bracket, paths = text[position], []
    while not paths or text[position] == "|":
        inner, position = _parse_items(text, _skip(text, position + 1), _CLOSING[bracket])
        if not inner:
            raise NotationError(
                text, position, "expected a layer in the brackets, such as conv3-64"
            )
        paths.append(inner)
    item = Branches(tuple(paths)) if bracket == "{" else Repeat(paths[0])
    return item, position + 1


def _parse_layer(text: str, start: int) -> tuple[Layer, int]:
    # The longest kind that the word starts with, so that a mistake after it is reported there.
    word = _start(r"[^\s()\[\]{}|*]*", text, start)
    kind = max((kind for kind in KINDS if word.startswith(kind)), key=len, default=None)
    if kind is None:
        name = _start(r"[A-Za-z]*", word).lower()
        if name == "softmax":
            raise NotationError(text, start, "the softmax is part of the loss; leave it out")
        raise NotationError(
            text,
            start,
            f"no layer is called {word or text[start]!r}{nearest(name, KINDS)}; there are "
            f"{', '.join(KINDS)}",
        )
    required, optional, options = KINDS[kind]
    settings: dict[str, Any] = {}
    position = start + len(kind)
    if required:
        pattern, field, expected = required
        match = re.compile(pattern).match(text, position)
        if not match:
            raise NotationError(
                text, position, f"expected {expected} after {kind!r}{_meant(word, kind)}"
            )
        settings[field], position = _value(text, position, field, match[1]), match.end()
    if optional and (match := re.compile(optional[0]).match(text, position)):
        settings[optional[1]], position = (
            _value(text, match.start(1), optional[1], match[1]),
            match.end(),
        )
    while match := next(
        (m for o in options if (m := re.compile(_OPTIONS[o][0]).match(text, position))), None
    ):
        field = next(
            _OPTIONS[o][1] for o in options if re.compile(_OPTIONS[o][0]).match(text, position)
        )
        if field in settings:
            raise NotationError(text, position, f"the {field} is given twice")
        settings[field], position = _value(text, match.start(1), field, match[1]), match.end()
    if position < start + len(word):
        known = [
            {"/": "/S", "rounding": "floor, exact or ceil"}.get(o, o + "N" if len(o) == 1 else o)
            for o in options
        ]
        if optional and optional[1] not in settings:
            known.insert(0, "-K" if kind == "conv" else "a number")
        expected = f"expected {', '.join(known)}, or a space" if known else "expected a space"
        raise NotationError(
            text, position, f"{expected} after {text[start:position]!r}{_meant(word, kind)}"
        )
    return Layer(kind, **settings), position


def _value(text: str, position: int, field: str, found: str) -> object:
    if field == "window":
        value: object = tuple(map(int, found.split("x")))
        smallest = min(value)
    elif field == "share":
        value = float(found)
        if not 0 <= value < 1:
            raise NotationError(
                text,
                position,
                f"the share to drop is {found}; it must be at least 0 and less than 1",
            )
        return value
    elif field in ("rounding", "bias"):
        return False if field == "bias" else found
    else:
        value = smallest = int(found)
    if field in _POSITIVE and smallest < 1:
        raise NotationError(text, position, f"the {field} is {found}; it must be at least 1")
    return value


def _start(pattern: str, text: str, start: int = 0) -> str:
    """What the pattern matches there."""
    match = re.compile(pattern).match(text, start)
    return match[0] if match else ""


def _meant(word: str, kind: str) -> str:
    name = _start(r"[A-Za-z]*", word)
    return (
        nearest(name, [k for k in KINDS if k != kind])
        if name != kind and len(name) > len(kind) + 1
        else ""
    )
