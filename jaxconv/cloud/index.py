"""The index of a run in a bucket: the names, sizes and digests of its files."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxconv.cloud.buckets import Bucket, described
from jaxconv.errors import UserError

# Seconds without a renewal of `.writer` after which a writer is lost; a process waits as long for
# an index that another process has put.
PATIENCE = 35
INDEX = ".index.json"


class Index(NamedTuple):
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


def parse(text: bytes | str | None, address: str) -> Index | None:
    """An index from its JSON; raises UserError if it is damaged."""
    if text is None:
        return None
    try:
        value = json.loads(text)
        files = {str(name): (int(size), str(sha)) for name, (size, sha) in value["files"].items()}
        if any(".." in PurePosixPath(name).parts or name.startswith("/") for name in files):
            raise ValueError("a name leads out of the folder")
        return Index(int(value["number"]), files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{address}/{INDEX}: is damaged ({described(error)}); restore it, or start from "
            "scratch in another folder",
            exit_code=1,
        ) from error


def read_index(bucket: Bucket, number: int = 0) -> Index | None:
    """The index at an address, None if there is none; waits until it has reached a number."""
    end = time.monotonic() + PATIENCE
    while True:
        index = parse(bucket.read(INDEX), bucket.address)
        if (index.number if index else 0) >= number:
            return index
        if time.monotonic() > end:
            raise UserError(
                f"{bucket.address}: this process does not see what the first process of the run "
                "has written; give all of them the same store",
                exit_code=1,
            )
        time.sleep(0.2)


def copied(place: Path) -> Index:
    """The index that a copy was last made from, or put."""
    file = place / INDEX
    return (parse(file.read_text(), str(place)) if file.is_file() else None) or Index()


def number_of(place: Path) -> int:
    """The number of the index of a copy."""
    return copied(place).number


def known_of(file: Path) -> tuple[int, str] | None:
    """Bytes and SHA-256 of a file; None if there is none."""
    try:
        with file.open("rb") as opened:
            return file.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
