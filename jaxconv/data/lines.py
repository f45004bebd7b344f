"""Lines of text with labels, in files as they are.

    text:DIR                        DIR/<split>.tsv: a class, a tab and a text per line
    text:DIR/TREC.{split}.all       a class, a space or a tab, and a text per line
    text:DIR/rt-polarity.all        the same in one file, whose only split is train
    text:DIR/rt-polarity.{class}    a text per line, of the class that the file's name says

Files are UTF-8; others than .tsv may also be Latin-1, as older sets are. A set without a test split
is cut by data/folds.py.
"""

import collections
import zlib
from pathlib import Path

import numpy as np

from jaxconv.data.named_files import has_fields, parse_pattern
from jaxconv.errors import UserError, nearest, short, some
from jaxconv.files import at_home

# What the columns are called where the first line names them.
_CLASS_COLUMNS = (
    "label", "labels", "class", "category", "target", "sentiment", "topic", "intent", "y",
)  # fmt: skip
_TEXT_COLUMNS = (
    "text", "texts", "sentence", "review", "content", "title", "message", "comment", "document",
    "tweet", "utterance", "question", "description", "input", "x",
)  # fmt: skip
_HEADER = "--config.data.text.header"
# So many lines with a class each are no examples of classes.
_MANY = 10


_ONE_SPLIT = (
    "which has the split train alone; cut it with --config.data.train_split='train[!fold]' "
    "--config.data.eval_split='train[fold]'"
)


