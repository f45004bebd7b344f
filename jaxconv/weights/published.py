"""The table of published weights, and which of them a name stands for.

published.tsv      one row for each: docs/published_weights.py writes it from what torchvision and
                   timm say. The first row of a network is what `pretrained=True` takes
CACHE/own.tsv      your own rows, with the same header; they come first

network, tag       such as resnet50, tv2_in1k
arguments          of the network with which it was trained, such as padding=same epsilon=0.001
place              an address, or hf:OWNER/REPO[:FILE] on the Hugging Face hub
revision, sha256   the commit, and the digest or how it begins; md5:... where its authors give
                   that. torchvision's addresses end in the first digits of theirs. Empty where
                   they are not known: `jaxconv weights --pin` keeps those of the file that you have
licence            as SPDX writes it
MiB                size of the file
published          figures in %, of ImageNet's validation images or COCO's, as their authors
                   measured them
size, test_size    of the images in pixels; of detectors, the shorter and the longer side
crop               share of the shorter side that the middle square covers in evaluation
interpolation, mean, std   how images are resized and normalised, on a scale from 0 to 1
"""

import ast
import contextlib
import csv
import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxconv import disk
from jaxconv.errors import UserError, in_words, nearest, some
from jaxconv.files import whole_file

COLUMNS = (
    *("network", "tag", "arguments", "place", "revision", "sha256", "licence", "MiB", "published"),
    *("size", "test_size", "crop", "interpolation", "mean", "std"),
)
_NEEDED = ("network", "tag", "place")
_TABLE = Path(__file__).with_name("published.tsv")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What weights want of the images that they see; empty or 0 where it is not known.

    Attributes:
      mean, std: per channel, on a scale from 0 to 1.
      size: in pixels; of detectors, the shorter and the longer side.
      test_size: in evaluation, if it is another.
      crop: share of the shorter side that the middle square covers in evaluation.
      interpolation: of resizing, such as `bicubic`.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: tuple[int, ...] = ()
    test_size: int = 0
    crop: float = 0.0
    interpolation: str = ""

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.size)) if self.size else ""]
        parts += [f"tested at {self.test_size}" if self.test_size else ""]
        parts += [f"crop {self.crop:g}" if self.crop else "", self.interpolation]
        for name in ("mean", "std"):
            numbers = ",".join(f"{value:.4g}" for value in getattr(self, name))
            parts += [f"{name} {numbers}" if numbers else ""]
        return ", ".join(part for part in parts if part)


@dataclasses.dataclass(frozen=True)
class Published:
    """One row of the table."""

    network: str
    tag: str
    arguments: Mapping[str, Any]
    place: str
    revision: str
    sha256: str
    licence: str
    bytes: int
    published: str
    preprocessing: Preprocessing

    @property
    def name(self) -> str:
        """`resnet50.tv2_in1k`."""
        return f"{self.network}.{self.tag}"

    @property
    def commercial(self) -> bool:
        """Whether the licence does not rule out commercial use."""
        return is_commercial(self.licence)


def is_commercial(licence: str) -> bool:
    """Whether a licence's name has no NC in it, as CC-BY-NC-4.0 has."""
    return not re.search(r"(^|[^A-Z])NC([^A-Z]|$)", licence.upper())


def cache_folder() -> Path:
    """Where files of weights, pins and your own table are: JAXCONV_WEIGHTS, or the user's cache."""
    given = os.environ.get("JAXCONV_WEIGHTS")
    return Path(given or disk.cache_folder("weights")).expanduser().absolute()


def published() -> list[Published]:
    """The rows of your own table, and then of the package's.

    Raises:
      UserError: your own cannot be read.
    """
    return [*_read(cache_folder() / "own.tsv"), *_of_the_package()]


def of_network(network: str) -> list[Published]:
    """The rows of one network, the default first."""
    return [row for row in published() if row.network == network]


