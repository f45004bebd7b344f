"""Which files a folder holds: any tree is listed as a plain os.walk with the rules says."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxconv.data.listing import SYSTEM, is_system, list_files, suffixes_of
from jaxconv.predict import find_items

NAMES = ["a.png", "b.JPG", "c.txt", ".d.png", "._e.png", "Thumbs.db", "f", "g.png.part", "h.tiff"]
FOLDERS = ["x", "y.png", "@eaDir", ".ipynb_checkpoints", "__MACOSX", "z"]
PLAIN = st.lists(st.sampled_from(["x", "y.png", "z"]), max_size=3).map("/".join)
PLACES = st.lists(st.sampled_from(FOLDERS), max_size=3).map("/".join)


def walked(root):
    """The plain way: real folders by os.walk, and links that lead to folders out of the tree."""
    files, others, hidden = [], [], []
    for place, folders, names in os.walk(root, followlinks=True):
        inside = os.path.relpath(place, root)
        path = lambda name: os.path.normpath(os.path.join(inside, name))  # noqa: B023, E731
        hidden += [path(name) for name in folders + names if is_system(name)]
        folders[:] = [name for name in folders if not is_system(name)]
        for name in names:
            if not is_system(name):
                wanted = name.lower().endswith(suffixes_of("image"))
                (files if wanted else others).append(path(name))
    return sorted(files), sorted(others), sorted(hidden)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(PLACES, st.sampled_from(NAMES)), max_size=20),
    st.lists(st.tuples(PLACES, st.sampled_from(["link", "p.png", ".q"])), max_size=2),
)
def test_any_tree_is_listed_as_a_plain_walk_says(entries, links):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        for place, name in entries:
            (root / place).mkdir(parents=True, exist_ok=True)
            (root / place / name).write_bytes(b"x")
        for number, (place, name) in enumerate(links):
            outside = Path(folder) / str(number) / "deep"
            outside.mkdir(parents=True)
            (outside / "far.png").write_bytes(b"x")
            if (root / place).is_dir() and not (root / place / name).exists():
                (root / place / name).symlink_to(outside.parent)
        files, others, hidden = walked(root)
        listed = list_files(root, suffixes_of("image"))
        assert listed.names == files
        left_out = sorted(sum(listed.left_out.values(), []))
        assert left_out == sorted(others + hidden)
        if files:
            items = find_items([str(root)], "image")
            assert [item.file for item in items] == [str(root / name) for name in files]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(PLAIN, PLAIN), max_size=6))
def test_links_never_lead_round_in_circles(links):
    """Each real folder is read once, whatever leads to it, and by its own name if it has one."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for place in {one for pair in links for one in pair}:
            (root / place).mkdir(parents=True, exist_ok=True)
            (root / place / "here.png").write_bytes(b"x")
        real = walked(root)[0]
        for number, (place, target) in enumerate(links):
            (root / place / f"link{number}").symlink_to(root / target)
        assert list_files(root, (".png",)).names == real


def test_links_to_what_is_outside(tmp_path):
    """A link up, to a folder that holds the one it stands in, would bring in other classes."""
    for name in ("train/cat", "train/dog", "far/deep"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").write_bytes(b"x")
    cat = tmp_path / "train/cat"
    (cat / "up").symlink_to(tmp_path / "train")
    (cat / "far").symlink_to(tmp_path / "far")
    (cat / "again").symlink_to(tmp_path / "far/deep")
    (cat / "round.png").symlink_to("round.png")
    (cat / "broken.png").symlink_to("nowhere")
    os.mkfifo(cat / "pipe.png")
    listed = list_files(cat, (".png",))
    assert listed.names == ["1.png", "again/1.png", "broken.png", "round.png"]
    assert [note.partition(": ")[2] for note in listed.notes(cat)] == [
        "left out pipes, sockets or devices: 1, such as pipe.png",
        "left out linked folders that are read already, or that hold the folder they stand in: 2, "
        "such as far/deep",
    ]


@pytest.mark.parametrize("name", [*sorted(SYSTEM), ".DS_Store", "._x.png", "Thumbs.DB", "@eaDir"])
def test_system_files(name):
    assert is_system(name)


def test_names_that_are_not_utf8_are_escaped_in_notes(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt"), "wb"):
        pass
    (note,) = list_files(tmp_path, (".png",)).notes(tmp_path)
    assert note.endswith("such as caf\\xe9.txt")


def test_avif_where_pillow_cannot_read_it(tmp_path, monkeypatch):
    from PIL import features

    (tmp_path / "a.avif").write_bytes(b"x")
    monkeypatch.setattr(features, "check_module", lambda name: name != "avif")
    suffixes_of.cache_clear()
    try:
        assert ".avif" not in suffixes_of("image") and ".webp" in suffixes_of("image")
        (note,) = list_files(tmp_path, suffixes_of("image")).notes(tmp_path)
        assert "(.avif 1; the installed Pillow cannot read .avif)" in note
    finally:
        suffixes_of.cache_clear()
