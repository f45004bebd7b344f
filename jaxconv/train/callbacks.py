"""Callbacks: code that runs alongside the training, in the first process only.

A callback is an object with any of these methods. `run` is a `RunView`; `metrics` are the numbers
of a row of metrics.jsonl, by name.

    on_start(run)                  before the first step of this start
    on_log(run, metrics)           after a log of the training
    on_evaluation(run, metrics)    after an evaluation
    on_checkpoint(run, folder)     after a checkpoint is written; the training waits for it
    on_end(run, result)            after the last step; `result` is the evaluation of the end

Any of them may call `run.stop(why)`, which saves the run and ends it. If a callback fails, the run
is saved, and ends with an error that names the callback; the same command resumes.

Early stopping is a callback too, see `EarlyStopping`.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxconv.errors import UserError, in_words, nearest
from jaxconv.own import own
from jaxconv.tasks import Task
from jaxconv.train.parallel import Parallel
from jaxconv.train.workdir import read_metrics, write_json

log = logging.getLogger(__name__)

METHODS = ("on_start", "on_log", "on_evaluation", "on_checkpoint", "on_end")
# What all processes are to do.
_GO_ON, _STOP, _FAIL = range(3)


class RunView:
    """What a callback sees of a run.

    Attributes:
      config: the whole config.
      workdir: folder of the run.
      total_steps: length of the training.
      step: number of steps done.
    """

    def __init__(self, config: Any, workdir: Path, total_steps: int):
        self.config, self.workdir, self.total_steps, self.step = config, workdir, total_steps, 0
        self._why, self._variables = "", lambda: {}

    @property
    def variables(self) -> Any:
        """The network's variables for evaluation, as `model.apply` takes them, until the next step.

        Of several processes, each has its own part of an array only.
        """
        return self._variables()

    def stop(self, why: str) -> None:
        """Save the run after this step, and end it; `why` is shown, and stored in stopped.json."""
        self._why = self._why or why


class EarlyStopping:
    """Stops once a metric has not improved in `patience` evaluations in a row.

    The decision is a function of the evaluations in metrics.jsonl, so that a resumed run stops at
    the same step. An evaluation is an improvement if it is better than the best so far by more than
    `min_delta`.

    Args:
      metric: its name in metrics.jsonl, such as `eval/loss`.
      higher: whether higher is better.
      patience: number of evaluations.
      min_delta: at least 0.
      every: steps between evaluations; others, such as that of the last step, do not count.
    """

    def __init__(self, metric: str, higher: bool, patience: int, min_delta: float, every: int):
        self._metric, self._higher, self._every = metric, higher, every
        self._patience, self._min_delta = patience, min_delta
        self._evaluations: list[tuple[int, float]] = []

    def on_start(self, run: RunView) -> None:
        """Read the evaluations so far, and stop at once if they say so."""
        for row in read_metrics(run.workdir, up_to=run.step):
            self._add(int(row["step"]), row)
        self._decide(run)

    def on_evaluation(self, run: RunView, metrics: dict[str, float]) -> None:
        """Stop if the metric has not improved for too long."""
        if self._add(run.step, metrics):
            self._decide(run)

    def _add(self, step: int, metrics: dict[str, float]) -> bool:
        counts = step % self._every == 0 and self._metric in metrics
        if counts:
            self._evaluations.append((step, metrics[self._metric]))
        return counts

    def _decide(self, run: RunView) -> None:
        values = [value for _, value in self._evaluations]
        best = best_of(values, self._higher, self._min_delta)
        if len(values) - 1 - best < self._patience:
            return
        step, value = self._evaluations[max(best, 0)]
        moved = "risen above" if self._higher else "fallen below"
        by = f" by more than {self._min_delta:g}" if self._min_delta else ""
        run.stop(
            f"{self._metric} has not {moved} {value:.4g}, of step {step}{by}, in "
            f"{len(values) - 1 - best} evaluations; --config.early_stopping.patience=0 continues"
        )


def early_stopping(settings: Any, task: Task, every: int) -> list[tuple[str, EarlyStopping]]:
    """The callback of `config.early_stopping`; empty if it is off.

    Args:
      settings: `config.early_stopping`.
      task: of the run, for the metric.
      every: steps between evaluations.
    """
    if not settings.patience:
        return []
    metric = task.metric(settings.metric)
    higher, limits = task.figure(metric).higher, (settings.patience, settings.min_delta)
    return [("early_stopping", EarlyStopping(metric, higher, *limits, every))]


def best_of(values: Sequence[float], higher: bool, min_delta: float) -> int:
    """The place of the last value that was better than all before by more than `min_delta`.

    It is -1 if there is none: NaN is never better.
    """
    found, best = -1, -float("inf")
    for place, value in enumerate(values):
        good = value if higher else -value
        if good > best + min_delta or (found < 0 and good == good):
            found, best = place, good
    return found


class Callbacks:
    """The callbacks of a run, and what they request.

    Args:
      callbacks: name and object of each.
      run: what they see.
      parallel: the processes. The first calls them, and all learn what they request.

    Attributes:
      on_checkpoints: whether any has the method `on_checkpoint`.
    """

    def __init__(self, callbacks: Sequence[tuple[str, Any]], run: RunView, parallel: Parallel):
        self._callbacks, self._run, self._parallel = callbacks, run, parallel
        self._who, self._error = "", None
        # Known to all processes, since they wait for a checkpoint together.
        waits = any(hasattr(callback, "on_checkpoint") for _, callback in callbacks)
        self.on_checkpoints = bool(callbacks and parallel.broadcast_from_first(int(waits)))

    def call(self, method: str, step: int, variables: Callable[[], Any], *arguments: Any) -> None:
        """Call a method of all callbacks that have it; errors are kept for `stops`."""
        run = self._run
        run.step, run._variables = step, variables
        for name, callback in self._callbacks if self._parallel.process[0] == 0 else ():
            if not hasattr(callback, method) or self._error:
                continue
            try:
                getattr(callback, method)(run, *arguments)
            except Exception as error:  # a custom callback may raise anything
                self._error = UserError(
                    f"the callback {name} failed in {method} at step {step}: {in_words(error)}; "
                    "fix it, or remove it from --config.callbacks",
                    exit_code=1,
                )
                self._error.__cause__ = error
            if run._why and not self._who:
                self._who = name

    def stops(self) -> bool:
        """Whether to save and end the run now; every process must ask after each call."""
        return self._verdict() != _GO_ON

    def _verdict(self) -> int:
        if not self._callbacks:
            return _GO_ON
        return self._parallel.broadcast_from_first(
            _FAIL if self._error else _STOP if self._run._why else _GO_ON
        )

    def raise_error(self) -> None:
        """Raise the error of a callback, on every process."""
        if self._verdict() == _FAIL:
            raise self._error or UserError(
                "a callback failed in the first process; see its error message", exit_code=1
            )

    def start(self, step: int, variables: Callable[[], Any]) -> bool:
        """Call `on_start`; whether the run is stopped already. Raises the error of a callback."""
        self.call("on_start", step, variables)
        self.raise_error()
        stopped = self.stops()
        if stopped:
            self.note_stop(step)
        else:
            path = self._run.workdir / "stopped.json"
            self._parallel.on_first_process(lambda: path.unlink(missing_ok=True))
        return stopped

    def note_stop(self, step: int) -> None:
        """Store and announce that the run is stopped early."""

        def note() -> None:
            run, why = self._run, f"{self._who}: {self._run._why}"
            settings = run.config.early_stopping.to_dict()
            record = {"step": step, "why": why, "early_stopping": settings}
            write_json(run.workdir / "stopped.json", record)
            log.info("stopped early at step %d of %d: %s", step, run.total_steps, why)

        self._parallel.on_first_process(note)

    def end(self, step: int, variables: Callable[[], Any], result: dict[str, Any]) -> None:
        """Call `on_end`; the run is complete, so that an error is only a warning."""
        split = {"split": self._run.config.data.eval_split}
        self.call("on_end", step, variables, split | result)
        if self._error:
            log.warning("%s", self._error)


def open_callbacks(names: str, given: Sequence[Any] = ()) -> list[tuple[str, Any]]:
    """Name and object of each callback.

    Args:
      names: `config.callbacks`; each names a class or a function without arguments.
      given: objects.

    Raises:
      UserError: a name cannot be found or called, or an object has none of the methods.
    """
    found = [(type(callback).__name__, callback) for callback in given]
    for name in names.split():
        make = own(name, "config.callbacks")
        try:
            found.append((name, make()))
        except Exception as error:  # the user's code may raise anything
            raise UserError(
                f"config.callbacks: {name} cannot be made: {in_words(error)}"
            ) from error
    for name, callback in found:
        has = [method for method in dir(callback) if method.startswith("on_")]
        unknown = [method for method in has if method not in METHODS]
        if unknown or not has:
            what = f"the method {unknown[0]}" if unknown else "none of the methods"
            close = nearest(unknown[0], METHODS) if unknown else ""
            raise UserError(f"the callback {name} has {what}{close}; they are {', '.join(METHODS)}")
    return found
