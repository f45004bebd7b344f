"""Watching a run: metrics, metrics.jsonl, TensorBoard files, progress bar, profile, messages."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxconv import moved
from jaxconv.cloud import with_addresses
from jaxconv.errors import UserError, short
from jaxconv.files import to_json
from jaxconv.train.board import Board
from jaxconv.train.workdir import read_metrics, write_lines

log = logging.getLogger(__name__)

# Calls by which the host may run ahead of the device: enough to keep it busy, few enough for an
# accurate progress bar.
_AHEAD = 2


class MetricsLog:
    """Writes rows of numbers by step to metrics.jsonl and TensorBoard.

    Rows after `step` are removed first, because a resumed run writes them again.
    """

    def __init__(self, workdir: Path, step: int, tensorboard: bool):
        path, rows = workdir / "metrics.jsonl", read_metrics(workdir, up_to=step)
        last = path.stat().st_mtime if rows else time.time()
        write_lines(path, map(to_json, rows))
        self._workdir, self._board = workdir, None
        # The clock of this start, which goes on from that of the starts before.
        self._start = time.monotonic() - (rows[-1].get("seconds", 0.0) if rows else 0.0)
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115, closed by close()
        if tensorboard:
            # Not SummaryWriter: it writes from a thread, which dies when the disk is full, and the
            # training then waits for it.
            with self._reraise_unwritable():
                self._board = Board(workdir / "tensorboard", rows, last)

    def write(self, row: dict[str, Any]) -> None:
        """Add one row: `step`, and floats by name; raises UserError if it cannot be written.

        In metrics.jsonl it also has `seconds`; TensorBoard has its own clock.
        """
        seconds = round(time.monotonic() - self._start, 3)
        with self._reraise_unwritable():
            self._file.write(to_json(row | {"seconds": seconds}) + "\n")
            if self._board is not None:
                self._board.write(row)

    @contextlib.contextmanager
    def _reraise_unwritable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._workdir}: cannot be written ({error.strerror or error}); "
                "once this is fixed, the same command resumes from the last checkpoint",
                exit_code=1,
            ) from error

    def close(self) -> None:
        """Write what is buffered and close; raises UserError if it cannot be written."""
        with self._reraise_unwritable():
            self._file.close()
            if self._board is not None:
                self._board.close()


class NoLog:
    """Replaces `MetricsLog` in all processes but the first."""

    def write(self, row: dict[str, Any]) -> None:
        """Do nothing: the first process writes."""

    def close(self) -> None:
        """Do nothing: no file is open."""


class PendingMetrics:
    """Metrics since the last log, kept on the device until needed so that the host can run ahead.

    Args:
      names: names of the entries of a step's metrics vector.
      rows: rows from the checkpoint, in step order; a value is a number, or a list of the members'
        numbers.
      step: the last step of the checkpoint.
      last_good: returns, for an error message, which checkpoint is left.
      gone: members of an ensemble that have already diverged.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        rows: list[dict[str, Any]],
        step: int,
        last_good: Callable[[], str],
        gone: Iterable[int] = (),
    ):
        self._names, self.rows, self.gone = names, list(rows), set(gone)
        self._step, self._last_good = step, last_good
        self._on_device: list[tuple[jax.Array, int]] = []

    def add(self, metrics: jax.Array, steps: int) -> None:
        """Add the metrics of a call of `steps` steps; wait while the host is too far ahead."""
        self._on_device.append((metrics, steps))
        if len(self._on_device) > _AHEAD:
            self._on_device[-_AHEAD - 1][0].block_until_ready()

    def fetch(self) -> None:
        """Copy all metrics to the host.

        Raises:
          UserError: a loss is infinite or NaN; for an ensemble, the losses of all members are.
        """
        for metrics, steps in self._on_device:
            values = np.asarray(metrics)
            for vector in [values] if steps == 1 else values:
                self._step += 1
                # The members' axis comes first.
                row = dict(zip(self._names, np.moveaxis(vector, -1, 0).tolist(), strict=True))
                self._check(row["loss"])
                self.rows.append(row)
        self._on_device.clear()

    def _check(self, loss: float | list[float]) -> None:
        if not isinstance(loss, list):
            if not np.isfinite(loss):
                raise self.diverged(f"the loss became {loss}", self._step)
            return
        gone = {member for member, value in enumerate(loss) if not np.isfinite(value)}
        for member in sorted(gone - self.gone):
            log.warning(
                "member %d: the loss became %s at step %d; the others continue",
                member,
                loss[member],
                self._step,
            )
        self.gone |= gone
        if len(self.gone) == len(loss):
            raise self.diverged("the loss of every member became infinite or NaN", self._step)

    def means(self) -> dict[str, float]:
        """Fetch the metrics, return the mean of each over the rows, and clear the rows.

        The learning rate is the latest one, not a mean. For an ensemble, `train/loss` is the mean
        over the members and `train/loss/0` and so on are the members' own values; diverged members
        are left out.
        """
        self.fetch()
        means: dict[str, float] = {}
        for name in self._names:
            key = name if name == "learning_rate" else f"train/{name}"
            values = np.array(
                [row[name] for row in (self.rows[-1:] if name == "learning_rate" else self.rows)]
            ).mean(axis=0)
            left = np.array([n not in self.gone for n in range(values.size)])
            means[key] = float(values.reshape(-1)[left].mean())
            if values.ndim:
                means |= {f"{key}/{n}": float(value) for n, value in enumerate(values) if left[n]}
        self.rows = []
        return means

    def diverged(self, what: str, step: int) -> UserError:
        """The error for a training that has diverged."""
        return UserError(
            f"{what} at step {step}; {self._last_good()}; try a smaller "
            "--config.optimizer.learning_rate",
            exit_code=1,
        )


