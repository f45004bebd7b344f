"""Live curves of loss and accuracy: text in a terminal, a picture that updates in a notebook.

    jaxconv curves --workdir=RUN --watch

    from jaxconv.look import live
    with live.in_notebook("RUN"):      # while this cell trains
        train(config, "RUN")
    live.follow("RUN")                 # while another process does

Text is drawn by uniplot, a pure function from numbers to a string that needs only NumPy. Plotext
draws into one global figure, and its version 6 has dropped the names of version 5.
"""

import contextlib
import functools
import io
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from jaxconv.cloud import refresh
from jaxconv.drawing.fonts import save_figure
from jaxconv.errors import UserError
from jaxconv.files import expand
from jaxconv.look.curves import Panel, loss_and_accuracy, main_panels
from jaxconv.tasks import Task, find_task
from jaxconv.train.workdir import in_use, opened_config, read_metrics, saved_config

# uniplot's names for the colours of the runs; and letters, for output without colour: training,
# evaluation.
_COLOURS = ("blue", "red", "green", "magenta", "cyan", "yellow")
_LETTERS = tuple(zip(".,:'`-", "oxabcd", strict=True))
_CLEAR, _ENTER, _LEAVE = "\x1b[H\x1b[J", "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"

Runs = Mapping[str, Sequence[Mapping[str, float]]]


def text_curves(
    runs: Runs,
    width: int = 80,
    height: int = 24,
    colour: bool = False,
    task: type[Task] | None = None,
) -> str:
    """Loss above, accuracy below, as lines of text.

    Args:
      runs: rows of metrics.jsonl by run name.
      width, height: size of the text in characters; at least 40 by 16.
      colour: distinguish runs by colour and draw finer lines; otherwise by letters.
      task: the task of the runs, by default the default task.
    """
    drawn = [
        _panel(runs, panel, max(width, 40), max(height, 16) // 2, colour)
        for panel in main_panels(task)
    ]
    return "\n".join(panel for panel in drawn if panel) or "no loss has been logged yet"


def _panel(runs: Runs, panel: Panel, width: int, height: int, colour: bool) -> str:
    import uniplot

    title, unit, (*train_and_eval, _) = panel
    xs, ys, labels, colours, letters = [], [], [], [], []
    for number, (name, rows) in enumerate(runs.items()):
        for which, (key, label, _) in enumerate(train_and_eval):
            points = [
                (row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))
            ]
            if points:
                for line, values in zip((xs, ys), zip(*points, strict=True), strict=True):
                    line.append(values)
                newest = f"{label} {points[-1][1]:.4f}"
                labels.append(newest if len(runs) == 1 else f"{name}, {newest}")
                colours.append(
                    _COLOURS[(2 * number + which if len(runs) == 1 else number) % len(_COLOURS)]
                )
                letters.append(_LETTERS[number % len(_LETTERS)][which])
    if not xs:
        return ""
    look = (
        {"character_set": "braille", "color": colours}
        if colour
        else {"color": False, "character_set": "ascii", "force_ascii_characters": letters}
    )
    look |= {
        "title": f"{title.lower()} ({unit})",
        "legend_labels": labels,
        "lines": True,
        "x_gridlines": [],
        "y_gridlines": [],
        "line_length_hard_cap": width,
    }

    def draw(inner: int) -> str:
        # The axis labels are outside the frame.
        return uniplot.plot_to_string(
            ys, xs, width=max(20, width - 12), height=max(3, inner), **look
        )

    # Five lines for title, frame, axis labels and legend; the legend may take more.
    text = draw(height - 5)
    excess = text.count("\n") + 1 - height
    return draw(height - 5 - excess) if excess > 0 else text


def open_runs(workdirs: Sequence[str]) -> dict[str, Path]:
    """The folders of runs by unique names; raises UserError if one holds no run."""
    folders = [expand(workdir) for workdir in workdirs]
    for folder in folders:
        saved_config(folder)
    names = [folder.name for folder in folders]
    return {
        folder.name if names.count(folder.name) == 1 else str(folder): folder for folder in folders
    }


def task_of(folders: Mapping[str, Path]) -> type[Task] | None:
    """The task of the first run that has started; None if none has."""
    begun = [folder for folder in folders.values() if (folder / "config.json").is_file()]
    return find_task(opened_config(begun[0]).task.name) if begun else None


