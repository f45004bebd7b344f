"""The examples in docstrings, `>>>`, print what they say."""

import doctest
import importlib

import pytest

from tests.conftest import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "jaxconv").rglob("*.py")
    if ">>> " in path.read_text()
)


def test_the_most_used_functions_have_examples():
    assert len(MODULES) >= 9 and "jaxconv.weights.create" in MODULES


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    found = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert found.attempted and not found.failed
