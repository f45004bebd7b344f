"""TensorBoard's event files of a run: only ever appended to.

An open TensorBoard keeps reading the newest file, so files are neither rewritten nor deleted, and
earlier rows keep their wall time. A resumed run begins a new file. If it repeats steps, the file
begins with a `SessionLog.START`, at which TensorBoard drops what it has read from that step on.

A record is a length, a checksum of the length, an event, and a checksum of the event.
"""

import contextlib
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PREFIX = "events.out.tfevents."
_HEADER = struct.Struct("<QI")


class Board:
    """Appends rows of numbers by step to the event files of a folder.

    Rows that the files lack, because they were cut off by a kill or TensorBoard was off, are
    written first.

    Args:
      folder: of the event files.
      rows: all rows up to the step that the run resumes from: `step`, and floats by name.
      wall_time: of the rows that the files lack, in seconds since the epoch.

    Raises:
      OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, rows: list[dict[str, Any]], wall_time: float):
        folder.mkdir(exist_ok=True)
        self._folder, self._file = folder, None
        written = set(scalars(folder))
        lacking = [row["step"] for row in rows if not written.issuperset(_entries(row))]
        known = max((row["step"] for row in rows), default=0)
        # The first step that is written again. It is written only with the first row: a run that
        # has nothing to do leaves the folder as it is.
        first = min(lacking, default=known + 1)
        self._redone = first if any(step >= first for step, _ in written) else None
        for row in rows if lacking else ():
            if row["step"] >= first:
                self.write(row, wall_time)

    def write(self, row: dict[str, Any], wall_time: float | None = None) -> None:
        """Append one row, readable at once; raises OSError if it cannot be written."""
        # protobuf makes these classes when it is imported.
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import scalar

        now = time.time() if wall_time is None else wall_time
        records = [
            Event(step=step, wall_time=now, summary=scalar(name, row[name]))
            for step, name in _entries(row)
        ]
        file = self._file or self._open()
        file.write(b"".join(map(_record, records)))
        file.flush()

    def _open(self) -> Any:
        # protobuf makes these classes when it is imported.
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        # TensorBoard reads the files in the order of their names, and never returns to an earlier
        # one: the new name must be the last, also within one second or if a clock is wrong.
        names = (re.match(rf"{re.escape(_PREFIX)}(\d+)", path.name) for path in files(self._folder))
        stamps = [int(name[1]) for name in names if name]
        stamp = max([int(time.time()), *(stamp + 1 for stamp in stamps)])
        path = self._folder / f"{_PREFIX}{stamp:010}.{socket.gethostname()}"
        self._file = open(path, "xb")  # noqa: SIM115, closed by close()
        self._file.write(_record(Event(wall_time=time.time(), file_version="brain.Event:2")))
        if self._redone is not None:
            start = SessionLog(status=SessionLog.START)
            event = Event(wall_time=time.time(), step=self._redone, session_log=start)
            self._file.write(_record(event))
        return self._file

    def close(self) -> None:
        """Close the file; raises OSError if what is buffered cannot be written."""
        if self._file is not None:
            self._file.close()


def files(folder: Path) -> list[Path]:
    """The event files of a folder in the order in which TensorBoard reads them."""
    return sorted(folder.glob(f"{_PREFIX}*"))


def scalars(folder: Path) -> Iterator[tuple[int, str]]:
    """(step, name) of each number that TensorBoard shows for a folder, in the order written."""
    shown: dict[tuple[int, str], None] = {}
    for event in events(folder):
        if event.HasField("session_log"):
            shown = {entry: None for entry in shown if entry[0] < event.step}
        shown |= {(event.step, value.tag): None for value in event.summary.value}
    return iter(shown)


def events(folder: Path) -> Iterator[Any]:
    """The events in the files of a folder; the end of a file that a kill cut off is skipped."""
    from google.protobuf.message import DecodeError

    # protobuf makes these classes when it is imported.
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    for path in files(folder):
        content, place = path.read_bytes(), 0
        with contextlib.suppress(struct.error, DecodeError):
            while place < len(content):
                length, _ = _HEADER.unpack_from(content, place)
                place += _HEADER.size
                if place + length + 4 > len(content):
                    break
                yield Event.FromString(content[place : place + length])
                place += length + 4


def _entries(row: dict[str, Any]) -> list[tuple[int, str]]:
    return [
        (row["step"], name)
        for name, value in row.items()
        if name not in ("step", "seconds") and value is not None
    ]


def _record(event: Any) -> bytes:
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(sums) + data + next(sums)
