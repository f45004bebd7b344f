"""Folders: PATH/<split>/<class>/<file>, or PATH/<class>/<file>, which is split at random by a seed;
or a path with fields in braces, where the files' names say their class, see data/named_files.py.

    images    .jpg, .png, .webp ...   [H, W, C] uint8, see data/decode.py
    sounds    .wav                    a waveform [L, 1] or a spectrogram [T, mels, 1], see
              data/signals.py
    volumes   .npy                    [D, H, W] or [D, H, W, C], uint8 or float32
    clips     folders of image files, with `data.frames=T`: [T, H, W, C] uint8, see `read_clip`

The files of a class may lie in subfolders of its folder; listing.py says which files are read. Only
the split asked for is looked at. If the set is read into memory, everything that could stop
training is checked before it begins: unreadable and empty files, folders without a class, images of
different sizes. With `data.skip_unreadable=True`, unreadable files are left out and logged instead.
For a streamed set, the tree is checked before training, and each file when it is read.
"""

import os
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxconv.data.interface import DamagedError, generator
from jaxconv.data.listing import OUTSIDE, Listed, files_in, list_files, subfolders, suffixes_of
from jaxconv.data.named_files import has_fields, held_out, parse_pattern, root_of
from jaxconv.errors import UserError, nearest
from jaxconv.files import printable

KINDS = ("image", "sound", "volume")
# Names of splits, in small letters: a folder of this name beside others holds no class.
SPLITS = frozenset(
    ("train", "training", "test", "testing", "val", "valid", "validation", "eval", "evaluation")
    + ("dev", "holdout")
)


def all_suffixes() -> tuple[str, ...]:
    """The suffixes of all files that a folder may hold, in small letters."""
    return tuple(suffix for kind in KINDS for suffix in suffixes_of(kind))


