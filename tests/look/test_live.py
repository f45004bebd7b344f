"""Live curves: as text, redrawn in a terminal, and in the output of a notebook."""

import json
import os
import pty
import re
import subprocess
import threading

import pytest

from jaxconv.errors import UserError
from jaxconv.look import live
from jaxconv.run import train
from jaxconv.train.workdir import locked
from tests.conftest import (
    ROOT,
    assert_one_line_error,
    command,
    command_line,
    process_settings,
    tiny_config,
)

ROWS = [
    {"step": step, "train/loss": 2.0 / step, "train/top1": 1 - 0.5 / step} for step in range(1, 21)
]
ROWS[-1] |= {"eval/loss": 0.25, "eval/top1": 0.9}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose numbers are `ROWS`."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config(steps=4), str(folder))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def panels(text):
    """The rows of each frame in a text, without the left and right edges."""
    frames = text.split("┌")[1:]
    return [
        [
            line.partition("│")[2].partition("│")[0]
            for line in frame.splitlines()
            if line.startswith("│")
        ]
        for frame in frames
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("colour", [False, True])
def test_text(width, colour):
    text = live.text_curves({"run": ROWS}, width, 24, colour)
    bare = re.sub("\x1b\\[[0-9;]*m", "", text)
    assert (bare != text) == colour
    assert max(map(len, bare.splitlines())) <= width and len(bare.splitlines()) <= 24
    assert (
        "train 0.1000" in bare
        and "eval 0.2500" in bare
        and "train 0.9750" in bare
        and "eval 0.9000" in bare
    )
    loss, accuracy = panels(bare)
    # From left to right the loss falls and the accuracy rises.
    assert loss[0][0] != " " and loss[0][-1] == " " and loss[-1][-1] != " "
    assert accuracy[-1][0] != " " and accuracy[0][0] == " " and accuracy[0][-1] != " "


def test_text_of_several_runs_and_of_none():
    text = live.text_curves({"a": ROWS, "b": ROWS[:3]}, 80, 24)
    assert (
        all(said in text for said in ("a, train 0.1000", "a, eval 0.2500", "b, train 0.6667"))
        and "b, eval" not in text
    )
    assert live.text_curves({"a": []}, 80, 24) == "no loss has been logged yet"
    diverged = [*ROWS, {"step": 21, "train/loss": float("nan")}]
    assert "train 0.1000" in live.text_curves({"a": diverged}, 80, 24)


def test_command_in_a_pipe(run, tmp_path):
    process = command(
        "curves", "--workdir", run, env=process_settings()["env"] | {"COLUMNS": "70", "LINES": "20"}
    )
    assert process.returncode == 0, process.stderr
    assert "\x1b" not in process.stdout and max(map(len, process.stdout.splitlines())) <= 70
    assert "eval 0.2500" in process.stdout
    assert_one_line_error(
        command("curves", "--workdir", run, tmp_path), 2, "holds no run", tmp_path
    )


def test_command_in_a_terminal_redraws_until_the_run_ends(run):
    """It uses the alternate screen, and leaves it at the end."""
    settings = process_settings()
    settings["env"] |= {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    settings["env"].pop("NO_COLOR", None)
    before = (run / "metrics.jsonl").read_text()
    ours, theirs = pty.openpty()
    lock = locked(run)
    process = subprocess.Popen(
        command_line("curves", "--watch", "--workdir", run),
        **settings | {"stdin": theirs},
        stdout=theirs,
    )
    os.close(theirs)
    said = ""

    def read_until(words):
        nonlocal said
        while words not in said:
            said += os.read(ours, 65536).decode(errors="replace")

    try:
        read_until("0.9000")
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 21, "train/loss": 0.0777, "train/top1": 1.0}) + "\n")
        read_until("0.0777")
        lock.close()
        read_until("\x1b[?1049l")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        lock.close()
        (run / "metrics.jsonl").write_text(before)
    assert said.startswith("\x1b[?1049h") and said.count("\x1b[H\x1b[J") >= 2


def test_frames_show_what_is_logged_before_the_end(tmp_path):
    file, over = tmp_path / "metrics.jsonl", threading.Event()
    seen = []

    def ended(seconds):
        if len(seen) == 2:
            file.write_text(file.read_text() + '{"step": 3}\n')
            over.set()
        elif not over.is_set():
            file.write_text('{"step": 1}\n{"step": 2}\n')
        return over.is_set()

    for runs in live.frames({"run": tmp_path}, 0.0, ended):
        seen.append(len(runs["run"]))
    assert seen == [0, 2, 3]


def test_names_tell_runs_apart(run, tmp_path):
    other = tmp_path / "run"
    other.symlink_to(run)
    assert list(live.open_runs([str(run)])) == ["run"]
    assert list(live.open_runs([str(run), str(other)])) == [str(run), str(other)]


def test_no_notebook():
    with pytest.raises(UserError, match="not a notebook"), live.in_notebook("run"):
        pass


CELLS = (
    "from tests.conftest import tiny_config",
    """
from jaxconv.look import live
from jaxconv.run import train
with live.in_notebook(FOLDER, every=0.05) as drawing:
    train(tiny_config(steps=120, log__every=5), FOLDER)
print("drawn", drawing.drawn)
""",
    "live.follow(FOLDER)",
)


@pytest.mark.slow
def test_notebook(tmp_path, monkeypatch):
    """The first cell updates its picture while it trains; the second finds an ended run."""
    import nbformat
    from nbclient import NotebookClient

    settings = process_settings()["env"] | {
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    cells = [
        nbformat.v4.new_code_cell(cell.replace("FOLDER", repr(str(tmp_path / "run"))))
        for cell in CELLS
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    _, training, following = (
        [output for output in cell.outputs if "data" in output] for cell in notebook.cells
    )
    printed = "".join(output.get("text", "") for output in notebook.cells[1].outputs)
    assert int(re.search(r"drawn (\d+)", printed)[1]) >= 3
    # Each cell has one output, updated in place; both end with a picture of the whole run.
    assert len(training) == len(following) == 1
    assert training[0]["data"]["image/png"] == following[0]["data"]["image/png"]
