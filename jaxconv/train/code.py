"""The copies of a run's custom code in its workdir.

`code/` holds the files that the config names as FILE.py:NAME, as they were when the run began, with
the neighboring files that they import. The run can thus be opened elsewhere, and after the files
have changed or been deleted.

    code/code.json     {name in the config: {"file": in code/, "crc32": see `own.checksum`}}
    code/nets.py       a file from the first folder
    code/2/nets.py     a file from the second folder, and so on

Code named as package.module.NAME is installed, and is not copied. Neither are files that the code
reads.

Opening a run executes its code. `trusted` sets whether that is allowed; by default it is.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxconv import cloud
from jaxconv.errors import UserError
from jaxconv.files import to_json
from jaxconv.own import file_of, name_in, names_in, renamed, same_piece
from jaxconv.user_files import checksum, neighbours

log = logging.getLogger(__name__)

# Answers to whether the code in a workdir may be run.
TRUST = ("yes", "no", "ask")
_FOLDER, _LIST = "code", "code.json"


class _Trust:
    """What this process may run.

    Attributes:
      answer: one of `TRUST`.
      settled: workdirs whose code was already announced.
    """

    answer = "yes"
    settled: set[Path] = set()


@contextlib.contextmanager
def trusted(answer: str) -> Iterator[None]:
    """Set whether the code in workdirs may be run while the context lasts.

    Args:
      answer: yes; no; or ask, which asks at a terminal if the workdir belongs to another user, or
        is in a bucket and was not trained by this machine; and otherwise means yes.
    """
    before, _Trust.answer = _Trust.answer, answer
    try:
        yield
    finally:
        _Trust.answer = before


def keep(workdir: Path, config: Any) -> None:
    """Copy the custom code files of a config into the workdir of a new run, all or none.

    Raises:
      UserError: the workdir has a folder of that name that no run created.
    """
    folder = workdir / _FOLDER
    if (folder / _LIST).is_file():
        shutil.rmtree(folder)  # left by a run that never began
    files = {name: file for name in names_in(config).values() if (file := file_of(name))}
    if not files:
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"--workdir={workdir}: contains {_FOLDER!r}, which no run created and where this run "
            "would store its code; choose another folder",
            exit_code=1,
        )
    parents = list(dict.fromkeys(file.parent for file in files.values()))
    with tempfile.TemporaryDirectory(prefix=f".{_FOLDER}-", dir=workdir) as temporary:
        whole, listed = Path(temporary) / _FOLDER, {}
        for name, file in files.items():
            number = parents.index(file.parent) + 1
            place = whole if number == 1 else whole / str(number)
            for path in (file, *neighbours(file)):
                _write(place / path.relative_to(file.parent), path.read_bytes())
            copy = place / file.name
            listed[name] = {
                "file": copy.relative_to(whole).as_posix(),
                "crc32": f"{checksum(copy):08x}",
            }
        _write(whole / _LIST, (to_json(listed, indent=2) + "\n").encode())
        whole.replace(folder)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class _Copy(NamedTuple):
    """A copied file, and its checksum when the run began, as 8 hexadecimal digits."""

    file: Path
    crc32: str


def _kept(workdir: Path) -> dict[str, _Copy]:
    """The copy of each name that has one; raises UserError if the list is damaged.

    It is empty for a run without custom code files, and for a run older than `code/`.
    """
    path = workdir / _FOLDER / _LIST
    if not path.exists():
        return {}
    try:
        return {
            name: _Copy((path.parent / entry["file"]).resolve(), entry["crc32"])
            for name, entry in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); restore it, or start from scratch with --restart",
            exit_code=1,
        ) from error


def resumed(workdir: Path, config: Any) -> Any:
    """The config to train with: custom code files as they are now, or copies of deleted ones.

    The use of a copy is logged.
    """
    files = {name: file_of(name) for name in names_in(config).values()}
    gone = {name: file for name, file in files.items() if file and not file.is_file()}
    kept = _kept(workdir) if gone else {}
    copies = {
        name: copy.file for name in gone for known, copy in kept.items() if same_piece(known, name)
    }
    for name, copy in copies.items():
        log.info("%s no longer exists; running the copy in the workdir: %s", gone[name], copy)
    return _by_copies(config, copies)


def with_code(workdir: Path, config: Any, mine: Collection[str] = ()) -> Any:
    """The config to open a run with: its custom code comes from the workdir's copies.

    The copies are logged once per workdir. A run older than `code/` has none, and uses the original
    files.

    Args:
      workdir: the run's workdir.
      config: the config that the run saved.
      mine: names in it that do not come from the run; they stay as they are, and are trusted.

    Raises:
      UserError: its code may not be run, see `trusted`; or the copies are damaged.
    """
    names = [name for name in names_in(config).values() if name not in mine]
    if not names:
        return config
    kept = {name: copy for name, copy in _kept(workdir).items() if name in names}
    for name, copy in kept.items():
        if not copy.file.is_file():
            raise UserError(
                f"--workdir={workdir}: {copy.file}, the copy of {name}, is missing; restore it",
                exit_code=1,
            )
    places = [kept[name].file if name in kept else file_of(name) or name for name in names]
    _check_trust(workdir, list(dict.fromkeys(map(str, places))), "holds" if kept else "names")
    if workdir.resolve() not in _Trust.settled:
        for copy in dict.fromkeys(kept.values()):
            changed = f"{checksum(copy.file):08x}" != copy.crc32
            after = " (changed since the run began)" if changed else ""
            log.info("running the code of this workdir: %s%s", copy.file, after)
        _Trust.settled.add(workdir.resolve())
    return _by_copies(config, {name: copy.file for name, copy in kept.items()})


def as_written(workdir: Path, name: str) -> str:
    """The name that a run's config has for code: of a copy, or of a file that has moved."""
    kept = _kept(workdir)
    written = {name_in(copy.file, known): known for known, copy in kept.items()}
    moved = [known for known in kept if same_piece(known, name)]
    return written.get(name) or next(iter(moved), name)


def _by_copies(config: Any, copies: Mapping[str, Path]) -> Any:
    names = {name: name_in(file, name) for name, file in copies.items()}
    return renamed(config, names) if names else config


def _check_trust(workdir: Path, places: Sequence[str], how: str) -> None:
    """Raise UserError unless the code of a workdir may be run; ask the user if required."""
    shown = ", ".join(places)
    if _Trust.answer == "no":
        raise UserError(
            f"--trust=no: the workdir {workdir} {how} custom code ({shown}), which would be run; "
            "review it, and pass --trust=yes to run it"
        )
    # Windows has no such numbers, and asks nothing.
    others = hasattr(os, "getuid") and os.stat(workdir).st_uid != os.getuid()
    others = others or cloud.is_foreign(workdir)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    settled = workdir.resolve() in _Trust.settled
    if _Trust.answer == "yes" or settled or not (others and terminal):
        return
    question = f"The workdir {workdir} {how} custom code ({shown}), which would be run."
    try:
        answer = input(f"{question} Run it? [y/N] ")
    except EOFError:  # Ctrl-D means no
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError(f"--workdir={workdir}: its code was not run; pass --trust=yes to run it")
