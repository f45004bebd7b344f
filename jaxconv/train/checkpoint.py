"""Checkpoints by Orbax: written in the background; the latest and best kept, damaged ones skipped.

A checkpoint holds the training state and, as JSON, what the loop stores on the host and a
fingerprint of the state. Orbax writes to a temporary folder and renames it, so a half-written
checkpoint is never visible. A damaged one fails to restore, or its fingerprint differs.
"""

import contextlib
import copy
import functools
import json
import logging
import math
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxconv import cloud
from jaxconv.errors import UserError, in_words, short
from jaxconv.train.parallel import Parallel, fingerprint, make_parallel
from jaxconv.train.state import TrainState

log = logging.getLogger(__name__)


def _not_by_orbax(record: logging.LogRecord) -> bool:
    """Keep Orbax's progress, which it logs as warnings through absl, out of the user's output."""
    return "orbax" not in Path(record.pathname).parts


logging.getLogger("absl").addFilter(_not_by_orbax)


def goodness(metric: str, higher: bool, metrics: dict[str, float]) -> float:
    """A checkpoint's score: larger is better, and one that was not evaluated is the worst."""
    return (1 if higher else -1) * metrics[metric] if metric in metrics else -float("inf")


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      folder: where they are, one subfolder per step; those of a run in a bucket are fetched.
      keep: how many of the latest to keep.
      keep_best: how many of the best to keep in addition, for each metric.
      metrics: the metrics that decide the best.
      higher: whether higher values are better.
      read_only: whether to only read them.
      parallel: the processes that share the folder; by default only this one.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        keep_best: int = 1,
        metrics: tuple[str, ...] = ("eval/loss",),
        higher: bool = False,
        read_only: bool = False,
        parallel: Parallel | None = None,
    ):
        self.folder, self._higher = Path(folder).absolute(), higher
        self._parallel = parallel or make_parallel("jit", jax.local_devices()[:1])
        self._parallel.on_every_process(lambda: cloud.fetch_checkpoints(self.folder.parent))
        # Several processes on a run in a bucket share no folder: the first writes the whole state,
        # and each reads its own copy.
        self._apart = bool(cloud.address_of(self.folder)) and self._parallel.process[1] > 1
        alone = _alone(self._parallel.process[0])
        self._of_orbax: dict[str, Any] = {"multiprocessing_options": alone} if self._apart else {}
        best = [
            BestN(get_metric_fn=functools.partial(goodness, metric, higher), n=keep_best)
            for metric in metrics
        ]
        policies = [LatestN(keep), *(best if keep_best else [])]
        options = ocp.CheckpointManagerOptions(
            # Orbax writes metrics only if there is a best_fn; the policies decide which checkpoints
            # are kept.
            best_fn=None if read_only else functools.partial(goodness, metrics[0], higher),
            preservation_policy=AnyPreservationPolicy(policies),
            cleanup_tmp_directories=not read_only,
            # It cannot do so for some of the processes.
            create=not read_only and not self._apart,
            read_only=read_only,
            # Synchronous, so that `save` raises if a folder cannot be created; in the background,
            # threads would wait for it for minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            # Without it, Orbax reads the metrics of every step, and fails if any are damaged.
            lightweight_initialize=read_only,
            **self._of_orbax,
        )
        self._options = options
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager | None:
        if not self._options.read_only:
            self._parallel.on_first_process(self._mend_metrics)
        if self._apart and self._parallel.process[0]:
            return None
        if self._apart:
            self.folder.mkdir(exist_ok=True)
        handlers = {
            "state": ocp.StandardCheckpointHandler(**self._of_orbax),
            "host": ocp.JsonCheckpointHandler(**self._of_orbax),
        }
        return ocp.CheckpointManager(self.folder, options=self._options, item_handlers=handlers)

    def _mend_metrics(self) -> None:
        """Replace damaged metrics, at which Orbax would fail: it reads those of every step."""
        for place in self.folder.iterdir() if self.folder.is_dir() else ():
            if place.name.isdecimal() and self._metrics(int(place.name)) is None:
                log.warning(
                    "the metrics of the checkpoint of step %s are damaged; it is not considered "
                    "for the best",
                    place.name,
                )
                (place / "metrics").mkdir(exist_ok=True)
                (place / "metrics" / "metrics").write_text("{}")

    def steps(self) -> list[int]:
        """The steps that have checkpoints, in ascending order."""
        if self._manager is not None:
            return sorted(self._manager.all_steps())
        names = (place.name for place in self.folder.glob("*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def best_step(self, metric: str) -> int | None:
        """The step with the best value of a metric, the latest if tied; None if none has it."""
        metrics = {step: self._metrics(step) or {} for step in self.steps()}
        measured = [
            (goodness(metric, self._higher, values), step)
            for step, values in metrics.items()
            if metric in values
        ]
        return max(measured)[1] if measured else None

    def _metrics(self, step: int) -> dict[str, float] | None:
        """The metrics saved with a step; None if they cannot be read."""
        try:
            metrics = json.loads((self.folder / str(step) / "metrics" / "metrics").read_text())
            return {name: float(value) for name, value in metrics.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return None

    def save(
        self,
        step: int,
        state: TrainState,
        host: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Start writing the state in the background, while training continues.

        Args:
          step: number of steps done.
          state: the whole state, see `Parallel`. It is copied before this returns, so it may be
            donated.
          host: what the loop stores on the host, as JSON.
          metrics: metrics of this step, if it was evaluated.
        """
        # A copy: it is written in the background, while the loop appends to its lists.
        host = copy.deepcopy(host) | {"fingerprint": int(fingerprint(state))}
        if self._apart:
            state = self._parallel.gather(state)
        if self._manager is None:
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
        # Never removed, because the write continues in the background.
        _forgive_unfinished()
        logging.getLogger("asyncio").addFilter(_not_of_orbax)
        # A metric that is NaN cannot be the best, nor be written as JSON.
        finite = {name: value for name, value in (metrics or {}).items() if math.isfinite(value)}
        with self._reraise_write_errors():
            self._manager.save(step, args=args, metrics=finite, force=True)

    def restore(
        self, abstract: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The state and host part of one step, by default the latest that can be read.

        Returns None if there is no checkpoint. Later checkpoints that cannot be read are moved to
        `damaged` next to the folder, with a warning.

        Args:
          abstract: shapes and dtypes of the state, with the sharding to restore to.
          step: the step to restore.

        Raises:
          UserError: no checkpoint, or not the requested one, can be read.
        """
        steps = self.steps()
        if self._apart:  # copies may differ, so the first process's is the one
            steps = self._parallel.broadcast_steps(steps)
        if step is not None and step not in steps:
            raise UserError(
                f"{self.folder}: has no checkpoint of step {step}; it has "
                f"{', '.join(map(str, steps)) or 'none'}",
                exit_code=1,
            )
        damaged: dict[int, str] = {}
        for candidate in [step] if step is not None else reversed(steps):
            found, why = self._try_to_read(candidate, abstract)
            if found is None:
                damaged[candidate] = why
                continue
            self._move_aside(damaged, candidate)
            return found
        if damaged:
            newest = max(damaged)
            raise UserError(
                f"{self.folder}: no checkpoint can be read; the error of step {newest}: "
                f"{damaged[newest]}",
                exit_code=1,
            )
        return None

    def wait(self) -> None:
        """Wait until everything is written; raises the errors of background writes."""

        def wait() -> None:
            if self._manager is not None:
                with self._reraise_write_errors():
                    self._manager.wait_until_finished()
            cloud.push(self.folder.parent)

        # The first process alone may be the one that writes.
        self._parallel.on_every_process(wait) if self._apart else wait()

    def close(self) -> None:
        """Wait until everything is written, and close the folder."""
        if self._manager is not None:
            with self._reraise_write_errors():
                self._manager.close()

    @contextlib.contextmanager
    def _reraise_write_errors(self) -> Iterator[None]:
        """Turn write errors into a UserError.

        A full disk raises an OSError, or a ValueError from tensorstore.
        """
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if self._parallel.process[1] > 1 and isinstance(error, jax.errors.JaxRuntimeError):
                raise  # another process was lost
            raise UserError(
                f"{self.folder}: a checkpoint could not be written ({short(error, 200)}); earlier "
                "checkpoints are intact",
                exit_code=1,
            ) from error

    def _try_to_read(
        self, step: int, abstract: TrainState
    ) -> tuple[tuple[TrainState, dict[str, Any]] | None, str]:
        """The state and host part of a step, and nothing; or None in every process, and why.

        Each process reads by itself, and they agree before anything that all of them compute
        together: one that could not read its shard would not be there.
        """
        found, why = None, ""
        try:
            with _quiet_reading():
                found = self._read(step, abstract)
        except Exception as error:  # a damaged file can raise anything
            why = in_words(error)
        if self._parallel.total(bool(why)) or found is None:
            return None, why or "another process cannot read it"
        state, host = found
        if int(fingerprint(state)) != host["fingerprint"]:
            return None, "the values are not those that were saved (their fingerprints differ)"
        return (state, host), ""

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """What this process has of a step. Orbax's manager would wait for the other processes."""
        alone = _alone(self._parallel.process[0])
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
            state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            host=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        )
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), host=ocp.args.JsonRestore()
        )
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            restored = reader.restore(self.folder / str(step), args=args)
        host = restored["host"]
        if not isinstance(host["fingerprint"], int):
            raise ValueError(f"its fingerprint is {host['fingerprint']!r}")
        return restored["state"], host

    def _move_aside(self, damaged: dict[int, str], used: int) -> None:
        for step, why in damaged.items():
            log.warning(
                "checkpoint of step %d is damaged (%s); resuming from step %d", step, why, used
            )
        if damaged and not self._options.read_only:
            if self._manager is not None:
                self._manager.close()
            self._parallel.on_first_process(lambda: [self._move(step) for step in damaged])
            self._manager = self._open()

    def _move(self, step: int) -> None:
        place = self.folder.parent / "damaged" / str(step)
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        if (self.folder / str(step)).is_dir():  # it may be damaged in another process's copy alone
            shutil.move(self.folder / str(step), place)


def _alone(process: int) -> ocp.options.MultiprocessingOptions:
    """For what a process does with Orbax by itself."""
    return ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process{process}",
    )


