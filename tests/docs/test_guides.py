"""Every command and all Python of the README and of the guides, as a reader would run them."""

import pytest

from tests.conftest import ROOT, rarely
from tests.docs.pages import blocks_of, run_page, small

pytest.importorskip("pycocotools")
pytest.importorskip("nibabel")
pytest.importorskip("tornado")

PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
PAGES = [
    page
    for page in PAGES
    if any(kind in ("sh", "console", "python", "pycon") for kind, _ in blocks_of(page))
]


# Guides that train for a while, or compile much, run with --full.
LONG = {
    f"docs/guides/{name}.md"
    for name in (
        *("detect", "evaluate", "finetune", "many_devices", "many_runs", "python", "reuse"),
        "segment",
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("page", rarely(PAGES, LONG))
def test_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path, capsys)


@pytest.mark.parametrize(
    ("fence", "text", "why"),
    [
        ("sh", "jaxconv trian --config=jaxconv:xo", "invalid choice"),
        ("sh", "jaxconv evaluate --workdir=nothing", "nothing"),
        ("sh", "pip install 'jaxconv[everything]'", "everything"),
        ("console", "$ jaxconv wordnet n02109961\nan Eskimo cat", "dog"),
        ("pycon", ">>> 1 + 1\n3", "Expected"),
        ("python", "assert False", ""),
        ("", "anything", "none of the kinds"),
    ],
)
def test_a_page_that_is_wrong_fails(fence, text, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```{fence}\n{text}\n```\n")
    with pytest.raises((AssertionError, SystemExit)) as raised:
        run_page(str(page), tmp_path, capsys)
    assert why in str(raised.value) + "".join(capsys.readouterr())


def test_commands_are_made_small():
    assert small(["train", "--config=jaxconv:xo_detection:masks", "--config.model.name=resnet18"])[
        1:3
    ] == ["--config=jaxconv:xo_detection:masks_small", "--config.model.name=resnet20_cifar"]
