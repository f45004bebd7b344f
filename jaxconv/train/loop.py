"""The training loop: what joins data, step, evaluation, checkpoints and watching into a run."""

import contextlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxconv.checks import check_config
from jaxconv.data.interface import Source, describe
from jaxconv.data.loading import Resident, Streamed, make_loader
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.evaluate import evaluate
from jaxconv.interop.weights import fitted_weights, start_from
from jaxconv.train.build import Built, build, build_model
from jaxconv.train.checkpoint import Checkpoints, abstract_of, higher_is_better
from jaxconv.train.optim import describe_groups, update_plateau
from jaxconv.train.parallel import Parallel, all_finite, make_parallel
from jaxconv.train.state import TrainState
from jaxconv.train.watch import MetricsLog, Progress, Stopwatch
from jaxconv.train.workdir import begin_or_compare, note_versions, open_workdir, read_metrics

log = logging.getLogger(__name__)

Loader = Resident | Streamed

# Steps that the host may be ahead of the device: enough to keep it busy, few enough for the progress bar to be true.
_AHEAD = 2


def train(
    config: Any, workdir: str, restart: bool = False, devices: list | None = None, sources: tuple[Source, Source] | None = None
) -> dict[str, Any]:
    """Train as the config says, or go on where a run in the workdir was left.

    Args:
      config: the whole config.
      workdir: folder of the run; see train/workdir.py for what is in it afterwards.
      restart: move a run that is there aside, and begin anew.
      devices: those to use; all by default.
      sources: to train and to evaluate on, such as `jaxconv.data.from_sequence` makes; by default those that the config names.

    Returns:
      `split`, `examples`, `loss`, `top1` of the final weights.

    Raises:
      UserError: the config, the data or the workdir cannot be used, or the loss became infinite or NaN.
    """
    check_config(config)
    parallel = make_parallel(config.parallel, devices)
    parallel.check_batch(config.batch_size, "batch_size")
    build_model(config.model, num_classes=2)
    folder, lock = open_workdir(workdir, config, restart)
    with lock:
        train_source, eval_source = sources or open_sources(config)
        description = describe(train_source)
        built = build(config, description, len(train_source), parallel.axis_name)
        sizes = {"train_examples": len(train_source), "eval_examples": len(eval_source)}
        sums = {"train_checksum": train_source.checksum(), "eval_checksum": eval_source.checksum()}
        decoders = {"train_decoder": train_source.decoder, "eval_decoder": eval_source.decoder}
        if config.model.init_from and not (folder / "config.json").exists():
            fitted_weights(config.model.init_from, built.abstract, built.classes)  # raises before the run is begun
        begin_or_compare(folder, config, {**description, **sizes, **sums, **decoders})
        train_loader, eval_loader = (make_loader(source, parallel, config.data) for source in (train_source, eval_source))
        return Run(config, folder, parallel, built, train_loader, eval_loader).train()


def open_sources(config: Any) -> tuple[Source, Source]:
    """The sources to train and to evaluate on; raises UserError where they cannot be used or do not fit one another."""
    train_source = open_source(config.data, config.data.train_split, augment=config.augment)
    return train_source, open_source(config.data, config.data.eval_split, like=describe(train_source))


