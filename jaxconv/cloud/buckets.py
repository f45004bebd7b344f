"""The objects of a bucket: read, written, listed and removed, with retries."""

import concurrent.futures
import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxconv.cloud.addresses import PACKAGES
from jaxconv.disk import replaced
from jaxconv.errors import UserError, missing, short

# What to do about refused access.
_LOG_IN = {
    "gs": "log in with `gcloud auth application-default login`, or set "
    "GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in with `aws configure`; "
    "AWS_ENDPOINT_URL names a store other than Amazon's",
}
# Seconds before each further try, after those that the packages make themselves.
_PAUSES = (1,)
# Objects that are copied at the same time.
_AT_ONCE = 16


class Bucket:
    """Reads and writes objects by their names below an address, and tries again.

    Raises:
      UserError: what was asked for cannot be done; the message says what to do.
    """

    def __init__(self, address: str):
        self.address = address
        self.scheme, _, self._root = address.partition("://")
        package = PACKAGES[self.scheme]
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
                        f"{self.address}: cannot be reached ({described(error)}); once it can, the "
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
                f"{self.address}: access is refused ({described(error)}); {_LOG_IN[self.scheme]}",
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

        at_once(one, names)

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


def described(error: Exception) -> str:
    """The kind and the message of an error, shortened."""
    return short(f"{type(error).__name__}: {error}", 200)


def at_once(action: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """What an action returns for each item; several run at the same time, in threads."""
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(action, items))
