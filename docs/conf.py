"""The documentation site: `docs/build.sh` builds it into docs/_build/html."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jaxconv

project = "jaxconv"
copyright = "the authors of jaxconv, Apache-2.0"
release = version = jaxconv.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "runs", "reference/modules/modules.rst"]
html_theme = "furo"
html_title = "jaxconv"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_search_summary = False  # it fetches pages, which a browser forbids on disk
html_copy_source = False
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

# A page for each package of jaxconv, beside the pages in reference/ that are written by hand.
apidoc_modules = [
    {
        "path": "../jaxconv",
        "destination": "reference/modules",
        "exclude_patterns": ["../jaxconv/__main__.py"],
        "module_first": True,
    }
]
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "ignore-module-all": True,  # names are described where they are defined
    "exclude-members": "set",  # which matplotlib adds to its artists
}
autodoc_preserve_defaults = True
napoleon_use_ivar = True
default_role = "code"
highlight_language = "none"  # tables of docstrings are no Python
# Types of other packages and private ones have no page here, and a type such as `bytes` is also the
# name of some attributes.
nitpick_ignore_regex = [("py:.*", r"(?!jaxconv\.).*|.*\.(_\w+|T)")]
suppress_warnings = ["ref.python"]

SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:")


def as_rst(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code`, sections and tables in columns: make them RST."""
    section, paragraphs = False, []
    for paragraph in "\n".join(lines).split("\n\n"):
        rows = paragraph.splitlines()
        if rows and not rows[0].startswith(" "):
            section = rows[0] in SECTIONS
        if ">>>" in paragraph:
            pass
        elif not section and any(re.match(r" |.*\S {2,}\S", row) for row in rows):
            paragraph = "::\n\n" + "\n".join("    " + row for row in rows)
        else:
            parts = re.split(r"(`[^`]*`)", paragraph)
            parts[::2] = [re.sub(r"([*|]|\b_|_\b)", r"\\\1", part) for part in parts[::2]]
            paragraph = "".join(parts)
        paragraphs.append(paragraph)
    lines[:] = "\n\n".join(paragraphs).splitlines() + [""]


def setup(app):
    app.connect("autodoc-process-docstring", as_rst, priority=1)