class Run:
    """One training run: what stays the same over its steps."""

    def __init__(self, config: Any, folder: Path, parallel: Parallel, built: Built, train_data: Loader, eval_data: Loader):
        self.config, self.folder, self.parallel, self.built = config, folder, parallel, built
        self.train_data, self.eval_data = train_data, eval_data
        self.eval_every = config.eval.every or built.steps_per_epoch
        self.checkpoint_every = config.checkpoint.every or built.steps_per_epoch
        self.train_step = parallel.compile_train(built.train_step)
        self.eval_step = parallel.compile_eval(built.eval_step)

    def train(self) -> dict[str, Any]:
        """Train to the end; returns the result of the final weights."""
        config, total = self.config, self.built.total_steps
        with contextlib.ExitStack() as stack:
            checkpoints = Checkpoints(
                self.folder / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_best, config.checkpoint.metric
            )
            stack.callback(checkpoints.close)
            state, host = self._begin(checkpoints)
            first = int(state.step)
            self._announce(first)
            metrics_log = MetricsLog(self.folder, first, config.log.tensorboard)
            stack.callback(metrics_log.close)
            progress = Progress(total, first, config.batch_size, config.log.progress)
            stack.callback(progress.close)
            state = self.parallel.replicate(state)
            if first == total:
                result = self._evaluate(state)
            else:
                outputs = Outputs(checkpoints, metrics_log, progress)
                result = self._steps(state, host, first, outputs)
        self._draw_curves()
        return {"split": config.data.eval_split, **result}

    def _begin(self, checkpoints: Checkpoints) -> tuple[TrainState, dict[str, Any]]:
        """The state to go on from, on one device, and what the loop remembers."""
        restored = checkpoints.restore(abstract_of(self.built.abstract))
        if restored is None:
            state = jax.jit(self.built.init)(jax.random.key(self.config.seed))
            if self.config.model.init_from:
                state, said = start_from(self.config.model.init_from, state, self.built.classes)
                log.info("; ".join(said))
            return state, {"pending": [], "best": None}
        state, host = restored
        if int(state.step) > self.built.total_steps:
            raise UserError(
                f"--workdir={self.folder}: the run has done {int(state.step)} steps, more than the {self.built.total_steps} asked for; "
                "evaluate it, or begin anew by --restart",
                exit_code=1,
            )
        return state, host

    def _announce(self, first: int) -> None:
        config, params = self.config, self.built.abstract.params
        devices = self.parallel.devices
        differing = note_versions(self.folder, first, config)
        if first and differing:
            log.warning("this run began with other versions, so that it may not end with the same bits: %s", "; ".join(differing))
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        log.info(
            "%s: %s parameters%s; %s: %s training images, %s for evaluation",
            config.model.name, f"{count:,}", f" ({describe_groups(config.optimizer, params)})" if config.optimizer.groups else "",
            config.data.source, f"{self.train_data.examples:,}", f"{self.eval_data.examples:,}",
        )  # fmt: skip
        log.info(
            "%s on %d x %s, %d images each; steps %d to %d; workdir %s",
            self.parallel.mode, len(devices), devices[0].device_kind, config.batch_size // len(devices),
            first, self.built.total_steps, self.folder,
        )  # fmt: skip

    def _steps(self, state: TrainState, host: dict[str, Any], first: int, outputs: "Outputs") -> dict[str, float]:
        config = self.config
        batches = self.train_data.train_batches(config.seed, first, self.built.total_steps, config.batch_size, config.augment.repeats)
        pending = Pending(self.built.metric_names, host["pending"], first, lambda: self._last_good(outputs.checkpoints))
        best, result = host["best"], {}
        key = self.parallel.replicate_key(jax.random.key(config.seed))
        watch = Stopwatch()
        for step, batch in enumerate(batches, first + 1):
            state, metrics = self.train_step(state, self.train_data.data, batch, key)
            pending.add(metrics)
            outputs.progress.advance()
            if step == first + 1:
                metrics.block_until_ready()
                log.info("first step after %.1f s of compiling", watch.lap())
            else:
                watch.count(config.batch_size)
            row: dict[str, Any] = {}
            if self._due(step, config.log.every):
                row |= pending.means() | watch.rate()
            watch.stop()
            evaluated = {}
            if self._due(step, self.eval_every):
                pending.fetch()
                result = self._evaluate(state)
                evaluated = {"eval/loss": result["loss"], "eval/top1": result["top1"]}
                if not np.isfinite(result["loss"]):
                    raise pending.diverged(f"the evaluation's loss became {result['loss']}", step)
                # Not after the last step of all, unless it is due there: a longer training would not evaluate then.
                if config.optimizer.schedule.name == "plateau" and step % self.eval_every == 0:
                    state = self._update_plateau(state, evaluated[config.optimizer.schedule.metric])
            if row or evaluated:
                row = {"step": step, **row, **evaluated}
                outputs.metrics_log.write(row)
                outputs.progress.report(row)
            is_best = bool(evaluated) and self._is_better(evaluated[config.checkpoint.metric], best)
            best = evaluated[config.checkpoint.metric] if is_best else best
            if self._due(step, self.checkpoint_every) or (is_best and config.checkpoint.keep_best):
                pending.fetch()
                self._save(state, {"pending": pending.rows, "best": best}, evaluated, step, pending, outputs.checkpoints)
            watch.go_on()
        return result

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.built.total_steps

    def _save(
        self, state: TrainState, host: dict[str, Any], evaluated: dict[str, float], step: int, pending: "Pending", checkpoints: Checkpoints
    ) -> None:
        single = self.parallel.unreplicate(state)
        if not bool(all_finite((single.params, single.model_state))):
            raise pending.diverged("a weight became infinite or NaN", step)
        checkpoints.save(single, host, evaluated)

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        return evaluate(self.eval_step, self.parallel, state, self.eval_data, self.config.eval.batch_size)

    def _is_better(self, value: float, best: float | None) -> bool:
        if best is None:
            return True
        return value > best if higher_is_better(self.config.checkpoint.metric) else value < best

    def _update_plateau(self, state: TrainState, value: float) -> TrainState:
        schedule = self.config.optimizer.schedule
        plateau = update_plateau(
            self.parallel.unreplicate(state.plateau), value, schedule.factor, schedule.patience, higher_is_better(schedule.metric)
        )
        return state.replace(plateau=self.parallel.replicate(plateau))

    def _last_good(self, checkpoints: Checkpoints) -> str:
        checkpoints.wait()
        steps = checkpoints.steps()
        return f"the checkpoint of step {steps[-1]} is kept in {self.folder}" if steps else "there is no checkpoint yet"

    def _draw_curves(self) -> None:
        from jaxconv.look.curves import loss_and_accuracy

        loss_and_accuracy({self.folder.name: read_metrics(self.folder)}).savefig(self.folder / "curves.png", dpi=120)


