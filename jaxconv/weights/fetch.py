"""Files of weights from where they are published: fetched once, checked, and whole or not there.

CACHE/NAME.pth               of an address; also used where torch.hub has put it (TORCH_HOME)
CACHE/OWNER/REPO/FILE        of the Hugging Face hub, brought by hand; otherwise its own cache
CACHE/NAME.pth.part          the beginning of a file, from where it is continued

CACHE is `published.cache_folder()`. The hub's own environment variables hold: HF_HUB_OFFLINE (at
which nothing is fetched from addresses either), HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT; and those of
proxies, for both.
"""

import contextlib
import dataclasses
import hashlib
import http.client
import logging
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jaxconv.disk import lock
from jaxconv.errors import UserError, human_bytes, in_words, needing_extras
from jaxconv.weights.published import cache_folder, pins_file

log = logging.getLogger(__name__)

# Tries in a row in which not one byte comes, seconds before the second of them, and seconds that a
# server may be silent.
_TRIES, _PAUSE, _SILENCE = 3, 1.0, 30.0
_BLOCK = 1 << 20
# What is tried of a repository, if no file is named.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A file that is here.

    Attributes:
      path: of the file.
      revision: the hub's commit; empty for an address or a file brought by hand.
    """

    path: Path
    revision: str = ""


@dataclasses.dataclass(frozen=True)
class Hub:
    """A place on the Hugging Face hub: hf:OWNER/REPO[@REVISION][:FILE]."""

    repo: str
    revision: str = ""
    file: str = ""

    @property
    def page(self) -> str:
        """Where a person finds the files."""
        end = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{end}/{self.repo}/tree/{self.revision or 'main'}"


def hub_of(text: str) -> Hub:
    """Read hf:OWNER/REPO[@REVISION][:FILE]; raises UserError where it is not that."""
    name = r"[A-Za-z0-9][\w.-]*"
    found = re.fullmatch(rf"hf:({name}/{name})(?:@([\w./-]+))?(?::([\w./ -]+))?", text)
    if not found or ".." in text:
        raise UserError(f"{text}: must be hf:OWNER/REPO, hf:OWNER/REPO@REVISION or ...:FILE")
    return Hub(found[1], found[2] or "", found[3] or "")


def digest_in(url: str) -> str:
    """The first digits of the SHA-256 that stand in an address, as torchvision's have them."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", urllib.parse.urlsplit(url).path)
    return found[1] if found else ""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    return _digest_of(path, "sha256")


