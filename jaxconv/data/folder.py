"""Folders: PATH/<split>/<class>/<file>, or PATH/<class>/<file>, which is split at random by a seed.

    images    .jpg, .jpeg, .png    [H, W, C] uint8, see data/decode.py
    sounds    .wav                 a waveform [L, 1] or a spectrogram [T, mels, 1], see
              data/signals.py
    volumes   .npy                 [D, H, W] or [D, H, W, C], uint8 or float32

If the set is read into memory, everything that could stop training is checked before it begins:
unreadable and empty files, folders without a class, splits with different classes, images of
different sizes. With `data.skip_unreadable=True`, unreadable files are left out and logged instead.
For a streamed set, the tree is checked before training, and each file when it is read.
"""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.interface import DamagedError, generator
from jaxconv.errors import UserError, nearest

KINDS = {"image": (".jpg", ".jpeg", ".png"), "sound": (".wav",), "volume": (".npy",)}
SUFFIXES = tuple(suffix for suffixes in KINDS.values() for suffix in suffixes)


class Files:
    """Records that are files: the payload is the content.

    Args:
      root: of all paths; messages show it, but the checksum does not depend on it.
      files, labels: of the records.
    """

    has_labels = True

    def __init__(self, root: Path | str, files: Sequence[Path], labels: Sequence[int]):
        self._root = Path(root)
        # Strings, because a million Path objects take half a gigabyte.
        self._names = [os.path.relpath(file, root) for file in files]
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
        """`image`, `sound` or `volume`, by the suffixes; raises UserError if they are mixed."""
        kinds = {suffix: kind for kind, suffixes in KINDS.items() for suffix in suffixes}
        found = {kinds[os.path.splitext(name)[1].lower()]: name for name in self._names}
        if len(found) > 1:
            both = " and ".join(f"{name} ({kind})" for kind, name in sorted(found.items()))
            raise UserError(
                f"{self._root}: holds files of several kinds, such as {both}; keep one", exit_code=1
            )
        return next(iter(found))


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


def open_files(path: str, split: str, config: Any) -> tuple[Files, tuple[str, ...]]:
    """The files of one split, and the names of the classes.

    Args:
      path: the folder.
      split: the split's name; `train` or `test` if the folder is one unsplit tree.
      config: `config.data`; `folder` is used.

    Raises:
      UserError: the tree has one of the faults in the module's docstring.
    """
    classes, files, labels = list_split(
        path, split, config.folder.test_fraction, config.folder.seed
    )
    return Files(os.path.expanduser(path), files, labels), classes


def list_split(
    path: str, split: str, test_fraction: float, seed: int
) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """Class names, files and labels of one split; classes and files are sorted by name.

    An unsplit tree is split class by class: a share `test_fraction` of each class, rounded, goes to
    `test`.

    Raises:
      UserError: the folder, the split or its classes do not exist, or the classes differ between
        splits.
    """
    root = Path(os.path.expanduser(path))
    if not path or not root.is_dir():
        raise UserError(
            f"folder:{path}: folder not found; set --config.data.source=folder:PATH",
            exit_code=1,
        )
    top = _subfolders(root)
    if not top:
        raise UserError(
            f"{root}: has no folders; it must hold <split>/<class>/ or <class>/ with {_suffixes()} "
            "files",
            exit_code=1,
        )
    splits = [folder for folder in top if _subfolders(folder)]
    if not splits:
        classes, files, labels = _list_classes(root)
        return (classes, *_draw_apart(root, files, labels, split, test_fraction, seed))
    for folder in top:
        if folder not in splits:
            raise UserError(
                f"{folder}: has no class folders, but {splits[0]} has; give every split a folder "
                "for each class, or remove this one",
                exit_code=1,
            )
    names = [folder.name for folder in splits]
    if split not in names:
        raise UserError(
            f"{root}: has no split {split!r}{nearest(split, names)}; it has {', '.join(names)}: "
            "set --config.data.train_split and --config.data.eval_split",
            exit_code=1,
        )
    listed = {folder.name: _list_classes(folder) for folder in splits}
    for name, (classes, _, _) in listed.items():
        if classes != listed[split][0]:
            differing = sorted(set(classes) ^ set(listed[split][0]))
            raise UserError(
                f"{root}: splits {split!r} and {name!r} have different classes; only one has "
                f"{', '.join(differing[:5])}"
                f"{' ...' if len(differing) > 5 else ''}: give both the same class folders",
                exit_code=1,
            )
    return listed[split]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _suffixes() -> str:
    return ", ".join(SUFFIXES)


def _list_classes(folder: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    files, labels = [], []
    classes = _subfolders(folder)
    for class_folder in classes:
        if not class_folder.name.isprintable():
            raise UserError(
                f"{folder}: the name of the class folder {class_folder.name!r} is not printable; "
                "rename it",
                exit_code=1,
            )
    for label, class_folder in enumerate(classes):
        with os.scandir(class_folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
            )
        if not names:
            raise UserError(
                f"{class_folder}: has no {_suffixes()} file; add files of the class, or remove "
                "the folder",
                exit_code=1,
            )
        files += [class_folder / name for name in names]
        labels += [label] * len(names)
    if len(classes) < 2:
        raise UserError(
            f"{folder}: has one class folder, {classes[0].name!r}; a network needs at least two "
            "classes",
            exit_code=1,
        )
    return tuple(folder.name for folder in classes), files, labels


def other_files(path: str) -> list[str]:
    """Sorted paths of all files below a folder whose kind is not read; hidden files are skipped."""
    found = []
    for place, folders, names in os.walk(os.path.expanduser(path)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(place, name)
            for name in names
            if not name.startswith(".") and not name.lower().endswith(SUFFIXES)
        ]
    return sorted(found)


def _draw_apart(
    root: Path,
    files: Sequence[Path],
    labels: Sequence[int],
    split: str,
    test_fraction: float,
    seed: int,
) -> tuple[list[Path], list[int]]:
    if split not in ("train", "test"):
        raise UserError(
            f"{root}: is one unsplit tree, split at random into train and test; it has no split "
            f"{split!r}",
            exit_code=1,
        )
    if not 0 < test_fraction < 1:
        raise UserError(
            f"data.folder.test_fraction is {test_fraction}; it must lie between 0 and 1"
        )
    in_test = np.zeros(len(files), bool)
    for label in range(max(labels) + 1):
        members = np.flatnonzero(np.equal(labels, label))
        # The draw depends only on the class's name and size, so adding a class later does not
        # change the split of the others.
        name = files[members[0]].parent.name
        order = generator(seed, name).permutation(len(members))
        in_test[members[order[: round(test_fraction * len(members))]]] = True
    chosen = np.flatnonzero(in_test == (split == "test"))
    if not len(chosen):
        raise UserError(
            f"{root}: a share of {test_fraction} of each class leaves the split {split!r} empty; "
            "change --config.data.folder.test_fraction",
            exit_code=1,
        )
    return [files[i] for i in chosen], [labels[i] for i in chosen]
