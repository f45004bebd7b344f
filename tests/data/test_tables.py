"""Tables of boxes: columns, splits, rows without objects, and what is wrong with rows."""

import numpy as np
import pytest
from PIL import Image

from jaxconv.data.interface import describe
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from tests.data.test_annotations import data

DETECTION = ("boxes", "classes", "valid", "crowd")
HEADER = "image,xmin,ymin,xmax,ymax,class"


def write(root, text, name="train.csv", images=("a.png", "b.png", "c.png")):
    (root / "images").mkdir(parents=True, exist_ok=True)
    for n, image in enumerate(images):
        pixels = np.full((20, 30 + n, 3), 50 * n, np.uint8)
        Image.fromarray(pixels).save(root / "images" / image)
    (root / name).write_text(text)
    return root


def opened(place, split="train", like=None, **changes):
    settings = data(f"csv:{place}", max_boxes=3, canvas=(40, 64), **changes)
    return open_source(settings, split, like=like, needs=DETECTION)


ROWS = (
    f"{HEADER}\na.png,2,3,10,13,dog\nb.png,,,,,\na.png,4,5,24,20,cat\nc.png,0,0,5,5,dog\n",
    # Other names, another order, more columns, and quotes.
    'Class,width,FileName,X1,Y1,X2,Y2\n"dog",30,a.png,2,3,10,13\n,31,b.png,,,,\n'
    "cat,30,a.png,4,5,24,20\ndog,32,c.png,0,0,5,5\n",
    # Keras-RetinaNet's.
    "a.png,2,3,10,13,dog\r\nb.png,,,,,\r\na.png,4,5,24,20,cat\r\nc.png,0,0,5,5,dog\r\n",
)


@pytest.mark.parametrize("text", ROWS)
@pytest.mark.parametrize("limit", [0, 10**9])
def test_rows_become_targets(tmp_path, text, limit):
    """The largest first, scaled with the image; an image without a box has no object."""
    source = opened(write(tmp_path, text), resident_limit=limit)
    assert source.class_names == ("cat", "dog") and len(source) == 3
    a, b, c = (source.read(i) for i in range(3))
    assert a["classes"].tolist() == [0, 1, -1] and a["valid"].tolist() == [True, True, False]
    np.testing.assert_allclose(a["boxes"][:2] / 2, [[5, 4, 20, 24], [3, 2, 13, 10]], atol=1e-5)
    assert not b["valid"].any() and not b["boxes"].any() and b["size"].tolist() == [20, 31]
    assert c["classes"].tolist() == [1, -1, -1] and not c["crowd"].any()
    # Of an image as it is, without a task: the largest object's class.
    plain = open_source(data(f"csv:{tmp_path}", image_size=16), "train")
    assert plain.labels_of_all().tolist() == [0, 1] and "left out: 1" in plain.notes[0]


def test_a_split_is_a_column_or_a_file(tmp_path):
    rows = f"{HEADER},split,difficult\n" + "".join(
        f"{name}.png,1,1,9,9,{kind},{split},{hard}\n"
        for name, kind, split, hard in zip(
            "abc", ("dog", "cat", "dog"), ("train", "train", "test"), "010", strict=True
        )
    )
    table = write(tmp_path, rows, "all.csv") / "all.csv"
    train = opened(table)
    test = opened(table, "test", like=describe(train))
    assert (len(train), len(test)) == (2, 1) and test.class_names == ("cat", "dog")
    assert train.read(1)["crowd"].tolist() == [True, False, False]
    assert train.checksum() != test.checksum()
    with pytest.raises(UserError, match="no row of the split 'val'; there is train, test"):
        opened(table, "val")
    (tmp_path / "plain.csv").write_text(ROWS[0])
    with pytest.raises(UserError, match="has no column split"):
        opened(tmp_path / "plain.csv")
    (tmp_path / "val_labels.csv").write_text(ROWS[0])
    assert len(opened(tmp_path, "val")) == 3
    # A class that the training split lacks is a fault of the row.
    (tmp_path / "test.csv").write_text(f"{HEADER}\na.png,1,1,9,9,dog\na.png,1,1,9,9,cow\n")
    other = opened(tmp_path, "test", like=describe(train))
    assert "unknown class, left out: 1, such as line 3 (cow)" in other.notes[0]


