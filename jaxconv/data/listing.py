"""Which files a folder holds, for training, evaluation, `jaxconv data` and `predict` alike.

Folders are read to any depth, and through links; each real folder is read once, and a link that
leads back up is left out. What is left out is counted, for a note to the user:

    hidden and system files   names that begin with a dot, and those in `SYSTEM`
    other kinds               files with none of the requested suffixes
    not files                 pipes, sockets and devices
    links                     linked folders that hold the folder they stand in, or one read already
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Sequence

from jaxconv.files import printable

# By kind, in lower case. What Pillow reads is an image; of several frames or pages, the first.
_SUFFIXES = {
    "image": (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif",
        ".avif", ".ppm", ".pgm", ".pbm",
    ),
    "sound": (".wav",),
    "volume": (".npy",),
    "text": (".txt",),
}  # fmt: skip
# The features that a build of Pillow may lack, by the suffix that needs them.
_NEEDS = {".webp": "webp", ".avif": "avif"}
# What file systems, network disks, archives and tools put next to images, in lower case.
SYSTEM = frozenset(
    {
        "lost+found", "system volume information", "$recycle.bin", "recycler", "recycled",
        "found.000", "network trash folder", "temporary items", "__macosx", "icon\r",
        "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
        "@eadir", "#recycle", "#snapshot", "@tmp", "@sharesnap", "@recycle", "@recently-snapshot",
        "@__thumb", "__pycache__",
    }
)  # fmt: skip

_HIDDEN = "hidden or system files and folders"
_OTHER = "files of other kinds"
_NO_FILES = "pipes, sockets or devices"
_BACK = "linked folders that are read already, or that hold the folder they stand in"
OUTSIDE = "files outside of the class folders"


@dataclasses.dataclass
class Listed:
    """The files below a folder, and what was left out.

    Attributes:
      names: paths relative to the folder, sorted.
      left_out: such paths by the reason, in the words of a note.
    """

    names: list[str] = dataclasses.field(default_factory=list)
    left_out: dict[str, list[str]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )

    def add(self, other: "Listed", inside: str) -> None:
        """Add what was found in a folder inside."""
        self.names += [os.path.join(inside, name) for name in other.names]
        for why, names in other.left_out.items():
            self.left_out[why] += [os.path.join(inside, name) for name in names]

    def notes(self, folder: str | os.PathLike) -> tuple[str, ...]:
        """One line for each reason: how many were left out, and an example."""
        return tuple(
            f"{printable(folder)}: left out {why}: {len(names):,}{_kinds(why, names)}, such as "
            f"{printable(min(names))}"
            for why, names in self.left_out.items()
        )


@functools.cache
def suffixes_of(kind: str) -> tuple[str, ...]:
    """The suffixes of the files of a kind: `image`, `sound`, `volume` or `text`.

    Those that the installed Pillow cannot read are left out.
    """
    return tuple(suffix for suffix in _SUFFIXES[kind] if _is_readable(suffix))


def _is_readable(suffix: str) -> bool:
    if suffix not in _NEEDS:
        return True
    from PIL import features

    # An older Pillow warns of a name that it does not know.
    return _NEEDS[suffix] in features.modules and features.check_module(_NEEDS[suffix])


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or belongs to the system or to a tool."""
    return name.startswith(".") or name.lower() in SYSTEM


def subfolders(folder: str | os.PathLike) -> list[str]:
    """Sorted names of the folders in a folder, also linked ones; without `is_system` ones."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not is_system(e.name) and _is_folder(e))


def files_in(folder: str | os.PathLike, suffixes: Sequence[str]) -> list[str]:
    """Sorted names of the files with one of the suffixes directly in a folder."""
    with os.scandir(folder) as entries:
        return sorted(
            e.name
            for e in entries
            if not is_system(e.name)
            and e.name.lower().endswith(tuple(suffixes))
            and not _is_folder(e)
        )


def list_files(folder: str | os.PathLike, suffixes: Sequence[str]) -> Listed:
    """The files below a folder whose names end in one of the suffixes, in upper or lower case.

    A broken link counts as a file: it is reported as damaged when it is read.

    Raises:
      OSError: a folder cannot be listed.
    """
    listed, suffixes = Listed(), tuple(suffixes)
    # Relative path, real path, and the real path of the folder that it stands in. Links wait at the
    # end, so that a folder is found under its own name if it has one here.
    waiting = collections.deque([("", os.path.realpath(folder), "")])
    seen: set[str] = set()
    while waiting:
        inside, real, parent = waiting.popleft()
        if real in seen or _holds(real, parent):
            listed.left_out[_BACK].append(inside)
            continue
        seen.add(real)
        with os.scandir(os.path.join(folder, inside)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = os.path.join(inside, entry.name)
                if is_system(entry.name):
                    listed.left_out[_HIDDEN].append(name)
                elif _is_folder(entry) and entry.is_symlink():
                    waiting.append((name, os.path.realpath(entry.path), real))
                elif _is_folder(entry):
                    waiting.appendleft((name, os.path.join(real, entry.name), real))
                elif not entry.name.lower().endswith(suffixes):
                    listed.left_out[_OTHER].append(name)
                elif _is_special(entry):
                    listed.left_out[_NO_FILES].append(name)
                else:
                    listed.names.append(name)
    listed.names.sort()
    return listed


def _holds(folder: str, place: str) -> bool:
    """Whether a folder is the place or holds it; both are real paths."""
    return bool(place) and os.path.commonpath([folder, place]) == folder


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _is_special(entry: os.DirEntry) -> bool:
    """Whether it is neither a file nor a link that is broken."""
    try:
        return not entry.is_file() and os.path.exists(entry.path)
    except OSError:
        return False


def _kinds(why: str, names: Sequence[str]) -> str:
    """The suffixes of files of other kinds, the most frequent first, and what one of them needs."""
    if why != _OTHER:
        return ""
    counts = collections.Counter(os.path.splitext(name)[1].lower() for name in names)
    most = [f"{suffix or 'no suffix'} {count:,}" for suffix, count in counts.most_common(5)]
    lacking = [
        suffix for suffix in counts if suffix in _SUFFIXES["image"] and not _is_readable(suffix)
    ]
    needs = f"; the installed Pillow cannot read {', '.join(lacking)}" if lacking else ""
    more = ", ..." if len(counts) > len(most) else ""
    return f" ({printable(', '.join(most))}{more}{needs})"
