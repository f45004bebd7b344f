"""Watching a run: metrics.jsonl, TensorBoard files, and a progress bar (or plain lines where there is no terminal)."""

import contextlib
import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from jaxconv.train.workdir import read_metrics, write_lines


class MetricsLog:
    """Rows of numbers by step, to metrics.jsonl and TensorBoard.

    What was logged after `step` is cut off first: a resumed run writes it again. TensorBoard's files are written anew from what is left.
    """

    def __init__(self, workdir: Path, step: int, tensorboard: bool):
        rows = read_metrics(workdir, up_to=step)
        write_lines(workdir / "metrics.jsonl", map(json.dumps, rows))
        self._file = open(workdir / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115, closed by close()
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
            self._board = SummaryWriter(str(workdir / "tensorboard"))
            for row in rows:
                self._to_board(row)

    def write(self, row: dict[str, Any]) -> None:
        """Add one row: `step`, and floats by name."""
        self._file.write(json.dumps(row) + "\n")
        self._to_board(row)

    def _to_board(self, row: dict[str, Any]) -> None:
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


class Progress:
    """A bar with step, loss, accuracy, images/s and time left; plain lines where standard error is no terminal."""

    def __init__(self, total: int, step: int, batch_size: int, shown: bool):
        self._total, self._batch_size, self._shown, self._bar = total, batch_size, shown, None
        self._newest: dict[str, float] = {}
        self._stack = contextlib.ExitStack()
        if shown and sys.stderr.isatty():
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            self._bar = self._stack.enter_context(tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, smoothing=0.05))
            self._stack.enter_context(logging_redirect_tqdm([logging.getLogger("jaxconv")]))

    def advance(self) -> None:
        """One more step is done."""
        if self._bar is not None:
            self._bar.update()

    def report(self, row: dict[str, float]) -> None:
        """Show the newest numbers, from a row of metrics.jsonl."""
        names = {"train/loss": "loss", "train/top1": "top1", "eval/loss": "eval loss", "eval/top1": "eval top1"}
        if self._bar is not None:
            self._newest |= row
            row = self._newest
        texts = [f"{name} {row[key]:.4f}" for key, name in names.items() if key in row]
        rate = row.get("images_per_second")
        if rate:
            texts.append(f"{rate:,.0f} images/s")
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(texts), refresh=False)
        elif self._shown:
            if rate:
                texts.append(f"{_clock((self._total - row['step']) * self._batch_size / rate)} left")
            print(f"step {row['step']}/{self._total}  " + "  ".join(texts), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._stack.close()


class Stopwatch:
    """Images a second of training alone: it stands still while the run compiles, evaluates and saves."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stopped: float | None = None
        self._images = 0

    def count(self, images: int) -> None:
        """So many more images are done."""
        self._images += images

    def lap(self) -> float:
        """Seconds since the last lap; begins the next."""
        now = time.perf_counter()
        seconds, self._start, self._images = now - self._start, now, 0
        return seconds

    def rate(self) -> dict[str, float]:
        """`images_per_second` of the lap, or nothing where no image was counted; begins the next."""
        images = self._images
        seconds = self.lap()
        return {"images_per_second": images / seconds} if images else {}

    def stop(self) -> None:
        """Stand still until `go_on`."""
        self._stopped = time.perf_counter()

    def go_on(self) -> None:
        if self._stopped is not None:
            self._start += time.perf_counter() - self._stopped
            self._stopped = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
