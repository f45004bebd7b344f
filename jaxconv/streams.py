"""Standard input, output and error at their edges: closed, full, or without our characters.

A daemon closes them, a disk that they go to fills up, a terminal hangs up, and the locale C has
ASCII alone. None of these may end a training.
"""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

_SUBSTITUTES = {"±": "+-", "×": "x", "→": "->", "↓": "v", "…": "...", "✓": "ok", "✗": "no"}
_LINES = {"─": "-", "│": "|", "⠀": " "}


def _substitute(error: UnicodeError) -> tuple[bytes, int]:
    """Encode what a stream cannot: a file's name byte by byte, other characters in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error

    def encoded(character: str) -> bytes:
        number = ord(character)
        if 0xDC80 <= number <= 0xDCFF:  # a byte of a name that is not UTF-8, see os.fsdecode
            return bytes([number - 0xDC00])
        plain = (_SUBSTITUTES | _LINES).get(character)
        if plain is None and 0x2500 <= number < 0x2580:  # corners and crossings of frames
            plain = "+"
        if plain is None and 0x2800 <= number < 0x2900:  # braille, the dots of curves
            plain = "*"
        return (plain or character).encode("ascii", "backslashreplace")

    return b"".join(map(encoded, error.object[error.start : error.end])), error.end


codecs.register_error("jaxconv.substitute", _substitute)


class Messages:
    """A stream for messages: what cannot be written is dropped, all else is as in the stream."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text if that is possible; returns its length."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Make the standard streams usable for a command, whatever state they are in.

    A closed one becomes the null device. Messages on standard error that cannot be written are
    dropped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _take_place(number)
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115, it stays
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="jaxconv.substitute")
    before = sys.stderr
    sys.stderr = Messages(before)
    try:
        yield
    finally:
        sys.stderr = before


def _take_place(number: int) -> None:
    """Put the null device in the place of a closed stream.

    Otherwise the next file that is opened takes it, and messages of C++ code end up in that file.
    """
    with contextlib.suppress(OSError):
        os.fstat(number)
        return
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    os.set_inheritable(number, True)


def lost_output() -> OSError | None:
    """Flush standard output; if that fails, return why, and drop this and all later output."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # a stream of Python's, without a file
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        return error
    return None
