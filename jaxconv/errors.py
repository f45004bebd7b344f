"""What a person did that cannot work. The command line prints the message alone, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something to be mended by the person: the message says what was wrong, with its value, and what to do.

    Attributes:
      exit_code: 2 for a wrong command or config, 1 for what went wrong with data, files or numbers.
    """

    def __init__(self, message: str, exit_code: int = 2):
        super().__init__(message)
        self.exit_code = exit_code


def nearest(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the closest of the known words, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def short(value: object, most: int = 80) -> str:
    """The value as text, cut to `most` characters."""
    text = str(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def in_words(error: Exception) -> str:
    """The error's kind and message as one short line."""
    return short(" ".join(f"{type(error).__name__}: {error}".split()), 200)
