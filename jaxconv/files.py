"""Paths given by the user: checked before the work starts, and written atomically."""

import codecs
import contextlib
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxconv import cloud
from jaxconv.disk import replaced
from jaxconv.errors import UserError, in_words, nearest


def expand(path: str | os.PathLike[str], option: str = "--workdir") -> Path:
    """Make a path absolute and expand `~`.

    An address in a bucket becomes the path of its copy on this machine, see jaxconv/cloud.

    Raises:
      UserError: the path is empty, another URL, in the home of an unknown user, or not UTF-8 text;
        or what it names in a bucket cannot be had.
    """
    if not path:
        raise UserError(f"{option}= is empty; give a folder")
    if re.match(r"\w+://", str(path)) and not cloud.is_address(path):
        raise UserError(
            f"{option}={path}: must be a path on this machine, or an address in a bucket: "
            "gs://BUCKET/PATH or s3://BUCKET/PATH"
        )
    whole = at_home(path, option).absolute()
    shown, encoding = printable(whole), sys.getfilesystemencoding()
    if shown.encode() != os.fsencode(whole):  # Orbax would write checkpoints elsewhere, or nowhere
        hint = "" if encoding == "utf-8" else f", or set PYTHONUTF8=1 (it is {encoding} here)"
        raise UserError(
            f"{option}={printable(path)}: the name of the folder, {shown}, is not UTF-8 text; give "
            f"another{hint}"
        )
    return whole


def at_home(path: str | os.PathLike[str], option: str) -> Path:
    """Expand `~` and addresses in buckets, see `expand`, which raises the same errors."""
    if cloud.is_address(path):
        return cloud.local(str(path), option)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{option}={path}: the home folder is unknown ({error}); set HOME, or give another path"
        ) from error


def printable(text: str | os.PathLike) -> str:
    """The text for a page, a table or a message: bytes of a file name that are not UTF-8, and
    control characters, are written as `\\xe9`.
    """
    text = os.fspath(text)
    if text.isprintable():
        return text
    text = text.encode("utf-8", PRINTABLE).decode("utf-8")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _as_escape(error: UnicodeError) -> tuple[str, int]:
    r"""Write a byte of a file name that is not UTF-8 as \xe9, like `printable`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    text = f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
    return text, error.start + 1


# How to write what the encoding cannot into a file that is read as UTF-8.
PRINTABLE = "jaxconv.printable"
codecs.register_error(PRINTABLE, _as_escape)


def check_file(option: str, path: str, suffixes: Sequence[str]) -> Path:
    """Check the path of a file to write, before the work starts.

    Args:
      option: name of its option, for messages.
      path: as given.
      suffixes: allowed suffixes, in lower case.

    Raises:
      UserError: the suffix is wrong, or the folder does not exist or is not writable.
    """
    file = expand(path, f"--{option}")
    if file.suffix.lower() not in suffixes:
        raise UserError(
            f"--{option}={path}: ends in {file.suffix!r}{nearest(file.suffix.lower(), suffixes)}; "
            f"give {' or '.join(suffixes)}"
        )
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK) or file.is_dir():
        raise UserError(
            f"--{option}={path}: cannot be written; give a file in an existing folder that you can "
            "write to",
            exit_code=1,
        )
    return file


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path next to a file, which replaces the file if the context succeeds.

    If the file is the copy of one in a bucket, that is replaced too.
    """
    with replaced(path) as temporary:
        yield temporary
    cloud.put(path)


def check_new(out: str) -> Path:
    """The folder `out`, which must not exist or be empty; raises UserError otherwise."""
    folder = expand(out, "--out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out={out}: already exists and is not an empty folder; give another")
    return folder


@contextlib.contextmanager
def new_folder(out: str) -> Iterator[Path]:
    """A temporary folder next to `out`, which becomes `out` if the context succeeds.

    Raises:
      UserError: `out` is not empty, or cannot be written.
    """
    try:
        folder = check_new(out)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
        ) as temporary:
            whole = Path(temporary) / "whole"
            whole.mkdir()
            yield whole
            whole.replace(folder)
            cloud.put(folder)
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # a full disk raises OSError, or ValueError in tensorstore
        raise UserError(
            f"--out={out}: cannot be written ({in_words(error)}); give a writable folder",
            exit_code=1,
        ) from error


def to_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON, which any reader accepts: numbers that are infinite or NaN become null."""

    def valid(item: Any) -> Any:
        if isinstance(item, dict):
            return {name: valid(one) for name, one in item.items()}
        if isinstance(item, (list, tuple)):
            return [valid(one) for one in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(valid(value), indent=indent, allow_nan=False)
