"""Paths as a person gives them, and files that are written: looked at before the work, and whole or
not at all.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxconv.errors import UserError, nearest


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
