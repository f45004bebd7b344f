"""Paths as a person gives them, and files that are written: looked at before the work, and whole or
not at all.
"""

import codecs
import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxconv.errors import UserError, in_words, nearest


def expand(path: str, option: str = "--workdir") -> Path:
    """An absolute path, `~` expanded; raises UserError for an empty one, a URL, or another's home
    that there is not.
    """
    if not path:
        raise UserError(f"{option}= is empty; give a folder")
    if re.match(r"\w+://", str(path)):
        raise UserError(
            f"{option}={path}: must be a folder of this machine's file system; a bucket can be "
            "mounted as one"
        )
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f"{option}={path}: {error}") from error


def printable(text: str | os.PathLike) -> str:
    """The text for a page, a table or a message: bytes of a file name that are not UTF-8, and
    control characters, are written as `\\xe9`.
    """
    text = os.fspath(text)
    if text.isprintable():
        return text
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _as_in_the_name(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write the bytes of a file name that is not UTF-8 as they are, as `ls` does; and a character
    that the encoding lacks by its number.
    """
    error.end = error.start + 1
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


codecs.register_error("jaxconv.names", _as_in_the_name)


def print_any_name() -> None:
    """Let standard output and standard error take every file name, whatever their encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="jaxconv.names")


def check_file(option: str, path: str, suffixes: Sequence[str]) -> Path:
    """The path of a file to write, before the work is done.

    Args:
      option: that asks for it, for messages.
      path: as it was given.
      suffixes: that it may have, in small letters.

    Raises:
      UserError: a wrong suffix, or a folder that is not there, or that nothing can be written to.
    """
    file = expand(path, f"--{option}")
    if file.suffix.lower() not in suffixes:
        raise UserError(
            f"--{option}={path}: ends in {file.suffix!r}{nearest(file.suffix.lower(), suffixes)}; "
            f"give {' or '.join(suffixes)}"
        )
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK) or file.is_dir():
        raise UserError(
            f"--{option}={path}: cannot be written; give a file in a folder that is there, and "
            "that you may write to",
            exit_code=1,
        )
    return file


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside a file, which takes the file's place when the context ends well, and
    is gone when it does not.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_new(out: str) -> Path:
    """The folder `out`, not yet there or empty; raises UserError where it holds something."""
    folder = expand(out, "--out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out={out}: is there already, and is not an empty folder; give another")
    return folder


@contextlib.contextmanager
def new_folder(out: str) -> Iterator[Path]:
    """A folder beside `out` to write into, which becomes `out` when all is written: that is whole
    or not at all.

    Raises:
      UserError: `out` holds something, or cannot be written.
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
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # a full disk comes as an OSError, or as tensorstore's ValueError
        raise UserError(
            f"--out={out}: cannot be written ({in_words(error)}); give a folder that can",
            exit_code=1,
        ) from error
