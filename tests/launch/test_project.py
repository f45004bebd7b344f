"""Workflows, versions that agree, the pinned environment, and the citation."""

import re
import subprocess
import sys

import pytest

from jaxconv.version import __version__
from tests.conftest import ROOT
from tests.launch.test_package import requirements

yaml = pytest.importorskip("yaml")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_whole(path, tmp_path):
    """They parse, may only read, pin actions, end in time, and call scripts that exist."""
    flow = yaml.safe_load(path.read_text())
    # YAML 1.1 reads the key `on` as True.
    assert set(flow) <= {"name", True, "permissions", "concurrency", "jobs"}
    assert flow["name"] == path.stem and {"push", "pull_request"} <= set(flow[True])
    assert flow["permissions"] == {"contents": "read"}
    for job in flow["jobs"].values():
        assert job["timeout-minutes"] and job["runs-on"] and job["steps"]
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
                continue
            # What anybody may choose, such as the name of a branch, does not become code.
            assert "${{" not in step["run"]
            (tmp_path / "step.sh").write_text(step["run"])
            checked = subprocess.run(["bash", "-n", tmp_path / "step.sh"], capture_output=True)
            assert checked.returncode == 0, checked.stderr
    assert len(WORKFLOWS) == 3


def test_workflows_run_what_is_there():
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    assert "- run: .ci/run" in text and (ROOT / ".ci" / "run").is_file()
    for path in WORKFLOWS:
        python = re.findall(r'"(3\.\d+)"', path.read_text())
        listed = (ROOT / "setup.cfg").read_text()
        assert all(f"Python :: {version}" in listed for version in python)


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    top = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert __version__ == citation["version"] and top is not None
    assert top[1] in (__version__, "Unreleased")


def test_the_citation_is_complete():
    """What the Citation File Format 1.2.0 requires, and the license of setup.cfg."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert all("name" in author for author in citation["authors"])
    settings = (ROOT / "setup.cfg").read_text()
    assert f"license = {citation['license']}\n" in settings
    assert f"author = {citation['authors'][0]['name']}\n" in settings


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    lines = [line.partition(";")[0] for line in lines if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_every_package_of_the_tests_has_one_version():
    named = {name.partition("[")[0] for names in requirements().values() for name in names}
    wanted = named - {"jaxconv"}
    assert wanted <= set(pins())
    assert all(re.fullmatch(r"\d[\d.]*\d", version) for version in pins().values())
    least = re.findall(r"^    ([\w-]+)>=([\d.]+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert len(least) > 20

    def numbers(version):
        return [int(part) for part in version.split(".")]

    for name, version in least:
        assert numbers(pins()[name]) >= numbers(version), name
    assert set(pins()) == {*wanted, "jaxlib", *more_of_ci()}


def more_of_ci():
    """What .ci/run installs beside the extra [test], by the script that makes the file."""
    text = (ROOT / ".ci" / "constraints.py").read_text()
    return set(re.findall(r'"([\w-]+)"', text.partition("MORE = (")[2].partition(")")[0]))


def test_the_script_that_renews_them_prints_the_same_names():
    process = subprocess.run(
        [sys.executable, ".ci/constraints.py"], cwd=ROOT, capture_output=True, text=True
    )
    if process.returncode:  # this environment has only some of them
        missing = process.stderr.removeprefix("not installed: ").strip().split(", ")
        assert set(missing) <= set(pins()) and not process.stdout
    else:
        printed = [line.partition("==")[0] for line in process.stdout.splitlines()]
        assert printed == [
            line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()
        ]
