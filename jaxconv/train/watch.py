"""Watching a run: its metrics, metrics.jsonl, TensorBoard files, and a progress bar, or plain lines
where there is no terminal.
"""

import contextlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxconv import moved
from jaxconv.errors import UserError, short
from jaxconv.train.workdir import read_metrics, write_lines

log = logging.getLogger(__name__)

# Calls that the host may be ahead of the device: enough to keep it busy, few enough for the
# progress bar to be true.
_AHEAD = 2
# Seconds between two writings of the TensorBoard file to the disk.
_FLUSH_EVERY = 20


class MetricsLog:
    """Rows of numbers by step, to metrics.jsonl and TensorBoard.

    What was logged after `step` is cut off first: a resumed run writes it again. TensorBoard's
    files are written anew from what is left.
    """

    def __init__(self, workdir: Path, step: int, tensorboard: bool):
        rows = read_metrics(workdir, up_to=step)
        write_lines(workdir / "metrics.jsonl", map(json.dumps, rows))
        self._workdir = workdir
        self._file = open(workdir / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115, closed by close()
        self._board, self._flushed = None, time.monotonic()
        if tensorboard:
            # Not its SummaryWriter: that writes from a thread, and where the disk is full the
            # thread dies and the training waits for it.
            from tensorboardX.event_file_writer import EventsWriter

            shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
            with self._reraise_unwritable():
                (workdir / "tensorboard").mkdir()
                self._board = EventsWriter(str(workdir / "tensorboard" / "events"))
                for row in rows:
                    self._to_board(row)

    def write(self, row: dict[str, Any]) -> None:
        """Add one row: `step`, and floats by name; raises UserError where it cannot be written."""
        with self._reraise_unwritable():
            self._file.write(json.dumps(row) + "\n")
            self._to_board(row)

    def _to_board(self, row: dict[str, Any]) -> None:
        if self._board is None:
            return
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in row.items():
            if name != "step":
                self._board.write_event(
                    Event(step=row["step"], wall_time=time.time(), summary=scalar(name, value))
                )
        if time.monotonic() - self._flushed > _FLUSH_EVERY:
            self._board.flush()
            self._flushed = time.monotonic()

    @contextlib.contextmanager
    def _reraise_unwritable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._workdir}: cannot be written ({error.strerror or error}); "
                "once it can, the same command resumes from the last checkpoint",
                exit_code=1,
            ) from error

    def close(self) -> None:
        """Write what is left; raises UserError where that cannot be."""
        with self._reraise_unwritable():
            self._file.close()
            if self._board is not None:
                self._board.close()


class NoLog:
    """In the place of `MetricsLog` in all processes but the first."""

    def write(self, row: dict[str, Any]) -> None:
        """Leave it to the first process."""

    def close(self) -> None:
        """Nothing is open."""


class PendingMetrics:
    """Metrics of the steps since the last log: kept on the device until they are wanted, so that
    the host runs ahead.

    Args:
      names: of the entries of a step's vector of metrics.
      rows: those that a checkpoint brought along, in step order; a value is a number, or a list of
        the members' numbers.
      step: the last step they belong to.
      last_good: says, for an error message, which checkpoint is left.
      gone: members of an ensemble that have diverged before.
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
        """Take the metrics of a call of so many steps, and wait for those of the call before the
        last.
        """
        self._on_device.append((metrics, steps))
        if len(self._on_device) > _AHEAD:
            self._on_device[-_AHEAD - 1][0].block_until_ready()

    def fetch(self) -> None:
        """Bring all to the host; raises UserError at the first loss that is infinite or NaN, of an
        ensemble where all members' are.
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
        if isinstance(loss, float):
            if not np.isfinite(loss):
                raise self.diverged(f"the loss became {loss}", self._step)
            return
        gone = {member for member, value in enumerate(loss) if not np.isfinite(value)}
        for member in sorted(gone - self.gone):
            log.warning(
                "member %d: the loss became %s at step %d; the others go on",
                member,
                loss[member],
                self._step,
            )
        self.gone |= gone
        if len(self.gone) == len(loss):
            raise self.diverged("the loss of every member became infinite or NaN", self._step)

    def means(self) -> dict[str, float]:
        """Fetch, and return the mean of each metric over the rows, the learning rate as it is now;
        then begin anew.

        Of an ensemble, `train/loss` is the mean over the members, and `train/loss/0` and so on are
        theirs; diverged ones are left out.
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
        """The error for a training that has run away."""
        return UserError(
            f"{what} at step {step}; {self._last_good()}; try a smaller "
            "--config.optimizer.learning_rate",
            exit_code=1,
        )


class Progress:
    """A bar with step, loss, the first figure of the task (`figure`), images/s and time left; plain
    lines where standard error is no terminal.
    """

    def __init__(self, total: int, step: int, batch_size: int, shown: bool, figure: str = "loss"):
        self._total, self._batch_size, self._shown, self._bar = total, batch_size, shown, None
        keys = dict.fromkeys(("loss", figure))
        self._names = {f"train/{key}": key for key in keys}
        self._names |= {f"eval/{key}": f"eval {key}" for key in keys}
        self._newest: dict[str, float] = {}
        self._stack = contextlib.ExitStack()
        if shown and sys.stderr.isatty():
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            self._bar = self._stack.enter_context(
                tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, smoothing=0.05)
            )
            self._stack.enter_context(logging_redirect_tqdm([logging.getLogger("jaxconv")]))

    def advance(self, steps: int = 1) -> None:
        """So many more steps are done."""
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
        """Leave the bar as it stands."""
        self._stack.close()


class Profiler:
    """A trace of some steps, for TensorBoard's profile plugin or xprof.

    Args:
      folder: where to write it.
      steps: `FIRST:LAST`, counted from 1, both included; calls of several steps are traced whole;
        empty for none.
    """

    def __init__(self, folder: Path, steps: str):
        self._folder, self._running = folder, False
        self._first, self._last = map(int, steps.split(":")) if steps else (0, 0)

    def before(self, step: int, count: int) -> None:
        """To be told before a call of `count` steps after `step`."""
        if not self._running and step + 1 <= self._last and step + count >= self._first > 0:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, metrics: jax.Array) -> None:
        """To be told after the call that ends with `step`."""
        if self._running and step >= self._last:
            metrics.block_until_ready()
            self.close()

    def close(self) -> None:
        """End the trace, if one is begun."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log.info("profile written to %s", self._folder)


class Stopwatch:
    """Images a second of training alone: it stands still while the run compiles, evaluates and
    saves.
    """

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
        """`images_per_second` of the lap, or nothing where no image was counted; begins the
        next.
        """
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


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether it is for a device's memory that JAX stopped."""
    return "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def reraise_out_of_memory(in_words: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """What JAX raises where a device's memory does not do, as an error for the person; `in_words`
    says what takes it, and what to try.
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


def announce_to(stream: Any = sys.stderr, level: int = logging.INFO) -> None:
    """Let the package's messages from a level on go to a stream, one line each, as the command line
    does.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("jaxconv")
    package.handlers, package.propagate = [handler], False
    package.setLevel(level)
    # Orbax tells through absl's logger what it does, at the level of warnings, and the traces of
    # errors that it raises too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


__getattr__ = moved.names_of(__name__)
