"""Starts or resumes a run: opens the workdir and the data, builds the run, enters the loop."""

import contextlib
import functools
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxconv import cloud, moved
from jaxconv.checks import check_config, check_effects
from jaxconv.data.interface import Arrays, Source, describe
from jaxconv.data.loading import make_loader
from jaxconv.data.reading import notes_of, read_as
from jaxconv.data.sources import GIVEN, check_given, open_source
from jaxconv.errors import UserError, human_bytes
from jaxconv.files import expand
from jaxconv.models.configured import build_model
from jaxconv.own import with_absolute_names
from jaxconv.tasks import Task, find_task, needs_of
from jaxconv.train.build import BuiltRun, build
from jaxconv.train.callbacks import open_callbacks
from jaxconv.train.code import resumed
from jaxconv.train.distill import TEACHER
from jaxconv.train.ensemble import fastest_form
from jaxconv.train.initial import Read, fitted_weights, read_folder
from jaxconv.train.loop import Loader, Run
from jaxconv.train.parallel import Parallel, in_32_bits, make_parallel
from jaxconv.train.teacher import ReadTeacher, open_teacher, read_converted
from jaxconv.train.watch import reraise_out_of_memory
from jaxconv.train.workdir import begin_or_compare, open_workdir, saved_data
from jaxconv.values import with_plain_values

log = logging.getLogger(__name__)

# Seconds until a file written by one machine is visible to the others on a network file system.
_SEEN_LATE = 10


class Finished(NamedTuple):
    """A training run that has finished.

    Attributes:
      result: `split`, and what `evaluate` returns for the final weights.
      folder: the run's workdir.
      parallel: its devices and processes.
      eval_source: the examples that it was evaluated on.
      task: the task of the run.
    """

    result: dict[str, Any]
    folder: Path
    parallel: Parallel
    eval_source: Source
    task: Task


