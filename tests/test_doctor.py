"""jaxconv doctor: the page, what is broken or too old, and that it has no secrets."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxconv import doctor
from jaxconv.errors import EXTRAS
from tests.conftest import process_settings
from tests.launch.test_package import requirements


def test_its_tables_are_complete():
    assert set(doctor.GIVES) == set(EXTRAS)
    always = {name.replace("-", "_") for name in requirements()[""]}
    assert set(doctor.ALWAYS) == always | {"jaxlib"}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A folder of modules that come before the installed ones in other processes."""
    for name, code in {
        "raises": "raise AttributeError('no  such\\nthing')",
        "exits": "import sys; sys.exit('bye')",
        "chatty": "print('hello'); import os; os.write(1, b'more')",
        "crashes": "import os; print('last words'); os.abort()",
        "hangs": "import time; time.sleep(60)",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_what_is_broken_does_not_hide_the_rest(broken):
    names = ["crashes", "chatty", "raises", "exits", "json"]
    tasks = [f"import {name}" for name in names]
    found = dict(doctor.try_all(tasks))
    assert [*found] == tasks
    assert found["import chatty"] == found["import json"] == "ok"
    assert found["import raises"] == "failed: AttributeError: no such thing"
    assert found["import exits"] == "failed: SystemExit: bye"
    assert found["import crashes"].startswith("failed: ended the process by signal 6")


def test_what_hangs_is_ended(broken):
    found = dict(doctor.try_all(["import json", "import hangs", "import csv"], patience=3.0))
    assert found["import hangs"] == "failed: took more than 3 s"
    assert found["import json"] == found["import csv"] == "ok"


def test_packages_that_are_missing_or_too_old(monkeypatch):
    assert doctor._package("jax", "").problem == "is not installed: pip install jaxconv"
    assert doctor._package("grain", "") == doctor.Line("grain", "")
    line = doctor._package("numpy", "failed: ImportError: x")
    assert line.problem == "cannot be imported: ImportError: x" and "cannot be" in line.value
    assert not doctor._package("numpy", "ok").problem
    monkeypatch.setattr(doctor, "_least_versions", lambda: {"numpy": "77.1"})
    assert re.fullmatch(
        r"[\d.]+ is older than 77.1: pip install --upgrade 'numpy>=77.1'",
        doctor._package("numpy", "ok").problem,
    )


@pytest.mark.parametrize(
    ("have", "least", "older"),
    [("0.9.2", "0.10", True), ("0.10.2", "0.10.2", False), ("2.0.0rc1", "2", False)],
)
def test_versions_are_compared_as_numbers(have, least, older):
    assert (doctor._numbers(have) < doctor._numbers(least)) == older


def test_an_extra_that_is_not_complete_says_what_it_gives(monkeypatch):
    monkeypatch.setattr(doctor, "is_there", lambda module: module != "cv2")
    assert doctor._extra("fast").value == (
        f"without cv2; gives {doctor.GIVES['fast']}: pip install 'jaxconv[fast]'"
    )
    assert doctor._extra("coco").value == "complete"


def test_no_secret_is_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("MY_ACCESS_KEY_ID", "AKIA12345")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/src:{tmp_path}2:https://me:pw@host/hf_abcdefgh")
    page = "\n".join(doctor.without_secrets(line.value) for line in doctor._environment())
    assert "~/src" in page and f"{tmp_path}2" in page and "set (not shown)" in page
    assert not re.search(r"hf_a|me:pw", page)
    assert doctor.without_secrets("at AKIA12345") == "at ..."
    assert not [name for name in doctor.SHOWN if doctor._SECRET.search(name)]


def test_without_a_home(monkeypatch):
    def unknown(path):
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", unknown)
    caches = {line.name: line.value for line in doctor._caches()}
    assert caches["weights"].endswith("the home folder is unknown; set HOME")
    spaces = {line.name: line for line in doctor._space()}
    assert spaces["home"].value.startswith("unknown (Could not") and not spaces["home"].problem


def test_the_size_of_a_cache(monkeypatch, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(b"x" * 1500)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    files, size = doctor._size_of(tmp_path)
    assert files == 2 and 1500 < size < 1700
    for name, variable in {
        "weights": "JAXCONV_WEIGHTS",
        "copies of buckets": "JAXCONV_CLOUD",
    }.items():
        monkeypatch.setenv(variable, str(tmp_path))
        caches = {line.name: line.value for line in doctor._caches()}
        assert caches[name].endswith("kB in 2 files")


@pytest.mark.slow
def test_the_page(tmp_path):
    """With a JAX that cannot be imported, at which every other command fails."""
    (tmp_path / "jax.py").write_text("raise ImportError('jaxlib is of another version')")
    settings = process_settings()
    settings["env"] |= {"PYTHONPATH": str(tmp_path), "HF_TOKEN": "hf_abcdefgh"}
    process = subprocess.run(
        [sys.executable, "-m", "jaxconv", "doctor"], capture_output=True, **settings
    )
    assert process.returncode == 1 and not process.stderr
    page = process.stdout
    assert "jax: cannot be imported: ImportError: jaxlib is of another version" in page
    assert re.search(r"^  PIL +pillow [\d.]+$", page, re.M)
    assert re.search(r"^  this folder +[\d.]+ GB in ", page, re.M)
    assert "hf_abcdefgh" not in page and (os.environ.get("HOME") or "/root") not in page
    titles = re.findall(r"^\w.*$", page, re.M)
    assert titles[-1] == "problems" and titles[:2] == ["jaxconv", "packages"]
    assert len(page.splitlines()) < 80


def test_its_arguments(capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--nothing"])
    assert ended.value.code == 2 and "unrecognized arguments: --nothing" in capsys.readouterr().err
