"""Errors caused by the user, printed without a traceback; and helpers for their messages."""

import contextlib
import difflib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

# Exit code of a run that was asked to stop, has saved, and should be started again: EX_TEMPFAIL of
# sysexits.h.
PREEMPTED = 75


class UserError(ValueError):
    """An error that the user can fix: the message gives what was wrong, its value, and what to do.

    Attributes:
      exit_code: 2 for a wrong command or config, 1 for a problem with data, files or numbers, or
        `PREEMPTED`.
    """

    def __init__(self, message: str, exit_code: int = 2):
        super().__init__(message)
        self.exit_code = exit_code


# The modules that each extra of jaxconv installs, beyond what `import jaxconv` needs; setup.cfg
# lists their packages.
EXTRAS = {
    "train": (
        "orbax", "tensorflow_datasets", "importlib_resources", "grain", "PIL", "tensorboardX",
        "matplotlib", "tqdm", "jinja2", "uniplot", "safetensors", "flatbuffers",
    ),
    "fast": ("simplejpeg", "cv2"),
    "coco": ("pycocotools",),
    "nifti": ("nibabel",),
    "hub": ("huggingface_hub",),
    "keras": ("h5py",),
    "cloud": ("fsspec", "gcsfs", "s3fs"),
    "prepare": ("tensorflow",),
    "playground": ("tornado",),
}  # fmt: skip


def missing(what: str, module: str) -> UserError:
    """The error for a module of one of the `EXTRAS` that is not installed; `what` needs it."""
    extra = next(extra for extra, modules in EXTRAS.items() if module in modules)
    return UserError(
        f"{what} needs {module}, which is not installed: pip install 'jaxconv[{extra}]'",
        exit_code=1,
    )


@contextlib.contextmanager
def needing_extras(what: str) -> Iterator[None]:
    """Turn the error for a module of one of the `EXTRAS` that is not installed into a UserError."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not any(module in modules for modules in EXTRAS.values()):
            raise
        raise missing(what, module) from error


class LostProcessError(UserError):
    """Another process of the run was lost, so this one cannot shut down normally."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the closest of the known words, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def short(value: object, most: int = 80) -> str:
    """The value as text on one line, cut to `most` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def some(names: Sequence[str], most: int = 4) -> str:
    """The first few of many names, and how many more there are: `a, b, c, d and 57 more`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def columns(text: str) -> int:
    """Columns that a text takes in a terminal: two for a Chinese character, none for an accent."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def padded(text: str, width: int) -> str:
    """The text, filled up with spaces to so many columns of a terminal."""
    return text + " " * (width - columns(text))


def human_bytes(size: float) -> str:
    """A number of bytes in the largest decimal unit that leaves at least 1: 1500 -> `1.5 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"


def in_words(error: Exception) -> str:
    """The error's kind and message as one short line."""
    return short(f"{type(error).__name__}: {error}", 200)