def frames(
    folders: Mapping[str, Path], every: float, ended: Callable[[float], bool]
) -> Iterator[Runs]:
    """Yield the rows of the runs, first as they are, then each time that they change.

    Args:
      folders: folders of the runs by name.
      every: seconds between checks.
      ended: called with `every`; waits up to that long and returns whether the runs have ended.
        Rows are read once more after that.
    """
    before, over = None, False
    while True:
        for folder in folders.values():
            refresh(folder)
        runs = {name: read_metrics(folder) for name, folder in folders.items()}
        if runs != before:
            yield runs
            before = runs
        if over:
            return
        over = ended(every)


def all_ended(folders: Mapping[str, Path], seconds: float) -> bool:
    """Wait `seconds` if a process trains in any folder; return whether none does after that."""
    if any(in_use(folder) for folder in folders.values()):
        threading.Event().wait(seconds)
    return not any(in_use(folder) for folder in folders.values())


def in_terminal(
    workdirs: Sequence[str], watch: bool = False, every: float = 1.0, stream: TextIO | None = None
) -> None:
    """Draw the curves as text; with `watch`, redraw them as they grow until all runs have ended.

    A terminal switches to its alternate screen, is redrawn in place, and shows the last picture at
    the end. In other output, and on a terminal that cannot (TERM=dumb), each picture follows the
    one before.
    """
    out = stream or sys.stdout
    folders = open_runs(workdirs)
    terminal, text = out.isatty() and os.environ.get("TERM") != "dumb", ""
    ended = functools.partial(all_ended, folders) if watch else (lambda _: True)
    inside = watch and terminal
    try:
        out.write(_ENTER if inside else "")
        for runs in (
            frames(folders, every, ended)
            if watch
            else [{name: read_metrics(folder) for name, folder in folders.items()}]
        ):
            size = shutil.get_terminal_size()
            text = text_curves(
                runs,
                size.columns,
                size.lines - 1,
                terminal and not os.environ.get("NO_COLOR"),
                task=task_of(folders),
            )
            out.write(f"{_CLEAR}{text}" if inside else f"{text}\n")
            out.flush()
    finally:
        out.write(f"{_LEAVE}{text}\n" if inside else "")
        out.flush()


class Drawing:
    """A picture in the output of a notebook; `drawn` counts how often it was drawn."""

    def __init__(self) -> None:
        try:
            from IPython import get_ipython
            from IPython.display import display
        except ImportError as error:
            raise UserError(
                "IPython is not installed, so this is not a notebook; use `jaxconv curves` in a "
                "terminal"
            ) from error
        if get_ipython() is None:
            raise UserError("this is not a notebook; use `jaxconv curves` in a terminal")
        self._display, self._handle, self.drawn = display, None, 0

    def show(self, runs: Runs, task: type[Task] | None = None) -> None:
        """Replace the previous curves with these."""
        from IPython.display import Image

        file = io.BytesIO()
        save_figure(loss_and_accuracy(runs, task), file, format="png", dpi=100)
        image = Image(file.getvalue(), format="png", alt=f"loss and accuracy of {', '.join(runs)}")
        if self._handle is None:
            self._handle = self._display(image, display_id=True)
        else:
            self._handle.update(image)
        self.drawn += 1


@contextlib.contextmanager
def in_notebook(*workdirs: str, every: float = 2.0) -> Iterator[Drawing]:
    """Draw the curves below the cell while the block trains, and once more at its end.

    Args:
      *workdirs: workdirs of the runs, which need not have started.
      every: seconds between checks.

    Raises:
      UserError: this is not a notebook.
    """
    drawing, over = Drawing(), threading.Event()
    folders = {expand(workdir).name: expand(workdir) for workdir in workdirs}
    drawing.show({name: [] for name in folders})

    def draw() -> None:
        for runs in frames(folders, every, over.wait):
            drawing.show(runs, task_of(folders))

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield drawing
    finally:
        over.set()
        thread.join()


def follow(*workdirs: str, every: float = 2.0) -> None:
    """Draw the curves of runs in other processes below the cell.

    Returns when all runs have ended or the cell is interrupted.

    Raises:
      UserError: a workdir holds no run, or this is not a notebook.
    """
    drawing, folders = Drawing(), open_runs(workdirs)
    for runs in frames(folders, every, functools.partial(all_ended, folders)):
        drawing.show(runs, task_of(folders))