def _digest_of(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def fetch(place: str, revision: str = "", sha256: str = "") -> Fetched:
    """The file of a place, which is fetched unless it is here, and checked in either case.

    Args:
      place: an address, or as `hub_of` reads it.
      revision: the hub's commit, branch or tag; that of the place comes first.
      sha256: the digest, or how it begins, or `md5:` and that digest; that of the address also
        holds.

    Raises:
      UserError: it cannot be had (the message says which file to bring, and where to put it), is
        not the right one, or cannot be written.
    """
    if place.startswith("hf:"):
        hub = hub_of(place)
        return _of_hub(dataclasses.replace(hub, revision=hub.revision or revision), sha256)
    return Fetched(_of_address(place, (sha256, digest_in(place))))


def cached(place: str, revision: str = "") -> Path | None:
    """The file of a place if it is here, unchecked; nothing is fetched."""
    if not place.startswith("hf:"):
        there = (path for path in _places_of(place) if path.is_file())
        return next(there, None)
    hub = hub_of(place)
    for file in (hub.file,) if hub.file else HUB_FILES:
        brought = cache_folder() / hub.repo / file
        if brought.is_file():
            return brought
        with contextlib.suppress(ImportError):
            from huggingface_hub import try_to_load_from_cache

            commit = hub.revision or revision or None
            found = try_to_load_from_cache(hub.repo, file, revision=commit)
            if isinstance(found, str):
                return Path(found)
    return None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE says that nothing may be fetched."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _places_of(url: str) -> list[Path]:
    """Where the file of an address may be: our cache, and that of torch.hub."""
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    torch = Path(os.environ.get("TORCH_HOME") or Path(cache) / "torch").expanduser()
    return [cache_folder() / name, torch / "hub" / "checkpoints" / name]


def _of_address(url: str, digests: tuple[str, ...]) -> Path:
    if urllib.parse.urlsplit(url).scheme not in ("https", "http"):
        raise UserError(f"{url}: must be an address that begins with https://, or hf:OWNER/REPO")
    digests = tuple(digest for digest in digests if digest)
    here, *others = _places_of(url)
    for path in (here, *others):
        if path.is_file():
            if not (wrong := _mismatch(path, digests)):
                return path
            log.warning("%s: is not used: %s", path, wrong)
    if is_offline():
        raise _to_bring(url, here, digests, "HF_HUB_OFFLINE is set")
    with _writable(here), _alone(here):
        if here.is_file() and not _mismatch(here, digests):  # another process has fetched it
            return here
        part = here.with_name(f"{here.name}.part")
        continued = bool(digests) and part.is_file()
        try:
            _download(url, part, continued)
            wrong = _mismatch(part, digests)
            if wrong and continued:  # it was continued from something else
                _download(url, part, continued=False)
                wrong = _mismatch(part, digests)
        except (OSError, http.client.HTTPException) as error:
            raise _to_bring(url, here, digests, _why(error)) from error
        if wrong:
            part.unlink()
            raise UserError(f"{url}: what came is not the file: {wrong}; nothing is kept", 1)
        os.replace(part, here)
    return here


def _mismatch(path: Path, digests: tuple[str, ...]) -> str:
    """What is wrong with a file of these digests; nothing if it is right."""
    for digest in digests:
        kind, wanted = ("md5", digest[4:]) if digest.startswith("md5:") else ("sha256", digest)
        found = _digest_of(path, kind)
        if not found.startswith(wanted):
            name = {"md5": "MD5", "sha256": "SHA-256"}[kind]
            return f"its {name} is {found[: max(8, len(wanted))]}..., not {wanted[:16]}..."
    return ""


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    return in_words(reason if isinstance(reason, Exception) else error)


def _to_bring(what: str, where: Path, digests: tuple[str, ...], why: str) -> UserError:
    first = digests[0] if digests else ""
    kind, first = ("MD5", first[4:]) if first.startswith("md5:") else ("SHA-256", first)
    whole = f", whose {kind} begins with {first[:16]}," if first else ""
    return UserError(
        f"{what}: cannot be fetched ({why}); bring that file{whole} and put it at {where}",
        exit_code=1,
    )


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Make the folder of a path; an error of writing there becomes a UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written ({error.strerror or error}); set JAXCONV_WEIGHTS to "
            "a folder with room",
            exit_code=1,
        ) from error


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process fetches the file, and keep others from it."""
    with open(path.with_name(f".{path.name}.lock"), "w", encoding="utf-8") as file:
        said = False
        while True:
            try:
                lock(file)
                break
            except BlockingIOError:
                if not said:
                    log.info("%s: another process is fetching it", path.name)
                said = True
                time.sleep(0.2)
        yield


def _download(url: str, part: Path, continued: bool) -> None:
    """Fetch an address into a file, from where it ends if `continued`, through cut connections.

    Raises:
      OSError, HTTPException: it cannot be fetched.
      UserError: it cannot be written.
    """
    failed, had, known = 0, part.stat().st_size if continued else 0, continued
    while True:
        # Without a digest, a part of an earlier process may be of another file of this name.
        start = part.stat().st_size if known and part.is_file() else 0
        try:
            _receive(url, part, start)
            return
        except urllib.error.HTTPError as error:
            error.close()  # it is also the answer
            if error.code == 416 and start:  # nothing is left after it: the digest decides
                return
            if error.code < 500 and error.code not in (408, 429):
                raise
            failure: Exception = error
        except (OSError, http.client.HTTPException) as error:
            failure = error
        known = True
        size = part.stat().st_size if part.is_file() else 0
        failed = 0 if size > had else failed + 1
        had = size
        if failed >= _TRIES:
            raise failure
        log.info("%s: %s; trying again from %s", url, _why(failure), human_bytes(size))
        time.sleep(_PAUSE * 2 ** max(0, failed - 1))


def _receive(url: str, part: Path, start: int) -> None:
    headers = {"User-Agent": "jaxconv"} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_SILENCE) as answer:
        begins = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
        if answer.status != 206 or not begins or int(begins[1]) != start:
            start = 0  # the server sends all of it
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else 0
        free = shutil.disk_usage(part.parent).free
        if total - start > free:
            raise _full(part, f"{human_bytes(total - start)} to fetch, {human_bytes(free)} free")
        with _opened(part, "r+b" if start else "wb") as file, _Progress(part, start, total) as bar:
            file.seek(start)
            while block := answer.read(_BLOCK):
                _write(file, block, part)
                bar.add(len(block))
            _write(file, b"", part)
    size = part.stat().st_size
    if total and size != total:
        raise http.client.IncompleteRead(b"", total - size)


def _opened(part: Path, mode: str) -> Any:
    try:
        return part.open(mode)
    except OSError as error:
        raise _full(part, error.strerror or str(error)) from error


def _write(file: BinaryIO, block: bytes, part: Path) -> None:
    """Write a block, or everything to the disk for an empty one; not as the network's OSError."""
    try:
        file.write(block)
        if not block:
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        part.unlink(missing_ok=True)  # the room is wanted
        raise _full(part, error.strerror or str(error)) from error