def named(text: str, network: str) -> Published | None:
    """The row that a name stands for: `True` for the network's first, a tag of the network, or
    NETWORK.TAG and NETWORK of another, such as that of its backbone; None if there is none.
    """
    own, rows = of_network(network), published()
    if text.lower() == "true":
        if not own:
            has = sorted({row.network for row in rows})
            raise UserError(
                f"no published weights are known for {network}{nearest(network, has)}; "
                "`jaxconv weights` lists all"
            )
        return own[0]
    known = {row.tag: row for row in reversed(own)}
    known |= {row.network: row for row in reversed(rows)}
    return (known | {row.name: row for row in reversed(rows)}).get(text)


def hint(text: str, network: str) -> str:
    """What a name that stands for nothing may have meant, for messages."""
    tags = [row.tag for row in of_network(network)]
    names = [*tags, *(row.name for row in published())]
    there = f"; {network} has {some(tags, 8)}" if tags else ""
    return f"{nearest(text, names)}{there}"


@functools.cache
def _of_the_package() -> tuple[Published, ...]:
    return tuple(_read(_TABLE))


def _read(file: Path) -> list[Published]:
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            reader = csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE)
            found = []
            for row in reader:
                try:
                    found.append(_row(row))
                except ValueError as error:
                    raise UserError(f"{file}: line {reader.line_num}: {error}", 1) from error
            return found
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read ({in_words(error)})", exit_code=1) from error


def _row(row: Mapping[Any, Any]) -> Published:
    if None in row:  # what csv calls the rest of a line
        raise ValueError("there are more values than columns")
    if extra := [key for key in row if key not in COLUMNS]:
        raise ValueError(
            f"no column is called {extra[0]!r}{nearest(extra[0], COLUMNS)}; separate them by tabs"
        )
    text = {column: (row.get(column) or "").strip() for column in COLUMNS}
    if lacking := [column for column in _NEEDED if not text[column]]:
        raise ValueError(f"{lacking[0]} is empty")
    if text["sha256"] and not re.fullmatch(r"(md5:)?[0-9a-f]{8,64}", text["sha256"]):
        raise ValueError(
            f"sha256 is {text['sha256']!r}; it must be 8 to 64 digits of 0-9, a-f, or md5:DIGITS"
        )
    wants = Preprocessing(
        mean=tuple(map(float, filter(None, text["mean"].split(",")))),
        std=tuple(map(float, filter(None, text["std"].split(",")))),
        size=tuple(map(int, filter(None, text["size"].split(",")))),
        test_size=int(text["test_size"] or 0),
        crop=float(text["crop"] or 0),
        interpolation=text["interpolation"],
    )
    return Published(
        network=text["network"],
        tag=text["tag"],
        arguments=_arguments(text["arguments"]),
        place=text["place"],
        revision=text["revision"],
        sha256=text["sha256"],
        licence=text["licence"] or "unknown",
        bytes=round(float(text["MiB"] or 0) * 2**20),
        published=text["published"],
        preprocessing=wants,
    )


def _arguments(text: str) -> dict[str, Any]:
    """`padding=same epsilon=0.001` as a dictionary; numbers are numbers."""
    found: dict[str, Any] = {}
    for part in text.split():
        name, sign, value = part.partition("=")
        if not (name and sign and value):
            raise ValueError(f"arguments has {part!r}; write NAME=VALUE")
        found[name] = value
        with contextlib.suppress(ValueError, SyntaxError):  # a word
            found[name] = ast.literal_eval(value)
    return found


@dataclasses.dataclass(frozen=True)
class Pin:
    """What a file must be: its digest and, on the hub, the commit."""

    sha256: str = ""
    revision: str = ""


def pins_file() -> Path:
    """Where the user's pins are."""
    return cache_folder() / "pins.json"


def pins() -> dict[str, Pin]:
    """The user's pins, by place.

    Raises:
      UserError: the file cannot be read.
    """
    file = pins_file()
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {place: Pin(**pin) for place, pin in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: cannot be read ({in_words(error)}); mend it, or remove it and pin again",
            exit_code=1,
        ) from error


def pin(place: str, kept: Pin) -> None:
    """Keep what a place's file must be from now on; raises UserError if it cannot be written."""
    file, all_pins = pins_file(), pins() | {place: kept}
    content = {place: dataclasses.asdict(pin) for place, pin in sorted(all_pins.items())}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({in_words(error)})", exit_code=1) from error
