"""The notebook, run as on Colab but small and on the CPU, and what its install cell installs."""

import glob
import importlib.util
import json
import subprocess

import pytest

from jaxconv.errors import UserError
from tests.conftest import ROOT, process_settings

NOTEBOOK = ROOT / "launch" / "colab_tpu.ipynb"


def cell(name):
    """The source of one cell."""
    (found,) = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["id"] == name]
    return "".join(found["source"])


def test_nothing_is_left_from_an_execution():
    cells = [
        cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_each_cell_says_what_one_should_see():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for code, after in zip(cells, cells[1:], strict=False):
        if code["cell_type"] == "code":
            assert after["id"] == f"{code['id']}-seen"
            assert "".join(after["source"]).startswith("You should see")


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    settings = process_settings()["env"] | {
        "JAXCONV_SMALL": "1",
        "JAXCONV_WORKDIR": str(tmp_path / "run"),
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    outputs = {cell["id"]: cell["outputs"] for cell in notebook.cells if cell.cell_type == "code"}
    said = {
        name: "".join(output.get("text", "") for output in cell) for name, cell in outputs.items()
    }
    assert (
        "jaxconv " in said["devices"]
        and "top-1" in said["train"]
        and "step " in said["predictions"]
    )
    for name in ("curves", "predictions"):
        assert any("image/png" in output.get("data", {}) for output in outputs[name]), name
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


@pytest.mark.parametrize(
    ("devices", "source", "workdir", "wanted"),
    [
        ("/dev/vfio/0", "", "/tmp/x", f"jaxconv[prepare,tpu] @ {ROOT.as_uri()}"),
        ("/dev/vfio/0", "", "gs://b/x", f"jaxconv[prepare,tpu,cloud] @ {ROOT.as_uri()}"),
        (
            "/dev/accel0",
            "git+https://example.org/jaxconv.git",
            "/tmp/x",
            "jaxconv[prepare,tpu] @ git+https://example.org/jaxconv.git",
        ),
        ("/dev/nvidia0", "", "/tmp/x", f"jaxconv[prepare,cuda] @ {ROOT.as_uri()}"),
        ("", str(ROOT), "/tmp/x", f"jaxconv[prepare] @ {ROOT.as_uri()}"),
    ],
)
def test_install_cell(monkeypatch, devices, source, workdir, wanted):
    """It installs the accelerator's extra, from the notebook's checkout or from SOURCE."""
    calls = []
    monkeypatch.setattr(
        glob, "glob", lambda pattern: [devices] if devices and devices[:8] == pattern[:8] else []
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    monkeypatch.chdir(ROOT / "launch")
    exec(cell("install"), {"SOURCE": source, "WORKDIR": workdir})
    assert calls[0][-1] == wanted


def test_install_cell_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="Set SOURCE"):
        exec(cell("install"), {"SOURCE": "", "WORKDIR": "/tmp/x"})


@pytest.mark.parametrize("downloads", [True, False])
def test_data_cell(monkeypatch, capsys, downloads):
    """CIFAR-10 if it can be prepared, otherwise X's and O's with three channels."""
    import jaxconv.data.prepare

    def prepare(name):
        if not downloads:
            raise UserError(f"tfds:{name}: cannot be prepared: no network")

    monkeypatch.setattr(jaxconv.data.prepare, "prepare", prepare)
    space = {"SMALL": False}
    exec(cell("data"), space)
    config = space["config"]
    assert config.data.source == ("tfds:cifar10" if downloads else "xo")
    assert downloads or (
        config.data.xo.channels == 3 and "using X's and O's" in capsys.readouterr().out
    )
