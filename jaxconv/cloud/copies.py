"""Local copies of what is in buckets."""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

from jaxconv.cloud.addresses import address_of, cache_folder, place_of
from jaxconv.cloud.buckets import Bucket, at_once
from jaxconv.cloud.index import INDEX, Index, copied, known_of, read_index
from jaxconv.disk import is_locked, lock, replaced
from jaxconv.errors import UserError, human_bytes

log = logging.getLogger(__name__)

# Seconds for which a copy is not looked at again: a command asks for it several times.
_FRESH = 30
# Bytes from which on it is said what is fetched.
_SAID = 100e6


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
        fetch(place, number)


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


def fetch(place: Path, number: int = 0) -> None:
    """Make a copy what is at its address, except checkpoints, of which it makes empty folders."""
    bucket = Bucket(address_of(place))
    with _alone(place):
        index = read_index(bucket, number)
        if index is not None:
            _follow(place, index, bucket)
            return
        found = bucket.list()
        runs = {PurePosixPath(name).parent for name in found if name.endswith(f"/{INDEX}")}
        for run in runs:
            if not is_locked(place / run):
                inner = Bucket(f"{bucket.address}/{run}")
                _follow(place / run, read_index(inner) or Index(), inner)
        plain = {
            name: known
            for name, known in found.items()
            if not runs.intersection(PurePosixPath(name).parents) and not is_hidden(name)
        }
        if list(plain) != [""]:
            _remove_others(place, {*plain, *map(str, runs)})
        _get_plain(place, plain, bucket)


def _get_plain(place: Path, objects: Mapping[str, tuple[int, float]], bucket: Bucket) -> None:
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
    at_once(get, old)


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


def is_hidden(name: str) -> bool:
    """Whether a part of a name begins with a dot: such files belong to one machine."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def names_in(place: Path) -> list[str]:
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
        return is_hidden(name) or not {name, *map(str, path.parents)}.isdisjoint(kept)

    for folder, _, files in os.walk(place, topdown=False):
        below = Path(folder).relative_to(place)
        for name in files:
            if not is_kept((below / name).as_posix()):
                (place / below / name).unlink()
        if below != Path() and not is_kept(below.as_posix()):
            with contextlib.suppress(OSError):  # it is not empty
                (place / below).rmdir()


def _follow(place: Path, index: Index, bucket: Bucket) -> None:
    """Make a copy of a run what its index says; one that was made from it is kept, as it is at
    least as new: it may have what could no longer be put.
    """
    if copied(place) == index:
        return
    place.mkdir(parents=True, exist_ok=True)
    (place / INDEX).unlink(missing_ok=True)
    checkpoints = place / "checkpoints"
    for folder in checkpoints.iterdir() if checkpoints.is_dir() else ():
        known = index.of_step(int(folder.name)) if folder.name.isdecimal() else {}
        if not known or any(known_of(place / name) != wanted for name, wanted in known.items()):
            shutil.rmtree(folder)
    _remove_others(place, index.files)
    for step in index.steps():
        (checkpoints / str(step)).mkdir(parents=True, exist_ok=True)

    def get(name: str) -> None:
        if known_of(place / name) != index.files[name]:
            try:
                bucket.get(name, place / name)
            except FileNotFoundError:
                log.warning("%s/%s: is missing", bucket.address, name)

    at_once(get, index.of_step(None))
    with replaced(place / INDEX) as temporary:
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
        index, bucket = copied(place), Bucket(address_of(place))
        folders = {step: place / "checkpoints" / str(step) for step in index.steps()}
        left = [step for step, at in folders.items() if at.is_dir() and not any(at.iterdir())]
        sizes = [size for step in left for size, _ in index.of_step(step).values()]
        _announce(bucket.address, place, sizes)
        lost = {step: why for step in left if (why := _get_checkpoint(place, step, index, bucket))}
        if not lost:
            return
        now = read_index(bucket) or Index()
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


def _get_checkpoint(place: Path, step: int, index: Index, bucket: Bucket) -> str:
    """Get the files of a checkpoint, all or none; why there are none."""
    whole = place / ".fetched"
    shutil.rmtree(whole, ignore_errors=True)

    def get(name: str) -> str:
        try:
            bucket.get(name, whole / name)
        except FileNotFoundError:
            return f"{name} is missing"
        wanted, found = index.files[name], known_of(whole / name)
        if found == wanted:
            return ""
        return f"{name} has {found[0] if found else 0} bytes that are not the {wanted[0]} written"

    faults = list(filter(None, at_once(get, index.of_step(step))))
    if not faults:
        folder = place / "checkpoints" / str(step)
        folder.rmdir()
        (whole / "checkpoints" / str(step)).rename(folder)
    shutil.rmtree(whole, ignore_errors=True)
    return faults[0] if faults else ""
