"""Lines of text with labels: a row that names the columns is no example."""

import pytest

from jaxconv.data.lines import Lines
from jaxconv.errors import UserError

ROWS = "pos\tgood film\nneg\tbad film\npos\tnice\nneg\tawful\n"


def lines(folder, text, header="auto", names=()):
    (folder / "train.tsv").write_text(text)
    return Lines(str(folder), "train", names, header)


@pytest.mark.parametrize(
    "row", ["label\ttext", "Sentiment\tReview", " class \t title ", "Label\tx"]
)
@pytest.mark.parametrize("names", [(), ("neg", "pos")])
def test_a_header_is_found_and_said(tmp_path, row, names):
    found = lines(tmp_path, f"{row}\n{ROWS}", names=names)
    assert found.class_names == ("neg", "pos") and len(found) == 4
    assert "line 1" in found.notes[0] and "names the columns: not read" in found.notes[0]
    assert found.name(0).endswith("line 2")


def test_what_may_be_a_header_is_asked(tmp_path):
    text = f"stimmung\tsatz\n{ROWS}"
    with pytest.raises(
        UserError,
        match="line 1 is the only one of the class 'stimmung'; if it "
        "names the columns, set --config.data.text.header=yes, and if it is an "
        "example, --config.data.text.header=no",
    ):
        lines(tmp_path, text)
    assert lines(tmp_path, text, "yes").class_names == ("neg", "pos")
    assert lines(tmp_path, text, "no").class_names == ("neg", "pos", "stimmung")
    with pytest.raises(UserError, match="if it names the columns, set .*header=yes"):
        lines(tmp_path, text, names=("neg", "pos"))


@pytest.mark.parametrize("text", [ROWS, "a\tx\nb\ty\n", "label\ttext\nlabel\tmore\nother\tit\n"])
def test_what_is_none(tmp_path, text):
    """The last has a class of this name in another line too, but a header would be left out."""
    found = lines(tmp_path, text, "no")
    assert not found.notes and len(found) == len(text.splitlines())


def test_a_class_of_a_column_s_name(tmp_path):
    """Where the training split has the class, the line is an example."""
    assert len(lines(tmp_path, "label\ttext\nother\tit\n", names=("label", "other"))) == 2


def test_an_index_before_the_class(tmp_path):
    rows = "".join(f"{n}\tpos\ttext {n}\n" for n in range(12))
    with pytest.raises(UserError, match="each of its 12 lines has a class of its own, such as '0'"):
        lines(tmp_path, rows)
    assert len(lines(tmp_path, rows, names=tuple(map(str, range(12))))) == 12
