"""Lines of text with labels: PATH/<split>.tsv, a class, a tab and a text per line."""

import collections
import zlib

import numpy as np

from jaxconv.errors import UserError, short
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


class Lines:
    """Records of PATH/<split>.tsv: lines of a class, a tab and a text, in UTF-8.

    Args:
      path: the folder.
      split: the file's name, without its suffix.
      class_names: those of the training split; empty for this split's own, sorted.
      header: whether the first line names the columns: `yes`, `no`, or `auto`.

    Raises:
      UserError: the file does not exist, a line does not have this form, or the first may be
        either.
    """

    has_labels = True
    notes: tuple[str, ...] = ()

    def __init__(self, path: str, split: str, class_names: tuple[str, ...], header: str = "auto"):
        root = at_home(path, "config.data.source")
        self._file = root / f"{split}.tsv"
        if not self._file.is_file():
            there = ", ".join(sorted(file.stem for file in root.glob("*.tsv"))) or "none"
            raise UserError(
                f"text:{path}: file {self._file} not found; the folder's splits are: {there}",
                exit_code=1,
            )
        found = self._parts()
        found = found[self._header(found, class_names, header) :]
        for number, parts in found:
            if len(parts) != 2 or not parts[0] or (class_names and parts[0] not in class_names):
                allowed = f"; the classes are {', '.join(class_names)}" if class_names else ""
                if number == 1:
                    allowed += f"; if it names the columns, set {_HEADER}=yes"
                raise UserError(
                    f"{self._file}, line {number}: {short(parts)} is not a class, a tab and a "
                    f"text{allowed}",
                    exit_code=1,
                )
        names = [parts[0] for _, parts in found]
        if len(names) >= _MANY and len(set(names)) == len(names) and not class_names:
            raise UserError(
                f"{self._file}: each of its {len(names)} lines has a class of its own, such as "
                f"{short(names[0])!r}; a line is a class, a tab and a text, without a number or an "
                "index before them",
                exit_code=1,
            )
        self.class_names = class_names or tuple(sorted({parts[0] for _, parts in found}))
        if len(self.class_names) < 2:
            raise UserError(
                f"{self._file}: has {len(self.class_names)} classes; a network needs at least two",
                exit_code=1,
            )
        self._numbers, self._texts = (
            [number for number, _ in found],
            [parts[1] for _, parts in found],
        )
        self._labels = np.array([self.class_names.index(parts[0]) for _, parts in found], np.int32)

    def _parts(self) -> list[tuple[int, list[str]]]:
        """Number and columns of each line that is not empty."""
        try:
            lines = self._file.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{self._file}: is not UTF-8 ({error})", exit_code=1) from error
        found = [
            (number, line.rstrip("\r").split("\t", 1))
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
        return [(number, [parts[0].strip(), *parts[1:]]) for number, parts in found]

    def _header(
        self, found: list[tuple[int, list[str]]], class_names: tuple[str, ...], header: str
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
            self.notes = (f"{self._file}: line 1, {short(first)}, names the columns: not read",)
            return 1
        counts = collections.Counter(parts[0] for _, parts in found)
        alone = counts.pop(first[0]) == 1
        if alone and not class_names and counts and min(counts.values()) > 1:
            raise UserError(
                f"{self._file}: line 1 is the only one of the class {short(first[0])!r}; if it "
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
        return f"{self._file}, line {self._numbers[i]}"

    def checksum(self) -> int:
        """CRC-32 of texts and labels."""
        return zlib.crc32("\n".join(self._texts).encode(), zlib.crc32(self._labels))
