"""The site is built without a warning, its links lead somewhere, and it can be read and searched
offline, in light and dark, on a wide and a narrow screen.
"""

import os
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import ROOT
from tests.test_public import public_names

pytestmark = pytest.mark.slow
# Pages that the browser opens: with code, tables, pictures, and the reference.
READ = ("index", "guides/first_run", "gallery", "speed", "lecture", "reference/index")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    out = tmp_path_factory.mktemp("site") / "html"
    command = ["bash", ROOT / "docs" / "build.sh", out]
    built = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHON": sys.executable}
    )
    assert built.returncode == 0, built.stderr
    return out


class Page(HTMLParser):
    """The anchors of a page, what it refers to, and pictures without words."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.wordless = {""}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links += [found[key] for key in ("href", "src") if found.get(key)]
        if tag == "img" and not found.get("alt"):
            self.wordless.append(found.get("src"))


def broken(folder):
    """The links of all pages in a folder that lead to no file or anchor in it."""
    pages = {path: Page(path.read_text()) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            inside = target.is_relative_to(folder.resolve()) and target.is_file()
            known = (
                pages[target].anchors if inside and target in pages else {unquote(parts.fragment)}
            )
            if not inside or unquote(parts.fragment) not in known:
                yield str(path.relative_to(folder)), link


def test_all_links_lead_somewhere(site):
    assert [*broken(site)] == []
    assert len([*site.rglob("*.html")]) > 30


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a id=here></a><a href="#here"></a><a href="#there"></a><a href="b.html"></a>'
        '<a href="../c.html"></a><a href="a.html#here"></a><a href="https://x.org/#y"></a>'
    )
    assert [link for _, link in broken(tmp_path)] == ["#there", "b.html", "../c.html"]


def test_every_public_name_is_in_the_reference(site):
    pages = [Page(path.read_text()) for path in (site / "reference").rglob("*.html")]
    anchors = set().union(*(page.anchors for page in pages))
    missing = [name for name, _ in public_names() if name not in anchors]
    assert missing == []


@pytest.mark.parametrize("page", READ)
def test_a_page_is_read_by_anyone(site, browser, page):
    address = (site / f"{page}.html").as_uri()
    for dark in (False, True):
        browser.open(address, dark=dark)
        assert browser.errors() == []
        assert all(request.startswith("file:") for request in browser.requests())
        assert browser.violations() == []
    browser.open(address, width=390, height=800)
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    assert browser.errors() == []


def test_search_works_from_disk(site, browser):
    browser.open((site / "search.html").as_uri() + "?q=distillation")
    browser.wait("return document.querySelectorAll('#search-results li').length > 0")
    found = [item.text for item in browser.find_all("#search-results li a")]
    assert any("Fine-tune" in text for text in found), found
    assert browser.errors() == []
