"""The training loop: joins data, step, evaluation, checkpoints and logging into a run."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxconv.data.loading import Order, ResidentLoader, StreamedLoader
from jaxconv.errors import PREEMPTED, UserError, human_bytes, short
from jaxconv.own import shown_name
from jaxconv.train.build import BuiltRun
from jaxconv.train.callbacks import Callbacks, RunView, early_stopping
from jaxconv.train.checkpoint import Checkpoints
from jaxconv.train.distill import TEACHER
from jaxconv.train.ensemble import of_each
from jaxconv.train.evaluate import evaluate, evaluate_each
from jaxconv.train.initial import (
    Read,
    looks_at_images,
    read_folder,
    start_from,
    start_from_images,
)
from jaxconv.train.optim import describe_groups, frozen_statistics, update_plateau
from jaxconv.train.parallel import AXIS, Parallel, all_finite, any_member_finite, make_parallel
from jaxconv.train.processes import Preemption
from jaxconv.train.state import TrainState
from jaxconv.train.step import several_steps
from jaxconv.train.transforms import make_preprocessing
from jaxconv.train.watch import (
    MetricsLog,
    NoLog,
    PendingMetrics,
    Profiler,
    Progress,
    Stopwatch,
    reraise_out_of_memory,
)
from jaxconv.train.workdir import note_versions

log = logging.getLogger(__name__)

Loader = ResidentLoader | StreamedLoader


class Run:
    """One training run: everything that stays the same over its steps.

    Attributes:
      order: the order of the training examples.
      calls: compiled training functions, by their number of steps per call.
    """

    def __init__(
        self,
        config: Any,
        folder: Path,
        parallel: Parallel,
        built: BuiltRun,
        train_data: Loader,
        eval_data: Loader,
        callbacks: Sequence[tuple[str, Any]] = (),
        read: Read = read_folder,
    ):
        self.read = read  # the place of the first weights
        self.config, self.folder, self.parallel, self.built = config, folder, parallel, built
        self.train_data, self.eval_data = train_data, eval_data
        teacher = built.teacher  # its variables are a part of a step's data
        taught = {TEACHER: parallel.replicate(teacher.variables)} if teacher else {}
        self.data = {**train_data.data, **taught}
        self.eval_every = config.eval.every or built.steps_per_epoch
        self.checkpoint_every = config.checkpoint.every or built.steps_per_epoch
        members = built.members
        self.order = Order(
            members.order_seeds() if members else (config.seed,),
            config.batch_size,
            config.augment.repeats,
            config.augment.alternating_flip,
        )
        self.calls = {
            count: parallel.compile_train(
                built.train_step if count == 1 else several_steps(built.train_step, count),
                built.abstract,
                self.order.axis + (count > 1),
            )
            for count in {1, config.steps_per_call}
        }
        task = built.task
        self.eval_step = parallel.compile_eval(built.eval_step, built.abstract, each=task.keeps)
        self.evaluated: dict[str, Any] | None = None  # the latest result
        # The metrics that decide the best checkpoints, one per member.
        best = task.metric(config.checkpoint.metric)
        self.best_metrics, self.best_is_higher = of_each(best, members), task.figure(best).higher
        seen = RunView(config, folder, built.total_steps)
        early = early_stopping(config.early_stopping, task, self.eval_every)
        self.callbacks = Callbacks([*early, *callbacks], seen, parallel)

    def key(self, parallel: Parallel | None = None) -> jax.Array:
        """The run's key, or the members' keys, for the compiled calls."""
        return (parallel or self.parallel).key(
            self.built.members.seeds if self.built.members else self.config.seed
        )

    def first_state(self) -> TrainState:
        """The whole state before the first step."""
        return self.parallel.init(self.built.init, self.key(), self.built.abstract)

    def train(self) -> dict[str, Any]:
        """Train to the end; return the evaluation of the final weights."""
        config, total = self.config, self.built.total_steps
        with contextlib.ExitStack() as stack:
            stack.enter_context(reraise_out_of_memory(self._memory_in_words))
            checkpoints = Checkpoints(
                self.folder / "checkpoints",
                config.checkpoint.keep,
                config.checkpoint.keep_best,
                self.best_metrics,
                self.best_is_higher,
                parallel=self.parallel,
            )
            stack.callback(checkpoints.close)
            state, host = self._begin(checkpoints)
            first = _steps_done(state)
            self._announce(first)
            writes = self.parallel.process[0] == 0
            metrics_log = (
                MetricsLog(self.folder, first, config.log.tensorboard) if writes else NoLog()
            )
            stack.callback(metrics_log.close)
            shown, figure = config.log.progress and writes, self.built.task.figures[0].key
            progress = Progress(total, first, config.batch_size, shown, figure)
            stack.callback(progress.close)
            state = self.parallel.to_steps(state)
            stopped = first < total and self.callbacks.start(first, self._variables_of(state))
            if first == total or stopped:
                result = self._evaluate(state)
                if stopped:
                    self.callbacks.end(first, self._variables_of(state), result)
            else:
                preemption = stack.enter_context(Preemption(self.parallel.process[1]))
                profiler = Profiler(self.folder / "profile", config.profile if writes else "")
                stack.callback(profiler.close)
                result = self._steps(
                    state,
                    host,
                    first,
                    Outputs(checkpoints, metrics_log, progress, profiler, preemption),
                )
        return {"split": config.data.eval_split, **result}

    def _variables_of(self, state: TrainState) -> Callable[[], Any]:
        return lambda: self.parallel.to_whole(state).variables

    def _begin(self, checkpoints: Checkpoints) -> tuple[TrainState, dict[str, Any]]:
        """The whole state to continue from, and what the loop stores on the host."""
        restored = checkpoints.restore(self.parallel.targets(self.built.abstract))
        if restored is None:
            return self._initial_state(), {"pending": [], "best": {}, "gone": []}
        state, host = restored
        done = _steps_done(state)
        if done > self.built.total_steps:
            raise UserError(
                f"--workdir={self.folder}: the run has already done {done} steps, more than the "
                f"requested {self.built.total_steps}; evaluate it, or start from scratch with "
                "--restart",
                exit_code=1,
            )
        return state, host

    def _announce(self, first: int) -> None:
        config, params = self.config, self.built.abstract.params
        members = self.built.members
        differing = self.parallel.on_first_process(
            lambda: note_versions(self.folder, first, config)
        )
        if first and differing:
            log.warning(
                "this run began with other versions, so its results may not be bit-identical: %s",
                "; ".join(differing),
            )
        changing = frozen_statistics(config, params, self.built.abstract.model_state)
        if changing:
            log.warning(
                "the running statistics of BatchNorm change in frozen layers (%s); "
                "--config.model.kwargs.frozen_norm=True keeps them",
                short(", ".join(changing)),
            )
        log.info(
            "%s%s%s; %s: %s training images, %s for evaluation",
            shown_name(config.model.name),
            f" ({describe_groups(config.optimizer, params)})" if config.optimizer.groups else "",
            f", {len(members.names)} times ({', '.join(members.names)})" if members else "",
            shown_name(config.data.source),
            f"{self.train_data.examples:,}",
            f"{self.eval_data.examples:,}",
        )

    def _announce_start(self, first: int, seconds: float) -> None:
        parallel, members = self.parallel, self.built.members
        devices, processes = parallel.devices, parallel.process[1]
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.built.abstract.params)) // (
            len(members.names) if members else 1
        )
        log.info(
            "%s on %d x %s%s, mesh %s=%d, %d images each; %s parameters, about %s of %s per "
            "device; first step after %.1f s of compiling; steps %d to %d; workdir %s",
            parallel.mode,
            len(devices),
            devices[0].device_kind,
            f" in {processes} processes" if processes > 1 else "",
            AXIS,
            len(devices),
            self.config.batch_size // len(devices),
            f"{parameters:,}",
            human_bytes(self.memory),
            self._device_memory(),
            seconds,
            first,
            self.built.total_steps,
            self.folder,
        )

    @functools.cached_property
    def memory(self) -> int:
        """Estimated bytes of training per device: data, state, gradients, stored activations."""
        abstract = self.built.abstract
        images = self.config.batch_size // len(self.parallel.devices) // self.config.accumulate
        data = sum(
            x.nbytes // (len(x.sharding.device_set) if self.parallel.mode == "pmap" else 1)
            for x in jax.tree.leaves(self.data)
        )
        return (
            data
            + self.parallel.bytes_of(abstract)
            + self.parallel.bytes_of(abstract.params)
            + self.built.kept(images)
        )

    def _device_memory(self) -> str:
        known = self.parallel.memory()
        return human_bytes(known) if known else "an unknown amount"

    def _memory_in_words(self) -> tuple[str, str]:
        return (
            f"training takes about {human_bytes(self.memory)} of the "
            f"{self._device_memory()} of a device",
            f"a smaller --config.batch_size, --config.accumulate={2 * self.config.accumulate}, or "
            "--config.model.remat=True",
        )

    def _calls(self, first: int) -> Iterator[int]:
        """Steps of each call: as many as in the config, or 1 if something is due before its end."""
        step, total, several = first, self.built.total_steps, self.config.steps_per_call
        while step < total:
            room = min(
                every - step % every
                for every in (self.config.log.every, self.eval_every, self.checkpoint_every)
            )
            count = several if min(room, total - step) >= several else 1
            yield count
            step += count

    def _steps(
        self, state: TrainState, host: dict[str, Any], first: int, outputs: "Outputs"
    ) -> dict[str, Any]:
        config, total = self.config, self.built.total_steps
        batches = self.train_data.train_batches(self.order, first, total, self._calls(first))
        pending = PendingMetrics(
            self.built.metric_names,
            host["pending"],
            first,
            lambda: self._last_good(outputs.checkpoints),
            host["gone"],
        )
        best, result, step, key = dict(host["best"]), {}, first, self.key()
        watch = Stopwatch()
        for count, batch in zip(self._calls(first), batches, strict=True):
            outputs.profiler.before(step, count)
            state, metrics = self.calls[count](state, self.data, batch, key)
            pending.add(metrics, count)
            outputs.progress.advance(count)
            if step == first:
                metrics.block_until_ready()
                self._announce_start(first, watch.lap())
            else:
                watch.count(config.batch_size * count)
            step += count
            outputs.profiler.after(step, metrics)
            row: dict[str, Any] = {}
            if self._due(step, config.log.every):
                row |= pending.means() | watch.rate()
            watch.stop()
            evaluated = {}
            if self._due(step, self.eval_every):
                pending.fetch()
                result = self._evaluate(state)
                evaluated = eval_row(result)
                if not np.isfinite(result["loss"]):
                    raise pending.diverged(f"the evaluation's loss became {result['loss']}", step)
                # Not after the final step unless an evaluation is due there: a longer training
                # would not evaluate at that step.
                if config.optimizer.schedule.name == "plateau" and step % self.eval_every == 0:
                    state = self._update_plateau(state, evaluated)
            stops = self._report(state, step, row, evaluated, outputs)
            better = self._better(evaluated, best)
            best |= better
            preempted = step < total and outputs.preemption.reached()
            if (
                self._due(step, self.checkpoint_every)
                or (better and config.checkpoint.keep_best)
                or preempted
                or stops
            ):
                pending.fetch()
                kept = {"pending": pending.rows, "best": best, "gone": sorted(pending.gone)}
                self._save(state, step, kept, evaluated, pending, outputs.checkpoints)
                stops = self._report_checkpoint(state, step, outputs.checkpoints) or stops
            if stops:
                outputs.checkpoints.wait()
                self.callbacks.raise_error()
                if step < total:
                    self.callbacks.note_stop(step)
                    result = result if evaluated else self._evaluate(state)
                    break
            if preempted:
                outputs.checkpoints.wait()
                raise UserError(
                    f"stopped by SIGTERM after step {step}, which is saved; the same command "
                    "resumes from there",
                    PREEMPTED,
                )
            watch.go_on()
        self.callbacks.end(step, self._variables_of(state), result)
        return result

    def _report(
        self,
        state: TrainState,
        step: int,
        row: dict[str, Any],
        evaluated: dict[str, float],
        outputs: "Outputs",
    ) -> bool:
        """Write the row of a step, if there is one, and call the callbacks; whether one stops."""
        if not (row or evaluated):
            return False
        whole = {"step": step, **row, **evaluated}
        outputs.metrics_log.write(whole)
        outputs.progress.report(whole)
        variables = self._variables_of(state)
        if row:
            self.callbacks.call("on_log", step, variables, row)
        if evaluated:
            self.callbacks.call("on_evaluation", step, variables, evaluated)
        return self.callbacks.stops()

    def _report_checkpoint(self, state: TrainState, step: int, checkpoints: Checkpoints) -> bool:
        """Call the callbacks that wait for a checkpoint; whether one of them stops the run."""
        if not self.callbacks.on_checkpoints:
            return False
        checkpoints.wait()
        folder = self.folder / "checkpoints" / str(step)
        self.callbacks.call("on_checkpoint", step, self._variables_of(state), folder)
        return self.callbacks.stops()

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.built.total_steps

    def _save(
        self,
        state: TrainState,
        step: int,
        host: dict[str, Any],
        metrics: dict[str, float],
        pending: "PendingMetrics",
        checkpoints: Checkpoints,
    ) -> None:
        whole = self.parallel.to_whole(state)
        finite = all_finite if self.built.members is None else any_member_finite
        if not bool(finite((whole.params, whole.model_state))):
            raise pending.diverged("a weight became infinite or NaN", step)
        checkpoints.save(step, whole, host, metrics)

    def _initial_state(self) -> TrainState:
        """The whole state before the first step, with loaded weights or those set from images.

        They are the same for every member.
        """
        place, model, task = self.config.model.init_from, self.built.model, self.built.task
        start: Callable[[TrainState], tuple[TrainState, list[str]]]
        if place:
            start = functools.partial(start_from, place, classes=task.outputs, read=self.read)
        elif count := looks_at_images(model):
            batch: dict[str, Any] = {"image": self.train_data.some_images(count)}
            images = make_preprocessing(self.config, self.built.description)(batch)["image"]
            start = functools.partial(start_from_images, model, images=images)
        else:
            return self.first_state()
        one, members = make_parallel("jit", jax.local_devices()[:1]), self.built.members
        state = one.init(self.built.init, self.key(one), self.built.abstract)
        each = [start(member) for member in (members.apart(state) if members else [state])]
        log.info("; ".join(each[0][1]))
        states = [state for state, _ in each]
        state = jax.tree.map(lambda *x: np.stack(x), *states) if members else states[0]
        return self.parallel.spread(state, self.built.abstract)

    def _evaluate(self, state: TrainState) -> dict[str, Any]:
        batch_size, members, task = self.config.eval.batch_size, self.built.members, self.built.task
        arguments = (self.parallel, state, self.eval_data, batch_size, members, task.finish)
        if task.keeps:
            self.evaluated = evaluate_each(self.eval_step, *arguments, self.evaluated)[0]
        else:
            self.evaluated = evaluate(self.eval_step, *arguments, self.evaluated)
        return self.evaluated

    def _better(self, evaluated: dict[str, float], best: dict[str, float]) -> dict[str, float]:
        """Those of `best_metrics` that are better than the best so far."""

        def is_better(name: str) -> bool:
            if np.isnan(evaluated[name]) or name not in best:
                return not np.isnan(evaluated[name])
            better = evaluated[name] - best[name]
            return better > 0 if self.best_is_higher else better < 0

        return {
            name: evaluated[name]
            for name in self.best_metrics
            if name in evaluated and is_better(name)
        }

    def _update_plateau(self, state: TrainState, evaluated: dict[str, float]) -> TrainState:
        schedule = self.config.optimizer.schedule
        metric = self.built.task.metric(schedule.metric)
        higher = self.built.task.figure(metric).higher
        # A member that has diverged counts as the worst.
        worst = -np.inf if higher else np.inf
        values = np.array(
            [evaluated.get(name, worst) for name in of_each(metric, self.built.members)],
            np.float32,
        )
        plateau = update_plateau(
            jax.device_get(self.parallel.to_whole(state.plateau)),
            values if self.built.members else values[0],
            schedule.factor,
            schedule.patience,
            higher,
        )
        return state.replace(plateau=self.parallel.replicate(jax.device_get(plateau)))

    def _last_good(self, checkpoints: Checkpoints) -> str:
        checkpoints.wait()
        steps = checkpoints.steps()
        return (
            f"the checkpoint of step {steps[-1]} is kept in {self.folder}"
            if steps
            else "there is no checkpoint yet"
        )


class Outputs(NamedTuple):
    """Where a run writes while it trains, and what may stop it."""

    checkpoints: Checkpoints
    metrics_log: MetricsLog | NoLog
    progress: Progress
    profiler: Profiler
    preemption: Preemption


def _steps_done(state: TrainState) -> int:
    return int(np.max(jax.device_get(state.step)))


def eval_row(result: dict[str, Any]) -> dict[str, float]:
    """The part of an evaluation that goes into metrics.jsonl: `eval/loss` and the other figures.

    For an ensemble these are means, and there are also `eval/ensemble_loss` and so on, and
    `eval/loss/0` and so on for each member that has not diverged.
    """
    row = {
        f"eval/{name}": value
        for name, value in result.items()
        if name not in ("examples", "members") and not name.endswith("_spread")
    }
    for number, member in enumerate(result.get("members", ())):
        row |= {f"eval/{name}/{number}": value for name, value in member.items() if name != "name"}
    return row
