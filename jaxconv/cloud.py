"""Folders and files in buckets: `gs://BUCKET/PATH` and `s3://BUCKET/PATH`.

All other code works on local files: an address stands for a copy of it in `cache_folder()`, which
`local` fills from the bucket. What is written to the copy is put into the bucket: files by `put`,
and the workdir of a run in training by its `Mirror`.

    ADDRESS/.index.json   of a run: {"number": N, "files": {NAME: [bytes, SHA-256]}}
    ADDRESS/.writer       the process that trains there; renewed while it does

The index is written last, under one name. So a checkpoint whose objects are not all there is never
named, one that is damaged differs from its digests, and listings, which may lag behind in some
stores, are only used for folders without an index, such as data. Names that begin with a dot belong
to one machine, and are not copied.

`etils.epath`, by which Orbax and TFDS read addresses, stands on fsspec, as this does, so
credentials and endpoints are the same. The paths of a run are not epath's all the same: objects
cannot be locked, renamed or appended to, and outside gs:// Orbax finishes a checkpoint by renaming
its folder, which no store does at once.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TextIO

from jaxconv import disk
from jaxconv.disk import is_locked, lock, replaced
from jaxconv.errors import UserError, human_bytes, missing, short

log = logging.getLogger(__name__)

# The packages that read each kind of address; both are in the extra `cloud`.
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_ADDRESS = re.compile(rf"({'|'.join(_PACKAGES)}):/")
_LOG_IN = {
    "gs": "log in with `gcloud auth application-default login`, or set "
    "GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in with `aws configure`; "
    "AWS_ENDPOINT_URL names a store other than Amazon's",
}
_INDEX, _WRITER = ".index.json", ".writer"
# In a copy: this machine has trained there.
_OURS = ".ours"
# Seconds before each further try, after those that the packages make themselves.
_PAUSES = (1,)
# Objects that are copied at the same time.
_AT_ONCE = 16
# Seconds for which a copy is not looked at again: a command asks for it several times.
_FRESH = 30
# Seconds between two looks for new checkpoints, two copies of the other files of a run, and two
# renewals of `.writer`.
_LOOK, _EVERY, _RENEW = 1, 30, 10
# Seconds without a renewal after which a writer is lost, and after which a reader says so.
PATIENCE, _READERS_PATIENCE = 35, 120
# Bytes from which on it is said what is fetched.
_SAID = 100e6


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is `gs://...` or `s3://...`, of whose slashes a `Path` keeps one."""
    return bool(_ADDRESS.match(str(path)))


def cache_folder() -> Path:
    """Where the copies are: JAXCONV_CLOUD, or `jaxconv/cloud` in the user's cache."""
    given = os.environ.get("JAXCONV_CLOUD")
    try:
        return Path(given or disk.cache_folder("cloud")).expanduser().resolve()
    except RuntimeError:  # the home folder is unknown
        return Path(tempfile.gettempdir()).resolve() / "jaxconv_cloud"


def place_of(address: str, option: str = "--workdir") -> Path:
    """Where the copy of an address is; raises UserError if it is not `SCHEME://BUCKET[/PATH]`."""
    scheme, _, rest = str(address).partition(":")
    rest = rest.removeprefix("/").removeprefix("/")
    parts = rest.rstrip("/").split("/")
    if not all(parts) or any(part.startswith(".") or "\\" in part for part in parts):
        raise UserError(
            f"{option}={address}: must be {scheme}://BUCKET/PATH, whose parts do not begin with a "
            "dot"
        )
    return cache_folder().joinpath(scheme, *parts)


def address_of(path: Path) -> str:
    """The address that a local path is the copy of; empty if it is none."""
    root = cache_folder()
    if not path.is_relative_to(root) or len(path.relative_to(root).parts) < 2:
        return ""
    scheme, *parts = path.relative_to(root).parts
    return f"{scheme}://{'/'.join(parts)}" if scheme in _PACKAGES else ""


def with_addresses(text: str) -> str:
    """A text for people: paths of copies are written as their addresses."""
    root = re.escape(str(cache_folder()))
    return re.sub(rf"{root}/({'|'.join(_PACKAGES)})/", r"\1://", text)


def local(address: str, option: str = "--workdir") -> Path:
    """The copy of a file or folder in a bucket, fetched unless this process has just done so.

    The checkpoints of a run are fetched when they are opened, see `fetch_checkpoints`.

    Raises:
      UserError: it cannot be had: a package, credentials or the bucket are missing, for example.
    """
    place = place_of(address, option)
    if time.monotonic() > _FETCHED.get(place, -_FRESH) + _FRESH:
        refresh(place)
        _FETCHED[place] = time.monotonic()
    return place


