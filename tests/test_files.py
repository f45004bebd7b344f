"""Names of files in output of every kind."""

import os

import pytest

from jaxconv.errors import UserError, columns, padded
from jaxconv.files import PRINTABLE, expand, printable
from jaxconv.report.document import write
from jaxconv.tasks.files import write_rows

NAME = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (NAME, r"caf\xe9"),
        ("狗.png", "狗.png"),
        ("café", "café"),
        ("a\nb", r"a\nb"),
        ("a\x1b[0m", r"a\x1b[0m"),
        ("\ud800", r"\ud800"),
    ],
)
def test_printable(name, shown):
    assert printable(name) == shown


def test_files_in_utf8(tmp_path):
    write_rows(tmp_path / "a.csv", [["name"], [NAME], ["狗"]])
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").split() == ["name", r"caf\xe9", "狗"]
    write(tmp_path / "a.html", f"<p>{NAME} 狗")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == r"<p>caf\xe9 狗"
    assert "\ud800".encode("utf-8", PRINTABLE) == rb"\ud800"


@pytest.mark.parametrize("name", [NAME, "a\nb", f"/{NAME}/x"])
def test_folders_of_runs_are_text(name):
    """No checkpoint could be written there, which was seen only at the end of a run."""
    with pytest.raises(UserError, match=r"is not UTF-8 text; give another"):
        expand(name)
    assert expand("狗").name == "狗"


def test_columns_of_a_terminal():
    assert columns("狗a") == 3 and columns("e\u0301") == 1
    assert [len(padded(name, 6)) for name in ("狗", "ab", "longer than that")] == [5, 6, 16]
