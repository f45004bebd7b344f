"""Standard streams that are closed, full, or cannot encode our characters.

A daemon closes them, the disk behind them fills up, a terminal hangs up, and the C locale has only
ASCII. None of these may end a training.
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


class Output:
    """A stream for results. After a failure, later output is dropped.

    Attributes:
      lost: the error of the failure, which was also raised; None before.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, and return its length; raises OSError the first time that it fails."""
        if self.lost is None:
            with self._noting():
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush; raises OSError the first time that something fails."""
        if self.lost is None:
            with self._noting():
                self._stream.flush()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = error
            # What is buffered would fail again when Python exits.
            with contextlib.suppress(OSError):  # a stream of Python's, without a file
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Messages(Output):
    """A stream for messages: what cannot be written is dropped without an error."""

    def write(self, text: str) -> int:
        """Write text if that is possible, and return its length."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        with contextlib.suppress(OSError):
            self._stream.flush()


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
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="jaxconv.substitute")
    sys.stdout, sys.stderr = Output(sys.stdout), Messages(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


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
    """Flush standard output within `usable_streams`; why output was lost, since the last call."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    lost = getattr(sys.stdout, "lost", None)
    if lost:
        sys.stdout.lost = None  # type: ignore[attr-defined]
    return lost