class Files:
    """Records that are files: the payload is the content.

    Args:
      root: of all paths; messages show it, but the checksum does not depend on it.
      names: paths of the files, relative to the root.
      labels: of the records.
      notes: what was left out, one line each.
    """

    has_labels = True

    def __init__(
        self,
        root: Path | str,
        names: Sequence[str],
        labels: Sequence[int],
        notes: tuple[str, ...] = (),
    ):
        # Strings, because a million Path objects take half a gigabyte.
        self._root, self._names, self.notes = Path(root), list(names), notes
        self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        path = self.name(i)
        # Reading from a pipe would block.
        if os.path.exists(path) and not os.path.isfile(path):
            raise DamagedError("is not a file")
        return read_content(path), int(self._labels[i])

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32."""
        return self._labels

    def name(self, i: int) -> str:
        """The path."""
        return os.path.join(self._root, self._names[i])

    def checksum(self) -> int:
        """CRC-32 of names, labels and sizes of the files."""
        value = zlib.crc32(self._labels)
        for name in self._names:
            value = zlib.crc32(os.fsencode(f"{name} {_size(self._root / name)}\n"), value)
        return value

    def kind(self) -> str:
        """`image`, `sound` or `volume`, by the suffixes; raises UserError if they are mixed.

        Of `Clips` it is `clip`.
        """
        kinds = {suffix: kind for kind in KINDS for suffix in suffixes_of(kind)}
        found = {kinds[os.path.splitext(name)[1].lower()]: name for name in self._names}
        if len(found) > 1:
            both = " and ".join(f"{name} ({kind})" for kind, name in sorted(found.items()))
            raise UserError(
                f"{self._root}: holds files of several kinds, such as {both}; keep one", exit_code=1
            )
        return next(iter(found))


class Clips(Files):
    """Records that are folders of frames: the payload is the contents of `frames` image files."""

    def __init__(self, *listed: Any, frames: int):
        super().__init__(*listed)
        self.frames = frames

    def __getitem__(self, i: int) -> tuple[tuple[bytes, ...], int]:  # type: ignore[override]
        return read_clip(self.name(i), self.frames), int(self._labels[i])

    def checksum(self) -> int:
        """CRC-32 of names, labels, and names and sizes of the frames."""
        value = super().checksum()
        for name in self._names:
            folder = os.path.join(self._root, name)
            for frame in frames_in(folder):
                size = _size(Path(folder, frame))
                value = zlib.crc32(os.fsencode(f"{frame} {size}\n"), value)
        return value

    def kind(self) -> str:
        return "clip"


def read_clip(folder: Path | str, frames: int) -> tuple[bytes, ...]:
    """The contents of `frames` of the image files in a folder, in order.

    They are sorted by name, with numbers in their order, and the middle one of each of `frames`
    equal parts is read, as in temporal segment networks in evaluation (Wang et al. 2016,
    arXiv:1608.00859, section 3.1). A shorter clip repeats some.

    Raises:
      DamagedError: the folder or a file cannot be read, or there are none.
    """
    try:
        names = frames_in(folder)
    except OSError as error:
        raise DamagedError(f"cannot be read ({error.strerror or error})") from error
    if not names:
        raise DamagedError("the folder holds no images")
    chosen = [names[(2 * n + 1) * len(names) // (2 * frames)] for n in range(frames)]
    contents = {name: read_content(os.path.join(folder, name)) for name in dict.fromkeys(chosen)}
    return tuple(contents[name] for name in chosen)


def frames_in(folder: Path | str) -> list[str]:
    """Names of the image files in a folder, in order: frame_2 comes before frame_10."""
    return sorted(files_in(folder, suffixes_of("image")), key=_in_order)


def _in_order(name: str) -> list[tuple[int, str]]:
    # Every second part is a number.
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if n % 2 else (0, part) for n, part in enumerate(parts)]


def clip_folders(names: Iterable[str]) -> list[str]:
    """The folders that directly hold the files of these names, each once, sorted."""
    return sorted({os.path.dirname(name) for name in names})


def _size(path: Path) -> int:
    """Size in bytes; -1 if missing, such as a broken link, which is a damaged file when read."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def read_content(path: Path | str) -> bytes:
    """The content of a file; raises DamagedError if it cannot be read or is empty."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise DamagedError(f"cannot be read ({error.strerror or error})") from error
    if not content:
        raise DamagedError("the file is empty")
    return content


def open_files(
    path: str, split: str, config: Any, classes: Sequence[str] = ()
) -> tuple[Files, tuple[str, ...]]:
    """The files of one split, and the names of the classes.

    Args:
      path: the folder.
      split: the split's name; `train` or `test` if the folder is one unsplit tree.
      config: `config.data`; `folder` and `frames` are used.
      classes: those of the training split, in their order, which this split may lack some of: its
        labels are indices into them.

    Raises:
      UserError: the tree has one of the faults in the module's docstring.
    """
    settings = config.folder
    clips = bool(config.frames)
    found = list_split(path, split, settings.test_fraction, settings.seed, settings.test, clips)
    root, own, notes = os.path.expanduser(root_of(path)), found.classes, found.notes
    labels = found.labels
    lacking = [name for name in classes if name not in own]
    if classes and own != tuple(classes) and set(own) <= set(classes):
        number = {name: n for n, name in enumerate(classes)}
        labels, own = [number[own[label]] for label in labels], tuple(classes)
    if lacking and own == tuple(classes):
        notes += (
            f"{printable(root)}: split {split!r} has no folder for {len(lacking):,} of "
            f"{len(classes):,} classes, such as {lacking[0]}",
        )
    if clips:
        return Clips(root, found.names, labels, notes, frames=config.frames), own
    return Files(root, found.names, labels, notes), own


class Split(NamedTuple):
    """The files of one split.

    Attributes:
      classes: their names, sorted.
      names: paths relative to the folder, of files or of the folders of clips, class by class,
        sorted in each.
      labels: of these.
      notes: what was left out, one line each.
    """

    classes: tuple[str, ...]
    names: list[str]
    labels: list[int]
    notes: tuple[str, ...]


def list_split(
    path: str,
    split: str,
    test_fraction: float,
    seed: int,
    test: str = "",
    clips: bool = False,
) -> Split:
    """One split of a folder; other splits are not looked at. With `clips`, files are their frames.

    An unsplit tree is split class by class: a share `test_fraction` of each class, rounded, goes to
    `test`, at 1 all of it. Where names have fields, `test` may say which of them do, see
    `named_files.held_out`.

    Raises:
      UserError: the folder, the split or its classes do not exist, or it cannot be told which
        folders are splits and which are classes.
    """
    if has_fields(path):
        if clips:
            raise UserError(
                f"config.data.frames is for folder:DIR with DIR/<class>/<clip>/, and {path!r} has "
                "fields in braces; leave one of them out"
            )
        return _list_named(path, split, test_fraction, seed, test)
    if test:
        raise UserError(
            f"config.data.folder.test is {test!r}; it is for names with fields, such as "
            "--config.data.source='folder:DIR/{class}_{speaker}_{take}.wav'"
        )
    root = os.path.expanduser(path)
    if not path or not os.path.isdir(root):
        raise UserError(
            f"folder:{path}: folder not found; set --config.data.source=folder:PATH",
            exit_code=1,
        )
    if _has_splits(root, split, clips):
        return _list_classes(root, split, clips)
    return _draw_apart(root, _list_classes(root, clips=clips), split, test_fraction, seed)


def _list_named(path: str, split: str, test_fraction: float, seed: int, test: str) -> Split:
    """One split of the files whose names fit a pattern."""
    pattern = parse_pattern(path, "config.data.source")
    if "class" not in pattern.fields:
        raise UserError(
            f"config.data.source: {path!r} has no {{class}}, the part of a name that is the class"
        )
    listed, fitting = list_files(pattern.root, all_suffixes()), Listed()
    fitting.left_out = listed.left_out
    fields = []
    for name in listed.names:
        found = pattern.match(name)
        if found is None:
            fitting.left_out[f"files whose names are not {pattern.text}"].append(name)
        else:
            fitting.names.append(name)
            fields.append(found)
    classes = tuple(sorted({found["class"] for found in fields}))
    if len(classes) < 2:
        raise UserError(
            f"{pattern.root}: {len(fitting.names)} of its {_suffixes()} files are named "
            f"{pattern.text}, of {len(classes)} classes; a network needs at least two classes",
            exit_code=1,
        )
    labels = [classes.index(found["class"]) for found in fields]
    tree = Split(classes, fitting.names, labels, fitting.notes(pattern.root))
    if "split" in pattern.fields:
        if test:
            raise UserError(f"config.data.folder.test is {test!r}, and {path!r} has {{split}}")
        there = sorted({found["split"] for found in fields})
        if split not in there:
            raise UserError(
                f"{path}: has no split {split!r}{nearest(split, there)}; it has {_some(there)}: "
                "set --config.data.train_split and --config.data.eval_split",
                exit_code=1,
            )
        return _chosen(tree, np.array([found["split"] == split for found in fields]))
    if not test:
        return _draw_apart(pattern.root, tree, split, test_fraction, seed)
    _check_drawn(pattern.root, split)
    is_test = held_out(test, pattern.fields)
    chosen = _chosen(tree, np.array([is_test(found) == (split == "test") for found in fields]))
    if not chosen.names:
        raise UserError(
            f"{pattern.root}: config.data.folder.test={test} leaves the split {split!r} empty",
            exit_code=1,
        )
    return chosen


def _chosen(tree: Split, chosen: np.ndarray) -> Split:
    """The files of a tree for which `chosen` [N] is True."""
    places = np.flatnonzero(chosen)
    return tree._replace(
        names=[tree.names[i] for i in places], labels=[tree.labels[i] for i in places]
    )


def _has_splits(root: str, split: str, clips: bool = False) -> bool:
    """Whether the folder is PATH/<split>/<class>/, and not PATH/<class>/."""
    top = subfolders(root)
    if not top:
        raise UserError(
            f"{root}: has no folders; it must hold <split>/<class>/ or <class>/ with "
            f"{_suffixes()} files",
            exit_code=1,
        )
    with_folders = [name for name in top if subfolders(os.path.join(root, name))]
    if split in with_folders:
        return True
    named = [name for name in top if name.lower() in SPLITS]
    if not with_folders and named != top:
        return False
    with_files = [name for name in top if files_in(os.path.join(root, name), all_suffixes())]
    # A class may have its files in subfolders; a split has none of its own.
    if (with_files or clips) and not named:
        return False
    if split in top:
        other = f", but {with_folders[0]} has" if with_folders else ""
        raise UserError(
            f"{os.path.join(root, split)}: has no class folders{other}; it must hold a folder of "
            "files for each class, or --config.data.train_split and --config.data.eval_split must "
            "name other folders",
            exit_code=1,
        )
    raise UserError(
        f"{root}: has no split {split!r}{nearest(split, top)}; it has {_some(top)}: set "
        "--config.data.train_split and --config.data.eval_split; if these are the classes, move "
        "them into a folder named after the split",
        exit_code=1,
    )


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _suffixes() -> str:
    return ", ".join(all_suffixes())


def _list_classes(root: str, split: str = "", clips: bool = False) -> Split:
    folder = os.path.join(root, split)
    classes, found = tuple(subfolders(folder)), Listed()
    labels: list[int] = []
    for name in classes:
        if not name.isprintable():
            raise UserError(
                f"{folder}: the name of the class folder {name!r} is not printable; rename it",
                exit_code=1,
            )
    for label, name in enumerate(classes):
        listed, place = list_files(os.path.join(folder, name), all_suffixes()), (split, name)
        if not listed.names:
            raise UserError(
                f"{os.path.join(folder, name)}: has no {_suffixes()} file; add files of the class, "
                "or remove the folder",
                exit_code=1,
            )
        if clips:
            listed.names = _clips_of(listed.names, os.path.join(folder, name))
        found.add(listed, os.path.join(*place))
        labels += [label] * len(listed.names)
    if len(classes) < 2:
        raise UserError(
            f"{folder}: has one class folder, {''.join(classes)!r}; a network needs at least two "
            "classes",
            exit_code=1,
        )
    outside = [os.path.join(split, name) for name in files_in(folder, all_suffixes())]
    if outside:
        found.left_out[OUTSIDE] = outside
    return Split(classes, found.names, labels, found.notes(root))


def _clips_of(names: Sequence[str], folder: str) -> list[str]:
    """The folders of frames below a class's folder, from the files there."""
    for name in names:
        file = os.path.join(folder, name)
        if not name.lower().endswith(suffixes_of("image")):
            raise UserError(
                f"config.data.frames is set, so a clip is a folder of images, and {file} is none; "
                "for clips in .npy files leave it at 0",
                exit_code=1,
            )
        if not os.path.dirname(name):
            raise UserError(
                "config.data.frames is set, so a clip is a folder of images, and "
                f"{file} lies in the folder of its class: move it into one of its own, such as "
                f"{os.path.join(folder, 'clip_1')}, or leave config.data.frames at 0",
                exit_code=1,
            )
    return clip_folders(names)