def test_shares_of_the_sides(tmp_path):
    root = write(tmp_path, f"{HEADER}\na.png,0.1,0.25,0.5,0.75,dog\nb.png,0.1,0.1,1,0.9,cat\n")
    found = opened(root, csv__relative=True).read(0)
    np.testing.assert_allclose(found["boxes"][0] / 2, [5, 3, 15, 15], atol=1e-5)
    with pytest.raises(UserError, match=r"csv\.relative=True"):
        opened(root)


def test_a_folder_of_images_can_be_named(tmp_path):
    root = write(tmp_path, ROWS[0])
    (root / "images").rename(root / "photos")
    with pytest.raises(UserError, match="none of its 3 images"):
        opened(root)
    assert len(opened(root, csv__images="photos")) == 3
    absolute = f"{HEADER}\n{root}/photos/a.png,1,1,9,9,dog\n"
    (root / "train.csv").write_text(absolute)
    assert len(opened(root)) == 1


FAULTS = {
    "a.png,2,3,10,x,dog": "not four numbers, left out: 1, such as line 3 (2,3,10,x)",
    "a.png,2,3,,,dog": "not four numbers, left out: 1, such as line 3",
    "a.png,2,3,10,nan,dog": "not finite, left out: 1, such as line 3",
    "a.png,2,3,10,1e99,dog": "not finite, left out: 1, such as line 3",
    "a.png,10,3,2,13,dog": "end before they begin, left out: 1, such as line 3",
    "a.png,2,3,2,13,dog": "without area, left out: 1, such as line 3",
    "a.png,50,3,60,13,dog": "outside of their image, left out: 1, such as line 3",
    "a.png,2,3,60,13,dog": "partly outside of their image, clipped: 1, such as line 3",
    "a.png,2,3,10,13,": "a box and no class, left out: 1, such as line 3",
    "z.png,2,3,10,13,dog": "not there, left out: 1, such as",
}


@pytest.mark.parametrize("row", FAULTS)
def test_faulty_rows_are_named_by_line(tmp_path, row):
    root = write(tmp_path, f"{HEADER}\nb.png,1,1,9,9,cat\n{row}\nc.png,1,1,9,9,dog\n")
    source = opened(root)
    assert len(source.notes) == 1 and FAULTS[row] in source.notes[0], source.notes
    assert str(root / "train.csv") in source.notes[0]
    boxes = np.stack([source.read(i)["boxes"] for i in range(len(source))])
    assert np.isfinite(boxes).all()
    with pytest.raises(UserError, match="train.csv: .*(line 3|z.png)"):
        opened(root, annotations="refuse")


BROKEN = {
    "": "the file is empty",
    "\n\n": "has no rows",
    HEADER: "no rows but its header",
    "image,xmin,ymin\na.png,1,2": "lacks the columns xmax, ymax, class",
    f"{HEADER}\na.png,1,2,3,4": "line 2: has 5 cells",
    f"{HEADER}\n,1,2,3,4,dog": "line 2: names no image",
    f'{HEADER}\n"a.png,1,2,3,4,dog': "cannot be read as CSV",
    f"{HEADER}\na.png,,,,,": "no row has a class",
    "a,b,c,d,e,f\n": "lacks the columns",
}


@pytest.mark.parametrize("text", BROKEN)
def test_tables_of_another_form_are_refused(tmp_path, text):
    with pytest.raises(UserError, match="train.csv") as error:
        opened(write(tmp_path, text))
    assert BROKEN[text] in str(error.value) and "\n" not in str(error.value)


def test_missing_tables_and_other_encodings(tmp_path):
    with pytest.raises(UserError, match="file not found"):
        opened(tmp_path / "none.csv")
    write(tmp_path, "x", "other.csv")
    with pytest.raises(UserError, match=r"no table of the split 'train'.*other\.csv"):
        opened(tmp_path)
    (tmp_path / "train.csv").write_bytes(ROWS[0].encode("utf-16"))
    with pytest.raises(UserError, match="cannot be read as CSV"):
        opened(tmp_path)
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbf" + ROWS[0].encode())
    assert len(opened(tmp_path)) == 3