@in_32_bits
def start(
    config: Any,
    workdir: str,
    restart: bool = False,
    devices: list | None = None,
    sources: tuple[Source, Source] | None = None,
    callbacks: Sequence[Any] = (),
    read: Read = read_folder,
    read_teacher: ReadTeacher = read_converted,
) -> Finished:
    """Train as the config specifies, or resume the run in the workdir; see `jaxconv.run.train`.

    `read` reads the weights that `config.model.init_from` names, and `read_teacher` those of
    `config.distill.teacher`.
    """
    config = with_plain_values(config)
    if sources:
        config = given_sources(config)
    check_config(config, with_task=False)
    config = with_absolute_names(config)
    parallel = make_parallel(config.parallel, devices)
    parallel.check_batch(config.batch_size, "batch_size", config.accumulate)
    parallel.check_groups(config.model.norm_groups, config.batch_size, config.accumulate)
    folder, given = expand(workdir), config
    config = config if restart else resumed(folder, config)
    check_config(config)  # a task's code may be a copy if its file no longer exists
    build_model(config.model, num_classes=2)
    if restart or not (folder / "config.json").exists():
        check_effects(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(parallel.reraise_lost_process())
        opened = parallel.on_first_process(lambda: open_workdir(workdir, given, restart))
        if opened:
            stack.enter_context(opened[1])
        _check_shared(folder, parallel)
        before = saved_data(folder) if (folder / "data.json").exists() else None
        train_source, eval_source = parallel.on_every_process(
            lambda: _read_sources(config, sources, before, says=parallel.process[0] == 0)
        )
        if config.steps_per_call > 1 and not isinstance(train_source, Arrays):
            raise UserError(
                f"config.steps_per_call is {config.steps_per_call}, which needs the data in device "
                f"memory, but {config.data.source} is streamed; use 1, or increase "
                "--config.data.resident_limit"
            )
        description = _describe(config, train_source)
        teacher = parallel.on_every_process(lambda: open_teacher(config, description, read_teacher))
        build_form = functools.partial(
            build,
            config,
            description,
            len(train_source),
            parallel.axis_name,
            teacher=teacher,
        )
        built = build_form()
        _check_steps(config, built)
        opened_callbacks = parallel.on_first_process(
            lambda: open_callbacks(config.callbacks, callbacks)
        )
        if opened_callbacks is None:  # called on the first process alone; others only need to know
            opened_callbacks = [("", None)] * (len(config.callbacks.split()) + len(callbacks))
        sizes = {"train_examples": len(train_source), "eval_examples": len(eval_source)}
        sums = {"train_checksum": train_source.checksum(), "eval_checksum": eval_source.checksum()}
        decoders = {"train_decoder": train_source.decoder, "eval_decoder": eval_source.decoder}
        if config.model.init_from and not (folder / "config.json").exists():
            fit = functools.partial(fitted_weights, config.model.init_from, built.abstract)
            parallel.on_every_process(
                lambda: fit(built.task.outputs, read)
            )  # raises before the run is begun
        taught = {TEACHER: teacher.record} if teacher else {}
        data = {**description, **sizes, **sums, **decoders, **taught}
        _check_same_data(parallel, {**description, **sizes, **sums, **taught})
        parallel.on_first_process(lambda: begin_or_compare(folder, given, data))
        size = sum(
            source.size for source in (train_source, eval_source) if isinstance(source, Arrays)
        )
        with reraise_out_of_memory(
            lambda: (
                f"the data takes {human_bytes(size)}",
                "a smaller --config.data.resident_limit, so that it is streamed",
            )
        ):
            loaders = tuple(
                make_loader(source, parallel, config.data) for source in (train_source, eval_source)
            )
        if built.members:
            built = build_form(_form(config, folder, parallel, build_form, loaders[0]))
        run = Run(config, folder, parallel, built, *loaders, callbacks=opened_callbacks, read=read)
        result = run.train()
        parallel.on_first_process(lambda: cloud.push(folder))
        return Finished(result, folder, parallel, eval_source, built.task)


def _check_shared(folder: Path, parallel: Parallel) -> None:
    """Raise UserError unless all processes see the same folder, or copies of one in a bucket.

    A checkpoint would never be complete if some processes wrote their parts elsewhere.
    """
    if parallel.process[1] == 1:
        return
    if cloud.address_of(folder):  # then each machine has its own copy, as the first has put it
        newest = parallel.broadcast_from_first(cloud.number_of(folder))
        parallel.on_every_process(lambda: cloud.refresh(folder, newest))
        return
    number = str(parallel.broadcast_from_first(int.from_bytes(os.urandom(3))))
    mark = folder / ".shared"
    parallel.on_first_process(lambda: mark.write_text(number))
    end = time.monotonic() + _SEEN_LATE
    while not (seen := mark.is_file() and mark.read_text() == number) and time.monotonic() < end:
        time.sleep(0.1)
    if parallel.total(not seen):
        raise UserError(
            f"--workdir={folder}: is not the same folder for all processes of the run; give one "
            "that they share"
        )


def _check_steps(config: Any, built: BuiltRun) -> None:
    """Raise UserError for settings that would have no effect in a training of this length."""
    dues = {
        f"{name}.every": config[name].every or built.steps_per_epoch
        for name in ("log", "eval", "checkpoint")
    }
    soonest = min(dues, key=dues.__getitem__)
    if config.steps_per_call > dues[soonest]:
        raise UserError(
            f"config.steps_per_call is {config.steps_per_call}, but {soonest} is {dues[soonest]}, "
            f"and a call cannot extend past it; use at most {dues[soonest]}, or increase "
            f"--config.{soonest}"
        )
    if config.profile and int(config.profile.partition(":")[0]) > built.total_steps:
        raise UserError(
            f"config.profile is {config.profile!r}, but the training has only "
            f"{built.total_steps} steps; choose steps among them"
        )

    for said in _never_reached(config, built):
        log.warning("%s", said)


def _never_reached(config: Any, built: BuiltRun) -> list[str]:
    """What the settings ask for after the end of a training of this length.

    They are not refused, because a short trial of a longer training has them, and a longer training
    may follow.
    """
    schedule, total, found = config.optimizer.schedule, built.total_steps, []
    after = [boundary for boundary in schedule.boundaries if boundary >= total]
    if after:
        found.append(
            f"optimizer.schedule.boundaries has {', '.join(map(str, after))}, but the training has "
            f"only {total} steps: the learning rate does not fall there"
        )
    if schedule.warmup_steps >= total:
        found.append(
            f"optimizer.schedule.warmup_steps is {schedule.warmup_steps}, but the training has "
            f"only {total} steps: the learning rate ends at {total / schedule.warmup_steps:.2g} of "
            "optimizer.learning_rate"
        )
    evaluations = total // (config.eval.every or built.steps_per_epoch)
    for key, settings, on in (
        ("early_stopping", config.early_stopping, config.early_stopping.patience > 0),
        ("optimizer.schedule", schedule, schedule.name == "plateau"),
    ):
        if on and settings.patience >= evaluations:
            found.append(
                f"{key}.patience is {settings.patience}, but the training has only {evaluations} "
                "evaluations: it cannot have an effect"
            )
    return found


def _describe(config: Any, source: Source) -> dict[str, Any]:
    """The description of the training data, with the counts of the classes if they are needed."""
    description = describe(source)
    if config.loss.class_weights != "balanced":
        return description
    counts = find_task(config.task.name).count_classes(source)
    return description if counts is None else description | {"class_counts": counts.tolist()}


def _form(
    config: Any,
    folder: Path,
    parallel: Parallel,
    build_form: Callable[[str], BuiltRun],
    train_data: Loader,
) -> str:
    """How the members of an ensemble are computed, see train/ensemble.py."""
    if config.ensemble.by != "auto":
        return config.ensemble.by

    def prepare(form: str) -> Callable[[], None]:
        run = Run(config, folder, parallel, build_form(form), train_data, train_data)
        held, key = [parallel.to_steps(run.first_state())], run.key()
        batch = next(iter(train_data.train_batches(run.order, 0, 1)))

        def step() -> None:
            held[0], metrics = run.calls[1](held[0], run.data, batch, key)
            metrics.block_until_ready()

        return step

    form, seconds = fastest_form(config, folder, parallel, prepare)
    if seconds:
        shown = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
        log.info("members computed by %s: a step takes %s", form, shown)
    return form


def open_sources(config: Any, before: dict[str, Any] | None = None) -> tuple[Source, Source]:
    """The sources to train and to evaluate on; raises UserError where they cannot be used or do not
    fit one another.

    Args:
      config: the whole config.
      before: what the data of the run looked like when it began.
    """
    before = before and {key: before[key] for key in ("kind", "image_shape")}
    train_source = open_source(
        config.data,
        config.data.train_split,
        augment=config.augment,
        before=before,
        needs=needs_of(config),
    )
    return train_source, open_source(
        config.data, config.data.eval_split, like=describe(train_source)
    )


def given_sources(config: Any) -> Any:
    """The config of a run whose sources are handed over: it does not name them."""
    changed = type(config)(config.to_dict())
    changed.data.source = GIVEN
    return changed.lock()


def _read_sources(
    config: Any,
    sources: tuple[Source, Source] | None,
    before: dict[str, Any] | None,
    says: bool,
) -> tuple[Source, Source]:
    """The sources to train and to evaluate on, opened unless they are given; logs what was read, as
    what, and what was not.
    """
    if sources:
        check_given(sources[1], describe(sources[0]))
    train_source, eval_source = sources or open_sources(config, before)
    splits = (config.data.train_split, train_source), (config.data.eval_split, eval_source)
    for split, source in splits:
        line, notes = read_as(source, split), notes_of(source, split, config.data)
        if says:
            log.info("%s", line)
            for note in notes:
                log.warning("%s", note)
    return train_source, eval_source


def _check_same_data(parallel: Parallel, data: dict[str, Any]) -> None:
    """Raise UserError unless all processes of the run see the same examples."""
    if parallel.process[1] == 1:
        return
    own = zlib.crc32(json.dumps(data, sort_keys=True).encode()) >> 1  # fits into an int32
    if parallel.total(parallel.broadcast_from_first(own) != own):
        raise UserError(
            "the processes of the run do not see the same examples; give each the same files",
            exit_code=1,
        )


__getattr__ = moved.names_of(__name__)
