"""What a run puts into its bucket while it trains, and which process may."""

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import threading
import time
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from jaxconv.cloud.addresses import address_of, cache_folder
from jaxconv.cloud.buckets import Bucket, at_once
from jaxconv.cloud.copies import fetch, names_in
from jaxconv.cloud.index import INDEX, PATIENCE, Index, copied, known_of, read_index
from jaxconv.disk import replaced
from jaxconv.errors import UserError

log = logging.getLogger(__name__)

# The process that trains at an address.
_WRITER = ".writer"
# In a copy: this machine has trained there.
_OURS = ".ours"
# Seconds between two looks for new checkpoints, two copies of the other files of a run, and two
# renewals of `.writer`.
_LOOK, _EVERY, _RENEW = 1, 30, 10
# Seconds without a renewal after which a reader says that nobody trains; a writer waits less, see
# `PATIENCE`.
_READERS_PATIENCE = 120


def put(path: Path) -> None:
    """Put a file or folder of a copy into its bucket; nothing for a path that is no copy.

    Nothing either where this process has a `Mirror`, which does it.
    """
    address = address_of(path)
    if not address or any(path.is_relative_to(place) for place in _MIRRORS):
        return
    bucket = Bucket(address)
    if path.is_file():
        bucket.put("", path)
    else:
        at_once(lambda name: bucket.put(name, path / name), names_in(path))


def is_foreign(place: Path) -> bool:
    """Whether a path is the copy of a run that this machine has not trained."""
    return bool(address_of(place)) and not (place / _OURS).exists()


def is_taken(place: Path) -> bool:
    """Whether there is a run at the address of a copy."""
    return Bucket(address_of(place)).read(INDEX) is not None


def set_aside(place: Path, to: Path) -> None:
    """Move the run at the address of a copy to another address; the copy goes.

    Raises:
      UserError: a process trains there.
    """
    bucket = Bucket(address_of(place))
    _wait_for_writer(bucket)
    index, goal = read_index(bucket) or Index(), address_of(to)
    at_once(lambda name: bucket.copy(name, f"{goal}/{name}"), index.files)
    Bucket(goal).write(INDEX, index.text().encode())
    bucket.remove([INDEX])
    bucket.remove([*index.files, _WRITER])
    shutil.rmtree(place)


def _me() -> str:
    """This machine, as those that share its copies."""
    file = cache_folder() / "machine"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced(file) as temporary:
            temporary.write_text(secrets.token_hex(8))
    return file.read_text()


def _writer(bucket: Bucket) -> dict[str, Any]:
    """The process that trains at an address; empty if none does, or it cannot be read."""
    try:
        found = json.loads(bucket.read(_WRITER) or b"{}")
        return found if isinstance(found, dict) else {}
    except ValueError:
        return {}


def _wait_for_writer(bucket: Bucket) -> None:
    """Raise UserError if a process of another machine trains at an address. One that no longer
    renews `.writer` is lost. Clocks of machines differ, so this waits.
    """
    first = _writer(bucket)
    if not first or first.get("machine") == _me():  # the lock of the copy excludes those here
        return
    log.info(
        "%s: the process on %s has not said that it ended; seeing for %d s whether it is lost",
        bucket.address,
        first.get("host"),
        PATIENCE,
    )
    end = time.monotonic() + PATIENCE
    while (now := _writer(bucket)) == first and time.monotonic() < end:
        time.sleep(1)
    if now and now != first:
        raise UserError(
            f"--workdir={bucket.address}: another process is training there, on "
            f"{now.get('host')}; wait for it, or choose another folder",
            exit_code=1,
        )


def in_use(place: Path) -> bool:
    """Whether a process of any machine seems to train at the address of a copy."""
    if not address_of(place):
        return False
    renewed = _writer(Bucket(address_of(place))).get("time", 0)
    return abs(time.time() - renewed) < _READERS_PATIENCE


_MIRRORS: dict[Path, "Mirror"] = {}


