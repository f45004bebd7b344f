"""Addresses in buckets, and where on this machine their copies are."""

import os
import re
import tempfile
from pathlib import Path

from jaxconv import disk
from jaxconv.errors import UserError

# The packages that read each kind of address; both are in the extra `cloud`.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_ADDRESS = re.compile(rf"({'|'.join(PACKAGES)}):/")


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
    return f"{scheme}://{'/'.join(parts)}" if scheme in PACKAGES else ""


def with_addresses(text: str) -> str:
    """A text for people: paths of copies are written as their addresses."""
    root = re.escape(str(cache_folder()))
    return re.sub(rf"{root}/({'|'.join(PACKAGES)})/", r"\1://", text)