def _full(part: Path, why: str) -> UserError:
    return UserError(
        f"{part.parent}: cannot be written ({why}); make room, or set JAXCONV_WEIGHTS to another "
        "folder",
        exit_code=1,
    )


class _Progress:
    """Says how far a file is: in one line of a terminal, or at its beginning and end in the log."""

    def __init__(self, part: Path, start: int, total: int):
        self._name, self._done, self._total = part.name.removesuffix(".part"), start, total
        self._line = sys.stderr is not None and sys.stderr.isatty()
        self._began, self._shown, self._start = time.monotonic(), 0.0, start

    def __enter__(self) -> "_Progress":
        size = human_bytes(self._total) if self._total else "unknown size"
        after = f" after the first {human_bytes(self._start)}" if self._start else ""
        log.info("fetching %s, %s%s", self._name, size, after)
        return self

    def add(self, count: int) -> None:
        """Count bytes that have come."""
        self._done += count
        now = time.monotonic()
        if self._line and now - self._shown > 0.2:
            self._shown = now
            share = f" of {human_bytes(self._total)}" if self._total else ""
            rate = (self._done - self._start) / max(now - self._began, 1e-3)
            text = f"{self._name}: {human_bytes(self._done)}{share}, {human_bytes(rate)}/s"
            print(f"\r{text:<78}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: Any) -> None:
        if self._line and self._shown:
            print(f"\r{'':<78}\r", end="", file=sys.stderr, flush=True)


def _of_hub(hub: Hub, sha256: str) -> Fetched:
    failures = []
    for name in (hub.file,) if hub.file else HUB_FILES:
        try:
            found = hub_file(hub, name)
        except UserError as error:
            failures.append(error)
            continue
        if wrong := _mismatch(found.path, (sha256,) if sha256 else ()):
            raise UserError(
                f"hf:{hub.repo}: {found.path} is not the file: {wrong}; remove it, or, if it is "
                f"right and pinned to another, its entry in {pins_file()}",
                exit_code=1,
            )
        return found
    raise failures[0]


def hub_file(hub: Hub, name: str) -> Fetched:
    """One file of a repository of the hub.

    Raises:
      UserError: it cannot be had; the message says why, and where a file from elsewhere goes.
    """
    brought = cache_folder() / hub.repo / name
    if brought.is_file():
        return Fetched(brought)
    with needing_extras(f"weights of the Hugging Face hub ({hub.repo})"):
        from huggingface_hub import errors, hf_hub_download
    try:
        path = Path(hf_hub_download(hub.repo, name, revision=hub.revision or None))
    except errors.RemoteEntryNotFoundError as error:
        raise UserError(f"hf:{hub.repo}: has no file {name}, see {hub.page}", 1) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"hf:{hub.repo}: has no revision {hub.revision!r}", 1) from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"hf:{hub.repo}: wants your consent, at {hub.page}; give it, and set HF_TOKEN", 1
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"hf:{hub.repo}: there is no such repository, or it is private: then set HF_TOKEN", 1
        ) from error
    except Exception as error:  # the errors of its connections are of another library
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
        why = in_words(cause if isinstance(cause, Exception) else error)
        if is_offline():
            why = "HF_HUB_OFFLINE is set"
        raise _to_bring(f"{name} of {hub.page}", brought, (), why) from error
    commit = path.parent.name if re.fullmatch(r"[0-9a-f]{40}", path.parent.name) else ""
    return Fetched(path, commit)