class Mirror:
    """Puts the copy of a run in training into its bucket: each checkpoint soon after it is
    complete, the other files at intervals and at the end.

    Args:
      place: the copy, which this process has locked.
      held: that lock.

    Raises:
      UserError: another process trains there, or the bucket cannot be used.
    """

    def __init__(self, place: Path, held: TextIO):
        self._place, self._held, self._bucket = place, held, Bucket(address_of(place))
        self._token, self._renewed, self._lost = secrets.token_hex(8), 0, False
        self._seen: dict[str, tuple[tuple[int, int], tuple[int, str]]] = {}
        self._end, self._pushing = threading.Event(), threading.Lock()
        _wait_for_writer(self._bucket)
        self._renew()
        (place / _OURS).touch()
        fetch(place)
        self._index = copied(place)
        # What a run left that was killed while it put or removed a checkpoint.
        left = set(self._bucket.list("checkpoints")) - set(self._index.files)
        self._bucket.remove(left)
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._work, self._keep)
        ]
        _MIRRORS[place] = self
        if not self._index.number:  # from now on, an object that it does not name is no part of it
            self._write_index(Index(1))
            self.push()
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _renew(self) -> None:
        self._renewed += 1
        about = {
            "token": self._token,
            "renewed": self._renewed,
            "machine": _me(),
            "host": socket.gethostname(),
            "time": time.time(),
        }
        self._bucket.write(_WRITER, json.dumps(about).encode())

    def _keep(self) -> None:
        """Renew `.writer` while the run lasts."""
        while not self._lost and not self._end.wait(_RENEW):
            with contextlib.suppress(UserError):  # `push` says it
                self._check()
                self._renew()

    def _check(self) -> None:
        """Raise UserError if another process has taken this one for lost, and trains."""
        self._lost = self._lost or _writer(self._bucket).get("token", self._token) != self._token
        if self._lost:
            raise UserError(
                f"--workdir={self._bucket.address}: another process trains there by now, so this "
                "one writes no more; stop it",
                exit_code=1,
            )

    def _work(self) -> None:
        """Push while the run lasts: at once if there is a new checkpoint."""
        last, said = time.monotonic(), ""
        while not self._end.wait(_LOOK):
            if self._steps() == self._index.steps() and time.monotonic() < last + _EVERY:
                continue
            last = time.monotonic()
            try:
                self.push()
                said = ""
            except (UserError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("%s (the training continues)", error)
                self._end.wait(_RENEW)

    def _steps(self) -> set[int]:
        """The steps of the complete checkpoints: Orbax renames their folders last."""
        folder = self._place / "checkpoints"
        names = os.listdir(folder) if folder.is_dir() else []
        return {int(name) for name in names if name.isdecimal()}

    def push(self) -> None:
        """Put what is new, and then the index; raises UserError if it cannot be put."""
        with self._pushing:
            self._check()
            # First, so that the rows up to these checkpoints are in metrics.jsonl.
            steps = self._steps()
            names = [name for name in names_in(self._place) if self._is_other(name)]
            files = dict(zip(names, at_once(self._put_other, names), strict=True))
            for step in steps:
                files |= self._put_checkpoint(step)
            found = {name: known for name, known in files.items() if known is not None}
            if found == self._index.files:
                return
            gone = set(self._index.files) - set(found)
            self._write_index(Index(self._index.number + 1, found))
            self._bucket.remove(gone)

    def _write_index(self, index: Index) -> None:
        self._bucket.write(INDEX, index.text().encode())
        with replaced(self._place / INDEX) as temporary:
            temporary.write_text(index.text())
        self._index = index

    def _is_other(self, name: str) -> bool:
        return PurePosixPath(name).parts[0] not in ("checkpoints", "damaged")

    def _put_other(self, name: str) -> tuple[int, str] | None:
        """Put a file, which may grow meanwhile, unless it is there."""
        try:
            about = (self._place / name).stat()
            when = about.st_size, about.st_mtime_ns
            if name in self._seen and self._seen[name][0] == when:
                return self._seen[name][1]
            content = (self._place / name).read_bytes()
        except FileNotFoundError:
            return None
        known = len(content), hashlib.sha256(content).hexdigest()
        if known != self._index.files.get(name):
            self._bucket.write(name, content)
        self._seen[name] = when, known
        return known

    def _put_checkpoint(self, step: int) -> dict[str, tuple[int, str]]:
        """Put the files of a checkpoint, which never change; empty if it was removed meanwhile."""
        if known := self._index.of_step(step):
            return known
        folder = self._place / "checkpoints" / str(step)
        names = [f"checkpoints/{step}/{name}" for name in names_in(folder)]

        def one(name: str) -> tuple[int, str] | None:
            known = known_of(self._place / name)
            if known:
                self._bucket.put(name, self._place / name)
            return known

        try:
            found = dict(zip(names, at_once(one, names), strict=True))
        except FileNotFoundError:
            return {}
        whole = {name: known for name, known in found.items() if known}
        return whole if len(whole) == len(names) else {}

    def close(self) -> None:
        """Put what is left, and end; raises UserError if it cannot be put."""
        self._end.set()
        for thread in self._threads:
            thread.join()
        try:
            self.push()
            self._bucket.remove([_WRITER])
        finally:
            _MIRRORS.pop(self._place, None)
            self._held.close()


def push(place: Path) -> None:
    """Put what is new in a run of this process; nothing if it is in no bucket."""
    if place in _MIRRORS:
        _MIRRORS[place].push()