class Outputs(NamedTuple):
    """Where a run writes to while it trains."""

    checkpoints: Checkpoints
    metrics_log: MetricsLog
    progress: Progress


class Pending:
    """Metrics of the steps since the last log: kept on the device until they are wanted, so that the host runs ahead.

    Args:
      names: of the entries of a step's vector of metrics.
      rows: those that a checkpoint brought along, in step order.
      step: the last step they belong to.
      last_good: says, for an error message, which checkpoint is left.
    """

    def __init__(self, names: tuple[str, ...], rows: list[dict[str, float]], step: int, last_good: Callable[[], str]):
        self._names, self.rows = names, list(rows)
        self._step, self._last_good = step, last_good
        self._on_device: list[jax.Array] = []

    def add(self, metrics: jax.Array) -> None:
        """Take a step's metrics, and wait for those of two steps ago."""
        self._on_device.append(metrics)
        if len(self._on_device) > _AHEAD:
            self._on_device[-_AHEAD - 1].block_until_ready()

    def fetch(self) -> None:
        """Bring all to the host; raises UserError at the first loss that is infinite or NaN."""
        for metrics in self._on_device:
            self._step += 1
            row = dict(zip(self._names, np.asarray(metrics).tolist(), strict=True))
            if not np.isfinite(row["loss"]):
                raise self.diverged(f"the loss became {row['loss']}", self._step)
            self.rows.append(row)
        self._on_device.clear()

    def means(self) -> dict[str, float]:
        """Fetch, and return the mean of each metric over the rows, the learning rate as it is now; then begin anew."""
        self.fetch()
        means = {f"train/{name}": float(np.mean([row[name] for row in self.rows])) for name in ("loss", "top1", "grad_norm")}
        means["learning_rate"] = self.rows[-1]["learning_rate"]
        self.rows = []
        return means

    def diverged(self, what: str, step: int) -> UserError:
        """The error for a training that has run away."""
        return UserError(f"{what} at step {step}; {self._last_good()}; try a smaller --config.optimizer.learning_rate", exit_code=1)


def announce_to(stream: Any = sys.stderr) -> None:
    """Let the package's messages go to a stream, one line each, as the command line does."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("jaxconv")
    package.handlers, package.propagate = [handler], False
    package.setLevel(logging.INFO)
    # Orbax tells through absl's logger what it does, at the level of warnings.
    logging.getLogger("absl").setLevel(logging.ERROR)