class Progress:
    """A progress bar, or plain lines if standard error is not a terminal.

    It shows the step, the loss, the first figure of the task (`figure`), images/s and the time
    left.
    """

    def __init__(self, total: int, step: int, batch_size: int, shown: bool, figure: str = "loss"):
        self._total, self._batch_size, self._bar = total, batch_size, None
        keys = dict.fromkeys(("loss", figure))
        self._names = {f"train/{key}": key for key in keys}
        self._names |= {f"eval/{key}": f"eval {key}" for key in keys}
        self._newest: dict[str, float] = {}
        self._stack = contextlib.ExitStack()
        # Python has no standard error under pythonw and some services.
        self._shown = shown = shown and sys.stderr is not None
        if shown and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            self._bar = self._stack.enter_context(
                tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, smoothing=0.05)
            )
            self._stack.enter_context(logging_redirect_tqdm([logging.getLogger("jaxconv")]))

    def advance(self, steps: int = 1) -> None:
        """Advance the bar by a number of steps."""
        if self._bar is not None:
            self._bar.update(steps)

    def report(self, row: dict[str, float]) -> None:
        """Show the newest numbers, from a row of metrics.jsonl."""
        if self._bar is not None:
            self._newest |= row
            row = self._newest
        texts = [f"{name} {row[key]:.4f}" for key, name in self._names.items() if key in row]
        rate = row.get("images_per_second")
        if rate:
            texts.append(f"{rate:,.0f} images/s")
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(texts), refresh=False)
        elif self._shown:
            if rate:
                texts.append(
                    f"{_clock((self._total - row['step']) * self._batch_size / rate)} left"
                )
            print(
                f"step {row['step']}/{self._total}  " + "  ".join(texts),
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Close the bar, and leave it on the screen."""
        self._stack.close()


class Profiler:
    """Traces some steps, for TensorBoard's profile plugin or xprof.

    Args:
      folder: where to write the trace.
      steps: `FIRST:LAST`, counted from 1, inclusive; a call of several steps is traced as a whole;
        empty for no trace.
    """

    def __init__(self, folder: Path, steps: str):
        self._folder, self._running = folder, False
        self._first, self._last = map(int, steps.split(":")) if steps else (0, 0)

    def before(self, step: int, count: int) -> None:
        """Start the trace if it is due; invoked before a call of `count` steps after `step`."""
        if not self._running and step + 1 <= self._last and step + count >= self._first > 0:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, metrics: jax.Array) -> None:
        """Stop the trace if it is due; invoked after the call that ends with `step`."""
        if self._running and step >= self._last:
            metrics.block_until_ready()
            self.close()

    def close(self) -> None:
        """Stop the trace if one is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log.info("profile written to %s", self._folder)


class Stopwatch:
    """Measures images per second of training; paused while the run compiles, evaluates or saves."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stopped: float | None = None
        self._images = 0

    def count(self, images: int) -> None:
        """Add a number of processed images."""
        self._images += images

    def lap(self) -> float:
        """Seconds since the last lap; begins the next."""
        now = time.perf_counter()
        seconds, self._start, self._images = now - self._start, now, 0
        return seconds

    def rate(self) -> dict[str, float]:
        """`images_per_second` of the lap, or empty if no image was counted; begins the next."""
        images = self._images
        seconds = self.lap()
        return {"images_per_second": images / seconds} if images else {}

    def stop(self) -> None:
        """Pause until `go_on`."""
        self._stopped = time.perf_counter()

    def go_on(self) -> None:
        if self._stopped is not None:
            self._start += time.perf_counter() - self._stopped
            self._stopped = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def reraise_out_of_memory(in_words: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """Turn JAX's error for a device out of memory into a UserError.

    `in_words` returns what takes the memory, and what to try.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        what, advice = in_words()
        raise UserError(
            f"out of memory: {what} ({short(error, 200)}); try {advice}", exit_code=1
        ) from error


class _Messages(logging.Formatter):
    """Messages as they are, with the addresses of what is in buckets."""

    def format(self, record: logging.LogRecord) -> str:
        return with_addresses(super().format(record))


def announce_to(stream: Any = None, level: int = logging.INFO) -> None:
    """Send the package's messages of at least a level to a stream, one line each.

    `stream` is standard error by default.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Messages("%(message)s"))
    package = logging.getLogger("jaxconv")
    package.handlers, package.propagate = [handler], False
    package.setLevel(level)
    # Through absl's logger, Orbax reports its progress as warnings, and the tracebacks of errors
    # that it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


__getattr__ = moved.names_of(__name__)
