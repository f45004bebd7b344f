"""A run's own code, in its workdir: `code/` holds the files of the pieces that its config names as
FILE.py:NAME, as they were when the run began, with the neighbours that they import. So it can be
opened elsewhere, and after they have changed or gone.

    code/code.json     {name in the config: {"file": in code/, "crc32": see `own.checksum`}}
    code/nets.py       of the first folder that files came from
    code/2/nets.py     of the second, and so on

What is named as package.module.NAME is installed, and is not copied; nor is what a file reads.

Whoever opens a run runs its code. `trusted` says whether that may be; without it, it may.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxconv.errors import UserError
from jaxconv.own import checksum, file_of, name_in, names_in, neighbours, renamed

log = logging.getLogger(__name__)

TRUST = ("yes", "no", "ask")
_FOLDER, _LIST = "code", "code.json"


class _Trust:
    """What this process may run.

    Attributes:
      answer: one of `TRUST`.
      settled: workdirs whose code it has said that it runs.
    """

    answer = "yes"
    settled: set[Path] = set()


@contextlib.contextmanager
def trusted(answer: str) -> Iterator[None]:
    """Whether workdirs' own code may be run, while the context lasts.

    Args:
      answer: yes; no; or ask, which asks at a terminal where the workdir is somebody else's, and
        is yes elsewhere.
    """
    before, _Trust.answer = _Trust.answer, answer
    try:
        yield
    finally:
        _Trust.answer = before


def keep(workdir: Path, config: Any) -> None:
    """Copy the files of a config's own pieces into the workdir of a run that begins, all or none.

    Raises:
      UserError: there is a folder of that name that no run has made.
    """
    folder = workdir / _FOLDER
    if (folder / _LIST).is_file():
        shutil.rmtree(folder)  # of a run that never began
    files = {name: file for name in names_in(config).values() if (file := file_of(name))}
    if not files:
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"--workdir={workdir}: has {_FOLDER!r} in it, which no run made, and where this one "
            "keeps its own code; give another folder",
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
        _write(whole / _LIST, (json.dumps(listed, indent=2) + "\n").encode())
        whole.replace(folder)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class _Copy(NamedTuple):
    """A copied file, and its checksum when the run began, 8 hexadecimal digits."""

    file: Path
    crc32: str


def _kept(workdir: Path) -> dict[str, _Copy]:
    """The copy of each name that has one; empty for a run without own files, and for one that is
    older than `code/`. Raises UserError where the list is damaged.
    """
    path = workdir / _FOLDER / _LIST
    if not path.exists():
        return {}
    try:
        return {
            name: _Copy((path.parent / entry["file"]).resolve(), entry["crc32"])
            for name, entry in json.loads(path.read_text()).items()
        }
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); bring it back, or start anew with --restart",
            exit_code=1,
        ) from error


def resumed(workdir: Path, config: Any) -> Any:
    """The config to train by: a person's files as they are now, and the workdir's copies of those
    that are gone, which is said.
    """
    files = {name: file_of(name) for name in names_in(config).values()}
    gone = {name: file for name, file in files.items() if file and not file.is_file()}
    kept = _kept(workdir) if gone else {}
    copies = {name: kept[name].file for name in gone if name in kept}
    for name, copy in copies.items():
        log.info("%s is gone; running the copy in the workdir: %s", gone[name], copy)
    return _by_copies(config, copies)


def with_code(workdir: Path, config: Any) -> Any:
    """The config to open a run by: its own pieces come from the workdir's copies, which is said
    once a workdir. A run that is older than `code/` has none, and takes them from where they were.

    Args:
      workdir: of the run.
      config: as the run has saved it.

    Raises:
      UserError: its code may not be run, see `trusted`; or the copies are damaged.
    """
    names = list(names_in(config).values())
    if not names:
        return config
    kept = {name: copy for name, copy in _kept(workdir).items() if name in names}
    for name, copy in kept.items():
        if not copy.file.is_file():
            raise UserError(
                f"--workdir={workdir}: {copy.file} is missing, where the run has {name}; bring it "
                "back",
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
    """The name that a config has for a piece, of the one that `resumed` or `with_code` gave it."""
    written = {name_in(copy.file, known): known for known, copy in _kept(workdir).items()}
    return written.get(name, name)


def _by_copies(config: Any, copies: Mapping[str, Path]) -> Any:
    names = {name: name_in(file, name) for name, file in copies.items()}
    return renamed(config, names) if names else config


def _check_trust(workdir: Path, places: Sequence[str], how: str) -> None:
    """Raise UserError unless the code of a workdir may be run; ask where that is to be asked."""
    shown = ", ".join(places)
    if _Trust.answer == "no":
        raise UserError(
            f"--trust=no: the workdir {workdir} {how} code of its own ({shown}), which would be "
            "run; look at it, and give --trust=yes to run it"
        )
    others = os.stat(workdir).st_uid != os.getuid()
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    settled = workdir.resolve() in _Trust.settled
    if _Trust.answer == "yes" or settled or not (others and terminal):
        return
    question = f"The workdir {workdir} {how} code of its own ({shown}), which would be run."
    try:
        answer = input(f"{question} Run it? [y/N] ")
    except EOFError:  # Ctrl-D is no yes
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError(f"--workdir={workdir}: its code was not run; --trust=yes runs it")