_FETCHED: dict[Path, float] = {}


def refresh(place: Path, number: int = 0) -> None:
    """Make a copy as its address is now; nothing for a path that is no copy.

    Where a process of this machine trains, the copy is what it puts there.

    Args:
      place: the local path.
      number: of the index that must have been reached.
    """
    if address_of(place) and not is_locked(place):
        _fetch(place, number)


class _Bucket:
    """Reads and writes objects by their names below an address, and tries again.

    Raises:
      UserError: what was asked for cannot be done; the message says what to do.
    """

    def __init__(self, address: str):
        self.address = address
        self.scheme, _, self._root = address.partition("://")
        package = _PACKAGES[self.scheme]
        # Its own classes for other kinds of buckets ask for permissions and print what they lack.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        try:
            import fsspec

            # Listings that are remembered would be old in the next look.
            self._files = fsspec.filesystem(self.scheme, use_listings_cache=False)
        except ImportError as error:
            raise missing(address, package) from error

    def _try(self, action: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        for pause in (*_PAUSES, None):
            try:
                return action(*arguments, **settings)
            except FileNotFoundError as error:
                if "bucket does not exist" in str(error):  # S3 says so
                    raise self._without_bucket() from error
                raise
            except Exception as error:  # whatever the packages raise
                if refusal := self._refusal(error):
                    raise refusal from error
                if pause is None:
                    raise UserError(
                        f"{self.address}: cannot be reached ({_words(error)}); once it can, the "
                        "same command resumes",
                        exit_code=1,
                    ) from error
            time.sleep(pause)
        raise AssertionError  # the last pause is None

    def _refusal(self, error: Exception) -> UserError | None:
        """The error for what no further try would change."""
        kind, said = type(error).__name__, str(error)
        refused = isinstance(error, PermissionError) or re.search(
            "Forbidden|Unauthorized|Anonymous caller|Invalid Credentials|, 40[13]$", said
        )
        if "Credentials" in kind or refused:
            return UserError(
                f"{self.address}: access is refused ({_words(error)}); {_LOG_IN[self.scheme]}",
                exit_code=1,
            )
        return None

    def _without_bucket(self) -> UserError:
        bucket = self._root.partition("/")[0]
        return UserError(
            f"{self.address}: there is no bucket {bucket!r}; create it, or give another",
            exit_code=1,
        )

    def _of(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def read(self, name: str) -> bytes | None:
        """An object's content; None if there is none."""
        try:
            return self._try(self._files.cat_file, self._of(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Replace an object."""
        try:
            self._try(self._files.pipe_file, self._of(name), content)
        except FileNotFoundError as error:
            raise self._without_bucket() from error

    def get(self, name: str, file: Path) -> None:
        """Copy an object to a file; raises FileNotFoundError if there is none."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced(file) as temporary:
            self._try(self._files.get_file, self._of(name), str(temporary))

    def put(self, name: str, file: Path) -> None:
        """Copy a file to an object."""
        if not file.is_file():
            raise FileNotFoundError(file)
        try:
            self._try(self._files.put_file, str(file), self._of(name))
        except FileNotFoundError as error:
            raise self._without_bucket() from error

    def copy(self, name: str, to: str) -> None:
        """Copy an object to another address, without its coming here."""
        self._try(self._files.cp_file, self._of(name), to.partition("://")[2])

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, those that are there."""

        def one(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._try(self._files.rm_file, self._of(name))

        _at_once(one, names)

    def list(self, below: str = "") -> dict[str, tuple[int, float]]:
        """Bytes and time of change of the objects below a name, by name; perhaps not the newest.

        An object of that very name is there as an empty name.
        """
        try:
            found = self._try(self._files.find, self._of(below), detail=True)
        except FileNotFoundError:
            return {}
        return {
            name.removeprefix(self._root).removeprefix("/"): (info["size"], _time_of(info))
            for name, info in found.items()
            if info["type"] == "file" and not name.endswith("/")
        }


def _time_of(info: Mapping[str, Any]) -> float:
    """When an object was changed, in seconds: as S3 and as GCS say it."""
    from datetime import datetime

    when = info.get("LastModified") or info.get("updated") or info.get("mtime")
    if isinstance(when, str):
        when = datetime.fromisoformat(when.replace("Z", "+00:00"))
    return float(int(when.timestamp())) if when else 0.0


def _words(error: Exception) -> str:
    return short(f"{type(error).__name__}: {error}", 200)


def _at_once(action: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(action, items))


class _Index(NamedTuple):
    """What a run in a bucket consists of.

    Attributes:
      number: how often it was written.
      files: bytes and SHA-256 by name.
    """

    number: int = 0
    files: Mapping[str, tuple[int, str]] = {}

    def step_of(self, name: str) -> int | None:
        """The step of the checkpoint that a file belongs to."""
        parts = PurePosixPath(name).parts
        return int(parts[1]) if len(parts) > 2 and parts[0] == "checkpoints" else None

    def steps(self) -> set[int]:
        """The steps of the checkpoints."""
        return {step for name in self.files if (step := self.step_of(name)) is not None}

    def of_step(self, step: int | None) -> dict[str, tuple[int, str]]:
        """The files of a checkpoint, or those of none."""
        return {name: known for name, known in self.files.items() if self.step_of(name) == step}

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"number": self.number, "files": dict(self.files)})


def _parse(text: bytes | str | None, address: str) -> _Index | None:
    """An index from its JSON; raises UserError if it is damaged."""
    if text is None:
        return None
    try:
        value = json.loads(text)
        files = {str(name): (int(size), str(sha)) for name, (size, sha) in value["files"].items()}
        if any(".." in PurePosixPath(name).parts or name.startswith("/") for name in files):
            raise ValueError("a name leads out of the folder")
        return _Index(int(value["number"]), files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{address}/{_INDEX}: is damaged ({_words(error)}); restore it, or start from scratch "
            "in another folder",
            exit_code=1,
        ) from error


def _read_index(bucket: _Bucket, number: int = 0) -> _Index | None:
    """The index at an address, None if there is none; waits until it has reached a number."""
    end = time.monotonic() + PATIENCE
    while True:
        index = _parse(bucket.read(_INDEX), bucket.address)
        if (index.number if index else 0) >= number:
            return index
        if time.monotonic() > end:
            raise UserError(
                f"{bucket.address}: this process does not see what the first process of the run "
                "has written; give all of them the same store",
                exit_code=1,
            )
        time.sleep(0.2)


def _copied(place: Path) -> _Index:
    """The index that a copy was last made from, or put."""
    file = place / _INDEX
    return (_parse(file.read_text(), str(place)) if file.is_file() else None) or _Index()


def number_of(place: Path) -> int:
    """The number of the index of a copy."""
    return _copied(place).number


def _known(file: Path) -> tuple[int, str] | None:
    """Bytes and SHA-256 of a file; None if there is none."""
    try:
        with file.open("rb") as opened:
            return file.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Keep the other processes of this machine from changing a copy."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(f".{place.name}.copying"), "w") as file:
        while True:
            try:
                lock(file)
                break
            except BlockingIOError:
                time.sleep(0.1)
        yield


def _fetch(place: Path, number: int = 0) -> None:
    """Make a copy what is at its address, except checkpoints, of which it makes empty folders."""
    bucket = _Bucket(address_of(place))
    with _alone(place):
        index = _read_index(bucket, number)
        if index is not None:
            _follow(place, index, bucket)
            return
        found = bucket.list()
        runs = {PurePosixPath(name).parent for name in found if name.endswith(f"/{_INDEX}")}
        for run in runs:
            if not is_locked(place / run):
                inner = _Bucket(f"{bucket.address}/{run}")
                _follow(place / run, _read_index(inner) or _Index(), inner)
        plain = {
            name: known
            for name, known in found.items()
            if not runs.intersection(PurePosixPath(name).parents) and not _is_hidden(name)
        }
        if list(plain) != [""]:
            _remove_others(place, {*plain, *map(str, runs)})
        _get_plain(place, plain, bucket)


def _get_plain(place: Path, objects: Mapping[str, tuple[int, float]], bucket: _Bucket) -> None:
    """Get the objects that differ in size or time from the files of a copy."""

    def is_old(name: str) -> bool:
        file = place / name
        try:
            return (file.stat().st_size, file.stat().st_mtime) != objects[name]
        except (FileNotFoundError, NotADirectoryError):
            return True

    def get(name: str) -> None:
        try:
            bucket.get(name, place / name)
        except FileNotFoundError:  # removed since the listing
            return
        os.utime(place / name, (objects[name][1], objects[name][1]))

    old = list(filter(is_old, objects))
    _announce(bucket.address, place, [objects[name][0] for name in old])
    _at_once(get, old)


def _announce(address: str, place: Path, sizes: Collection[int]) -> None:
    """Say what is fetched if it takes a while; raises UserError if there is no room for it."""
    free = shutil.disk_usage(place.parent).free
    if sum(sizes) > free:
        raise UserError(
            f"{address}: has {human_bytes(sum(sizes))}, but the disk of {cache_folder()} has only "
            f"{human_bytes(free)} left; set JAXCONV_CLOUD to a folder on a larger one",
            exit_code=1,
        )
    if sum(sizes) > _SAID:
        log.info("fetching %s: %d files, %s", address, len(sizes), human_bytes(sum(sizes)))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _names_in(place: Path) -> list[str]:
    """The names of the files of a copy, without those of this machine alone."""
    if not place.is_dir():
        return []
    found = []
    for folder, inner, files in os.walk(place):
        inner[:] = [name for name in inner if not name.startswith(".")]
        below = Path(folder).relative_to(place)
        found += [(below / name).as_posix() for name in files if not name.startswith(".")]
    return found


def _remove_others(place: Path, kept: Collection[str]) -> None:
    """Remove the files of a copy that are not below one of these names, and empty folders."""
    if place.is_file():
        place.unlink()

    def is_kept(name: str) -> bool:
        path = PurePosixPath(name)
        return _is_hidden(name) or not {name, *map(str, path.parents)}.isdisjoint(kept)

    for folder, _, files in os.walk(place, topdown=False):
        below = Path(folder).relative_to(place)
        for name in files:
            if not is_kept((below / name).as_posix()):
                (place / below / name).unlink()
        if below != Path() and not is_kept(below.as_posix()):
            with contextlib.suppress(OSError):  # it is not empty
                (place / below).rmdir()


def _follow(place: Path, index: _Index, bucket: _Bucket) -> None:
    """Make a copy of a run what its index says; one that was made from it is kept, as it is at
    least as new: it may have what could no longer be put.
    """
    if _copied(place) == index:
        return
    place.mkdir(parents=True, exist_ok=True)
    (place / _INDEX).unlink(missing_ok=True)
    checkpoints = place / "checkpoints"
    for folder in checkpoints.iterdir() if checkpoints.is_dir() else ():
        known = index.of_step(int(folder.name)) if folder.name.isdecimal() else {}
        if not known or any(_known(place / name) != wanted for name, wanted in known.items()):
            shutil.rmtree(folder)
    _remove_others(place, index.files)
    for step in index.steps():
        (checkpoints / str(step)).mkdir(parents=True, exist_ok=True)

    def get(name: str) -> None:
        if _known(place / name) != index.files[name]:
            try:
                bucket.get(name, place / name)
            except FileNotFoundError:
                log.warning("%s/%s: is missing", bucket.address, name)

    _at_once(get, index.of_step(None))
    with replaced(place / _INDEX) as temporary:
        temporary.write_text(index.text())


def fetch_checkpoints(place: Path) -> None:
    """Fill the empty folders of a copy's checkpoints; nothing for a path that is no copy.

    One that is damaged in the bucket is removed from the copy, with a warning.

    Raises:
      UserError: all of them are damaged.
    """
    if not address_of(place) or not (place / "checkpoints").is_dir():
        return
    with _alone(place):
        index, bucket = _copied(place), _Bucket(address_of(place))
        folders = {step: place / "checkpoints" / str(step) for step in index.steps()}
        left = [step for step, at in folders.items() if at.is_dir() and not any(at.iterdir())]
        sizes = [size for step in left for size, _ in index.of_step(step).values()]
        _announce(bucket.address, place, sizes)
        lost = {step: why for step in left if (why := _get_checkpoint(place, step, index, bucket))}
        if not lost:
            return
        now = _read_index(bucket) or _Index()
        damaged = sorted(lost.keys() & now.steps())  # others were removed by the run itself
        for step in damaged:
            log.warning("checkpoint of step %d is damaged (%s); it is left out", step, lost[step])
        for step in lost:
            folders[step].rmdir()
        if damaged and not any(at.is_dir() for at in folders.values()):
            raise UserError(
                f"{bucket.address}: no checkpoint can be read; the error of step {damaged[-1]}: "
                f"{lost[damaged[-1]]}",
                exit_code=1,
            )


def _get_checkpoint(place: Path, step: int, index: _Index, bucket: _Bucket) -> str:
    """Get the files of a checkpoint, all or none; why there are none."""
    whole = place / ".fetched"
    shutil.rmtree(whole, ignore_errors=True)

    def get(name: str) -> str:
        try:
            bucket.get(name, whole / name)
        except FileNotFoundError:
            return f"{name} is missing"
        wanted, found = index.files[name], _known(whole / name)
        if found == wanted:
            return ""
        return f"{name} has {found[0] if found else 0} bytes that are not the {wanted[0]} written"

    faults = list(filter(None, _at_once(get, index.of_step(step))))
    if not faults:
        folder = place / "checkpoints" / str(step)
        folder.rmdir()
        (whole / "checkpoints" / str(step)).rename(folder)
    shutil.rmtree(whole, ignore_errors=True)
    return faults[0] if faults else ""


def put(path: Path) -> None:
    """Put a file or folder of a copy into its bucket; nothing for a path that is no copy.

    Nothing either where this process has a `Mirror`, which does it.
    """
    address = address_of(path)
    if not address or any(path.is_relative_to(place) for place in _MIRRORS):
        return
    bucket = _Bucket(address)
    if path.is_file():
        bucket.put("", path)
    else:
        _at_once(lambda name: bucket.put(name, path / name), _names_in(path))


def is_foreign(place: Path) -> bool:
    """Whether a path is the copy of a run that this machine has not trained."""
    return bool(address_of(place)) and not (place / _OURS).exists()


def is_taken(place: Path) -> bool:
    """Whether there is a run at the address of a copy."""
    return _Bucket(address_of(place)).read(_INDEX) is not None


def set_aside(place: Path, to: Path) -> None:
    """Move the run at the address of a copy to another address; the copy goes.

    Raises:
      UserError: a process trains there.
    """
    bucket = _Bucket(address_of(place))
    _wait_for_writer(bucket)
    index, goal = _read_index(bucket) or _Index(), address_of(to)
    _at_once(lambda name: bucket.copy(name, f"{goal}/{name}"), index.files)
    _Bucket(goal).write(_INDEX, index.text().encode())
    bucket.remove([_INDEX])
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


def _writer(bucket: _Bucket) -> dict[str, Any]:
    """The process that trains at an address; empty if none does, or it cannot be read."""
    try:
        found = json.loads(bucket.read(_WRITER) or b"{}")
        return found if isinstance(found, dict) else {}
    except ValueError:
        return {}


def _wait_for_writer(bucket: _Bucket) -> None:
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
    renewed = _writer(_Bucket(address_of(place))).get("time", 0)
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
        self._place, self._held, self._bucket = place, held, _Bucket(address_of(place))
        self._token, self._renewed, self._lost = secrets.token_hex(8), 0, False
        self._seen: dict[str, tuple[tuple[int, int], tuple[int, str]]] = {}
        self._end, self._pushing = threading.Event(), threading.Lock()
        _wait_for_writer(self._bucket)
        self._renew()
        (place / _OURS).touch()
        _fetch(place)
        self._index = _copied(place)
        # What a run left that was killed while it put or removed a checkpoint.
        left = set(self._bucket.list("checkpoints")) - set(self._index.files)
        self._bucket.remove(left)
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._work, self._keep)
        ]
        _MIRRORS[place] = self
        if not self._index.number:  # from now on, an object that it does not name is no part of it
            self._write_index(_Index(1))
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
            names = [name for name in _names_in(self._place) if self._is_other(name)]
            files = dict(zip(names, _at_once(self._put_other, names), strict=True))
            for step in steps:
                files |= self._put_checkpoint(step)
            found = {name: known for name, known in files.items() if known is not None}
            if found == self._index.files:
                return
            gone = set(self._index.files) - set(found)
            self._write_index(_Index(self._index.number + 1, found))
            self._bucket.remove(gone)

    def _write_index(self, index: _Index) -> None:
        self._bucket.write(_INDEX, index.text().encode())
        with replaced(self._place / _INDEX) as temporary:
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
        names = [f"checkpoints/{step}/{name}" for name in _names_in(folder)]

        def one(name: str) -> tuple[int, str] | None:
            known = _known(self._place / name)
            if known:
                self._bucket.put(name, self._place / name)
            return known

        try:
            found = dict(zip(names, _at_once(one, names), strict=True))
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