@contextlib.contextmanager
def _quiet_reading() -> Iterator[None]:
    """Silence what a failed Orbax read leaves behind: reads of other arrays without an event loop.

    They complain through asyncio's log, when they are garbage-collected, and from tensorstore's
    threads, which may reach them before the failed read has returned or long after. So the hooks
    are installed before the read, and stay if it fails. Failed writes leave the same behind.
    """
    asyncio_log = logging.getLogger("asyncio")
    level, hooks = asyncio_log.level, (sys.unraisablehook, sys.excepthook)
    asyncio_log.setLevel(logging.CRITICAL + 1)
    _forgive_unfinished()
    try:
        yield
        sys.unraisablehook, sys.excepthook = hooks
    finally:
        asyncio_log.setLevel(level)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Whether a record is not of a failed Orbax write, which `save`, `wait` or `close` raises."""
    trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
    return "orbax" not in record.getMessage() + trace


def _forgive_unfinished() -> None:
    unraisable_hook, except_hook = sys.unraisablehook, sys.excepthook
    if getattr(except_hook, "forgives_unfinished", False):
        return

    def forgiving_unraisable(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        of_orbax = code is not None and "orbax" in code.co_filename
        if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
            unraisable_hook(unraisable)

    def forgiving(kind: type, error: BaseException, trace: Any) -> None:
        if str(error) != "Event loop is closed":
            except_hook(kind, error, trace)

    forgiving.forgives_unfinished = True
    sys.unraisablehook, sys.excepthook = forgiving_unraisable, forgiving
