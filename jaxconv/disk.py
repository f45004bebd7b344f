"""This machine's disk: the user's cache, locks, and files that are replaced as a whole."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


def cache_folder(name: str) -> Path:
    """The folder `name` of jaxconv's in the user's cache; `~` is not expanded yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxconv" / name


def lock(file: IO[str], shared: bool = False) -> None:
    """Lock an open file for this process until it is closed, or the process ends in any way.

    Args:
      file: open for writing, or for reading with `shared`.
      shared: allow others to hold the lock too, if they take it so.

    Raises:
      BlockingIOError: another process holds the lock.
    """
    try:
        _LOCK(file, shared)
    except PermissionError as error:  # how Windows says it, and POSIX allows it too
        raise BlockingIOError(*error.args) from error


def is_locked(folder: Path) -> bool:
    """Whether a process of this machine holds the lock of a workdir, see train/workdir.py."""
    try:
        with open(folder / ".lock") as file:
            lock(file, shared=True)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False


def _find_lock() -> Callable[[IO[str], bool], None]:
    """How this system locks an open file: POSIX has fcntl, and Windows has msvcrt."""
    with contextlib.suppress(ImportError):
        import fcntl

        def by_flock(file: IO[str], shared: bool) -> None:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

        return by_flock
    with contextlib.suppress(ImportError):
        import msvcrt

        # Without shared locks; `workdir.locked` tries again after a lock that is only a look.
        windows: Any = msvcrt  # whose functions type checkers know on Windows only
        return lambda file, shared: windows.locking(file.fileno(), windows.LK_NBLCK, 1)
    return lambda file, shared: os.lockf(file.fileno(), os.F_TEST if shared else os.F_TLOCK, 0)


_LOCK = _find_lock()


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary path next to a file, which replaces the file if the context succeeds."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