def _check_drawn(root: str, split: str) -> None:
    """Raise UserError unless an unsplit tree has the split."""
    if split not in ("train", "test"):
        raise UserError(
            f"{root}: is one unsplit tree, split at random into train and test; it has no split "
            f"{split!r}",
            exit_code=1,
        )


def _draw_apart(root: str, tree: Split, split: str, test_fraction: float, seed: int) -> Split:
    _check_drawn(root, split)
    if not 0 < test_fraction <= 1:
        raise UserError(
            f"data.folder.test_fraction is {test_fraction}; it must be above 0 and at most 1, "
            "which leaves nothing to train on"
        )
    in_test = np.zeros(len(tree.names), bool)
    for label, name in enumerate(tree.classes):
        members = np.flatnonzero(np.equal(tree.labels, label))
        # The draw depends only on the class's name and size, so adding a class later does not
        # change the split of the others.
        order = generator(seed, name).permutation(len(members))
        in_test[members[order[: round(test_fraction * len(members))]]] = True
    chosen = _chosen(tree, in_test == (split == "test"))
    if not chosen.names:
        raise UserError(
            f"{root}: a share of {test_fraction} of each class leaves the split {split!r} empty; "
            "change --config.data.folder.test_fraction",
            exit_code=1,
        )
    return chosen