class Lines:
    """Records of lines: the text, and its class.

    Args:
      path: see the module.
      split: its name.
      class_names: those of the training split; empty for this split's own, sorted.
      header: whether the first line of a .tsv names the columns: `yes`, `no`, or `auto`.
      coarse: classes end at their first colon.

    Raises:
      UserError: a file does not exist, a line does not have this form, or the first may be either.
    """

    has_labels = True
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        path: str,
        split: str,
        class_names: tuple[str, ...],
        header: str = "auto",
        coarse: bool = False,
    ):
        self._places: list[tuple[Path, int]] = []
        self._texts: list[str] = []
        names: list[str] = []
        for file, name in _files(path, split):
            found = _numbered(file)
            if name:
                found = [(number, [name, line.strip()]) for number, line in found]
            else:
                separator = "\t" if file.suffix == ".tsv" else None
                parts = [(number, line.split(separator, 1)) for number, line in found]
                found = [(number, [each[0].strip(), *each[1:]]) for number, each in parts]
                if coarse:
                    found = [(n, [each[0].partition(":")[0], *each[1:]]) for n, each in found]
                if file.suffix == ".tsv":
                    found = found[self._header(file, found, class_names, header) :]
                _check_lines(file, found, class_names)
            self._places += [(file, number) for number, _ in found]
            self._texts += [parts[1] for _, parts in found]
            names += [parts[0] for _, parts in found]
        self.class_names = class_names or tuple(sorted(set(names)))
        if len(self.class_names) < 2:
            raise UserError(
                f"text:{path}: has {len(self.class_names)} classes; a network needs at least two",
                exit_code=1,
            )
        for name in names:
            if name not in self.class_names:
                raise UserError(
                    f"text:{path}: has the class {name!r}; the classes are "
                    f"{', '.join(self.class_names)}",
                    exit_code=1,
                )
        number_of = {name: number for number, name in enumerate(self.class_names)}
        self._labels = np.array([number_of[name] for name in names], np.int32)

    def _header(
        self,
        file: Path,
        found: list[tuple[int, list[str]]],
        class_names: tuple[str, ...],
        header: str,
    ) -> int:
        """1 if the first line names the columns, and 0 if it is an example.

        Raises:
          UserError: it may be either.
        """
        if not found or header == "no":
            return 0
        first = [part.strip() for part in found[0][1]]
        words = [part.lower() for part in first]
        known = len(words) == 2 and words[0] in _CLASS_COLUMNS and words[1] in _TEXT_COLUMNS
        if header == "yes" or (known and first[0] not in class_names):
            self.notes = (f"{file}: line 1, {short(first)}, names the columns: not read",)
            return 1
        counts = collections.Counter(parts[0] for _, parts in found)
        alone = counts.pop(first[0]) == 1
        if alone and not class_names and counts and min(counts.values()) > 1:
            raise UserError(
                f"{file}: line 1 is the only one of the class {short(first[0])!r}; if it "
                f"names the columns, set {_HEADER}=yes, and if it is an example, {_HEADER}=no",
                exit_code=1,
            )
        return 0

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, i: int) -> tuple[str, int]:
        return self._texts[i], int(self._labels[i])

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32."""
        return self._labels

    def name(self, i: int) -> str:
        """The file and the line."""
        file, number = self._places[i]
        return f"{file}, line {number}"

    def checksum(self) -> int:
        """CRC-32 of texts and labels."""
        return zlib.crc32("\n".join(self._texts).encode(), zlib.crc32(self._labels))


def _files(path: str, split: str) -> list[tuple[Path, str]]:
    """The files of a split, and the class of each where its name says it."""
    key = "config.data.source"
    if not has_fields(path):
        root = at_home(path, key)
        if root.is_file():
            _check_one_split(f"{root} is one file", split)
            return [(root, "")]
        file = root / f"{split}.tsv"
        if not file.is_file():
            there = ", ".join(sorted(file.stem for file in root.glob("*.tsv"))) or "none"
            raise UserError(
                f"text:{path}: file {file} not found; the folder's splits are: {there}", exit_code=1
            )
        return [(file, "")]
    pattern = parse_pattern(path, key)
    root, found = Path(pattern.root), []
    for file in sorted(root.glob("*/" * pattern.text.count("/") + "*")):
        fields = pattern.match(str(file.relative_to(root)))
        if fields is not None and file.is_file():
            found.append((file, fields))
    if "split" in pattern.fields:
        there = sorted({fields["split"] for _, fields in found})
        found = [(file, fields) for file, fields in found if fields["split"] == split]
        if not found:
            raise UserError(
                f"text:{path}: has no split {split!r}{nearest(split, there)}; it has "
                f"{some(there, 5) or 'none'}: set --config.data.train_split and "
                "--config.data.eval_split",
                exit_code=1,
            )
    else:
        _check_one_split(f"text:{path} is one set", split)
    if not found:
        raise UserError(f"text:{path}: no file in {root} is named {pattern.text}", exit_code=1)
    return [(file, fields.get("class", "")) for file, fields in found]


def _check_one_split(what: str, split: str) -> None:
    if split != "train":
        raise UserError(f"{what}, {_ONE_SPLIT}; split {split!r} not found", exit_code=1)


def _numbered(file: Path) -> list[tuple[int, str]]:
    """Number and content of each line that is not empty."""
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if file.suffix == ".tsv":
            raise UserError(f"{file}: is not UTF-8 ({error})", exit_code=1) from error
        text = content.decode("latin-1")
    lines = enumerate(text.split("\n"), 1)
    return [(number, line.rstrip("\r")) for number, line in lines if line.strip()]


def _check_lines(
    file: Path, found: list[tuple[int, list[str]]], class_names: tuple[str, ...]
) -> None:
    """Raise UserError unless each line is a class and a text."""
    for number, parts in found:
        if len(parts) != 2 or not parts[0] or (class_names and parts[0] not in class_names):
            allowed = f"; the classes are {', '.join(class_names)}" if class_names else ""
            between = "a tab"
            if file.suffix != ".tsv":
                between = "a space"
            elif number == 1:
                allowed += f"; if it names the columns, set {_HEADER}=yes"
            raise UserError(
                f"{file}, line {number}: {short(parts)} is not a class, {between} and a "
                f"text{allowed}",
                exit_code=1,
            )
    names = [parts[0] for _, parts in found]
    if len(names) >= _MANY and len(set(names)) == len(names) and not class_names:
        raise UserError(
            f"{file}: each of its {len(names)} lines has a class of its own, such as "
            f"{short(names[0])!r}; a line is a class, a tab and a text, without a number or an "
            "index before them",
            exit_code=1,
        )
