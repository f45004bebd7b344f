"""Lines of text with labels: PATH/<split>.tsv, a class, a tab and a text per line."""

import zlib

import numpy as np

from jaxconv.errors import UserError, short
from jaxconv.files import at_home


class Lines:
    """Records of PATH/<split>.tsv: lines of a class, a tab and a text, in UTF-8.

    Args:
      path: the folder.
      split: the file's name, without its suffix.
      class_names: those of the training split; empty for this split's own, sorted.

    Raises:
      UserError: the file does not exist, or a line does not have this form.
    """

    has_labels = True

    def __init__(self, path: str, split: str, class_names: tuple[str, ...]):
        root = at_home(path, "config.data.source")
        self._file = root / f"{split}.tsv"
        if not self._file.is_file():
            there = ", ".join(sorted(file.stem for file in root.glob("*.tsv"))) or "none"
            raise UserError(
                f"text:{path}: file {self._file} not found; the folder's splits are: {there}",
                exit_code=1,
            )
        try:
            lines = self._file.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{self._file}: is not UTF-8 ({error})", exit_code=1) from error
        found = [
            (number, line.rstrip("\r").split("\t", 1))
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
        found = [(number, [parts[0].strip(), *parts[1:]]) for number, parts in found]
        for number, parts in found:
            if len(parts) != 2 or not parts[0] or (class_names and parts[0] not in class_names):
                allowed = f"; the classes are {', '.join(class_names)}" if class_names else ""
                raise UserError(
                    f"{self._file}, line {number}: {short(parts)} is not a class, a tab and a "
                    f"text{allowed}",
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
