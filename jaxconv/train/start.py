"""Starts or resumes a run: opens the workdir and the data, builds the run, enters the loop."""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxconv import moved
from jaxconv.checks import check_config
from jaxconv.data.interface import Arrays, Source, describe
from jaxconv.data.loading import make_loader
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError, human_bytes
from jaxconv.files import expand
from jaxconv.models.configured import build_model
from jaxconv.tasks import Task
from jaxconv.train.build import BuiltRun, build
from jaxconv.train.code import resumed
from jaxconv.train.ensemble import fastest_form
from jaxconv.train.initial import fitted_weights
from jaxconv.train.loop import Loader, Run
from jaxconv.train.parallel import Parallel, in_32_bits, make_parallel
from jaxconv.train.watch import reraise_out_of_memory
from jaxconv.train.workdir import begin_or_compare, open_workdir

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
) -> Finished:
    """Train as the config specifies, or resume the run in the workdir; see `jaxconv.run.train`."""
    check_config(config, with_task=False)
    parallel = make_parallel(config.parallel, devices)
    parallel.check_batch(config.batch_size, "batch_size", config.accumulate)
    parallel.check_groups(config.model.norm_groups, config.batch_size, config.accumulate)
    folder, given = expand(workdir), config
    config = config if restart else resumed(folder, config)
    check_config(config)  # a task's code may be a copy if its file no longer exists
    build_model(config.model, num_classes=2)
    with contextlib.ExitStack() as stack:
        stack.enter_context(parallel.reraise_lost_process())
        opened = parallel.on_first_process(lambda: open_workdir(workdir, given, restart))
        if opened:
            stack.enter_context(opened[1])
        _check_shared(folder, parallel)
        train_source, eval_source = sources or open_sources(config)
        if config.steps_per_call > 1 and not isinstance(train_source, Arrays):
            raise UserError(
                f"config.steps_per_call is {config.steps_per_call}, which needs the data in device "
                f"memory, but {config.data.source} is streamed; use 1, or increase "
                "--config.data.resident_limit"
            )
        description = describe(train_source)
        build_form = functools.partial(
            build, config, description, len(train_source), parallel.axis_name
        )
        built = build_form()
        _check_steps(config, built)
        sizes = {"train_examples": len(train_source), "eval_examples": len(eval_source)}
        sums = {"train_checksum": train_source.checksum(), "eval_checksum": eval_source.checksum()}
        decoders = {"train_decoder": train_source.decoder, "eval_decoder": eval_source.decoder}
        if config.model.init_from and not (folder / "config.json").exists():
            fitted_weights(
                config.model.init_from, built.abstract, built.task.outputs
            )  # raises before the run begins
        parallel.on_first_process(
            lambda: begin_or_compare(folder, given, {**description, **sizes, **sums, **decoders})
        )
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
        result = Run(config, folder, parallel, built, *loaders).train()
        return Finished(result, folder, parallel, eval_source, built.task)


def _check_shared(folder: Path, parallel: Parallel) -> None:
    """Raise UserError unless all processes see the same folder.

    A checkpoint would never be complete if some processes wrote their parts elsewhere.
    """
    if parallel.process[1] == 1:
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
            held[0], metrics = run.calls[1](held[0], train_data.data, batch, key)
            metrics.block_until_ready()

        return step

    form, seconds = fastest_form(config, folder, parallel, prepare)
    if seconds:
        shown = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
        log.info("members computed by %s: a step takes %s", form, shown)
    return form


def open_sources(config: Any) -> tuple[Source, Source]:
    """The sources to train and evaluate on; raises UserError if they are unusable or mismatched."""
    train_source = open_source(config.data, config.data.train_split, augment=config.augment)
    return train_source, open_source(
        config.data, config.data.eval_split, like=describe(train_source)
    )


__getattr__ = moved.names_of(__name__)
