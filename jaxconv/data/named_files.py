"""Sets whose file names say what a file is: paths with fields in braces.

    folder:fsdd/recordings/{class}_{speaker}_{take}.wav      sounds; the class is in the name
    text:sentences/TREC.{split}.all                          one file for each split
    text:reviews/rt-polarity.{class}                         one file for each class

A field stands for one or more characters other than `/`; `{}` is one without a name. The folder
before the first field is the root. `{split}` picks the split and `{class}` is the class; others,
such as `{take}`, can hold out a part, see `held_out`.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from jaxconv.errors import UserError, nearest

_FIELD = re.compile(r"\{(\w*)\}")


class Pattern(NamedTuple):
    """A path with fields.

    Attributes:
      root: the folder before the first field.
      text: the rest, with the fields in braces.
      fields: their names, in order, without those of `{}`.
    """

    root: str
    text: str
    fields: tuple[str, ...]

    def match(self, name: str) -> dict[str, str] | None:
        """The fields' values in a path relative to the root; None unless it fits."""
        parts = _FIELD.split(self.text)
        made = "".join(
            (f"(?P<{part}>[^/]+?)" if part else "[^/]+?") if n % 2 else re.escape(part)
            for n, part in enumerate(parts)
        )
        found = re.fullmatch(made, name.replace(os.sep, "/"))
        return found.groupdict() if found else None


def has_fields(path: str) -> bool:
    """Whether a path has fields in braces."""
    return bool(_FIELD.search(path))


def root_of(path: str) -> str:
    """The folder before the first field; without fields, the path itself."""
    found = _FIELD.search(path)
    return path[: found.start()].rpartition("/")[0] or "." if found else path


def parse_pattern(path: str, key: str) -> Pattern:
    """The pattern of a path with fields.

    Args:
      path: with `~` for the home folder.
      key: of the config, for messages.

    Raises:
      UserError: a field is given twice or has no valid name, or the root is not a folder.
    """
    root = os.path.expanduser(root_of(path))
    text = path[len(root_of(path)) + 1 :] if root_of(path) != "." else path.removeprefix("./")
    fields = [name for name in _FIELD.findall(text) if name]
    for name in fields:
        if fields.count(name) > 1:
            raise UserError(
                f"{key}: {path!r} has the field {{{name}}} twice; name one of them {{}}"
            )
        if not name.isidentifier():
            raise UserError(f"{key}: {{{name}}} in {path!r} is not a name; start it with a letter")
    if not os.path.isdir(root):
        raise UserError(f"{key}: folder {root} not found", exit_code=1)
    return Pattern(root, text, tuple(fields))


def held_out(text: str, fields: Iterable[str]) -> Callable[[Mapping[str, str]], bool]:
    """The test of `data.folder.test`: whether a file of such fields is held out.

    Args:
      text: `FIELD=VALUE,VALUE`; of whole numbers also `FIRST-LAST`, such as take=0-4.
      fields: of the pattern.

    Raises:
      UserError: the text has another form, or the pattern has no such field.
    """
    key, _, values = text.partition("=")
    fields = [name for name in fields if name not in ("class", "split")]
    if not values or not all(values.split(",")) or key not in fields:
        raise UserError(
            f"config.data.folder.test is {text!r}{nearest(key, fields)}; it must be FIELD=VALUE,"
            "VALUE or FIELD=FIRST-LAST, such as take=0-4, of a field in the braces of "
            f"config.data.source: {', '.join(fields) or 'it has none'}"
        )
    ranges = [re.fullmatch(r"(\d+)-(\d+)", value) for value in values.split(",")]
    numbers = [range(int(found[1]), int(found[2]) + 1) for found in ranges if found]

    def test(found: Mapping[str, str]) -> bool:
        value = found[key]
        return value in values.split(",") or (
            value.isdecimal() and any(int(value) in numbers_of for numbers_of in numbers)
        )

    return test
