"""Commands that train and evaluate: train, evaluate, sweep."""

import argparse
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from jaxconv.cloud import with_addresses
from jaxconv.commands.common import (
    Opened,
    add_json,
    add_network,
    add_trust,
    natural,
    opened_runs,
    print_json,
    results_kept,
    set_up_jax,
)
from jaxconv.errors import PREEMPTED, LostProcessError, UserError
from jaxconv.values import AnyConfig

# File options of evaluate; each task writes some of them.
FILES = ("predictions", "detections", "confusion", "reliability")


def add(commands: Any) -> None:
    """Add train, evaluate and sweep."""
    _add_runs(commands)
    _add_evaluate(commands)
    _add_sweep(commands)


def _add_runs(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a network from a config, or resume an unfinished run",
        epilog="Set any key of the config by --config.KEY=VALUE, such as "
        "--config.optimizer.learning_rate=0.05.",
    )
    train.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:ARGUMENT]",
        help="the experiment: a Python file that defines get_config(), or "
        "jaxconv:NAME[:ARGUMENT] for one that `jaxconv experiments` lists",
    )
    add_run(train)
    train.set_defaults(run=_train)


def add_run(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `run_training`."""
    command.add_argument(
        "--workdir", required=True, metavar="DIR", help="folder for all files of the run"
    )
    command.add_argument(
        "--restart",
        action="store_true",
        help="move an existing run in the folder aside and start from scratch",
    )
    command.add_argument(
        "--distributed", default="auto", metavar="HOW",
        help="run as one of several processes: on (a TPU pod, SLURM, Open MPI), off, auto (the "
            "default), or HOST:PORT,N,I for process I of N",
    )  # fmt: skip
    add_json(command)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate a run, several together, or published weights, on every example exactly "
        "once",
        epilog="Runs in one process, on all devices of this machine. "
        "--config.data.source=SOURCE and --config.data.eval_split=NAME choose other data.",
    )
    evaluate.add_argument(
        "--workdir",
        default=[],
        nargs="+",
        action="extend",
        metavar="DIR",
        help="folder of the run; with several, each run and their averaged prediction, or "
        "the fused boxes of detectors; or",
    )
    add_network(evaluate)
    evaluate.add_argument(
        "--split",
        default="",
        metavar="NAME",
        help="split of the data; the config's eval_split by default",
    )
    evaluate.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help="latest (the default), best, or a step",
    )
    evaluate.add_argument(
        "--views", default="center", metavar="HOW",
        help="what the network sees of each image: center (the default), flip, 6-crop, "
            "10-crop, or dense for the whole image; for outputs of each pixel scales or sliding "
            "windows; probabilities are averaged, boxes fused",
    )  # fmt: skip
    evaluate.add_argument(
        "--scales",
        default="",
        metavar="N,N,...",
        help="for dense: sizes of the shorter side in pixels, such as 256,384,512; for scales: "
        "factors, such as 0.75,1,1.25",
    )
    evaluate.add_argument(
        "--own_size",
        action="store_true",
        help="for outputs of each pixel: measure on whole images and their masks at their own size",
    )
    evaluate.add_argument(
        "--crop_ratio",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the shorter side that a crop covers; the run's own by default",
    )
    evaluate.add_argument(
        "--corruptions",
        default="",
        metavar="KINDS",
        help="measure on corrupted images: all, or some of ImageNet-C's kinds, such as "
        "gaussian_noise:3,fog; without :SEVERITY all five",
    )
    evaluate.add_argument(
        "--frost",
        default="",
        metavar="DIR",
        help="for --corruptions: folder of photographs of frost, such as ImageNet-C's frost1.png "
        "to frost6.jpg; without it that kind is left out",
    )
    evaluate.add_argument(
        "--only_present",
        action="store_true",
        help="choose only among the classes that the set has examples of, as for ImageNet-A and -R",
    )
    evaluate.add_argument(
        "--bootstrap",
        type=natural,
        default=1000,
        metavar="N",
        help="bootstrap resamples for 95 %% intervals (1000); 0 for no intervals",
    )
    evaluate.add_argument(
        "--per_class", action="store_true", help="print a table of all classes, worst first"
    )
    evaluate.add_argument(
        "--predictions",
        default="",
        metavar="FILE",
        help="write the prediction for every example: .npz or .csv",
    )
    evaluate.add_argument(
        "--detections",
        default="",
        metavar="FILE",
        help="write the detected objects as COCO's server takes them: .json",
    )
    evaluate.add_argument(
        "--confusion", default="", metavar="FILE", help="write the confusion matrix: .csv or .png"
    )
    evaluate.add_argument(
        "--reliability",
        default="",
        metavar="FILE",
        help="draw the reliability diagram, accuracy against confidence: .png",
    )
    add_trust(evaluate)
    add_json(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="train every combination of values of some config keys; compare them in a table and a "
        "plot",
        epilog="The same command resumes unfinished runs. Set any key for all runs by "
        "--config.KEY=VALUE.",
    )
    sweep.add_argument(
        "--config", required=True, metavar="FILE.py[:ARGUMENT]", help="the experiment, as for train"
    )
    sweep.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="folder for the table and the runs, each in a subfolder",
    )
    sweep.add_argument(
        "--grid",
        default="",
        metavar="GRID",
        help="values to try, such as 'seed=0:3 batch_size=64,128'; 0:3 is 0, 1, 2",
    )
    sweep.add_argument(
        "--grid_file",
        default="",
        metavar="FILE.json",
        help='more values, as {"KEY": [VALUE, ...]}, which may contain spaces and commas',
    )
    sweep.add_argument(
        "--launcher",
        default="local",
        metavar="HOW",
        help="local runs one after another, slurm submits jobs, print only prints the commands",
    )
    sweep.add_argument(
        "--slurm",
        default="",
        metavar="OPTIONS",
        help="options for launch/slurm.sh, such as '--gpus=1 --time=4:00:00'",
    )
    sweep.add_argument(
        "--table",
        action="store_true",
        help="start nothing; only make the table and the plot from existing runs",
    )
    sweep.set_defaults(run=_sweep)


def _stop_at_once(*_: Any) -> None:
    """Handle SIGTERM before the first step and after the last, when there is nothing to save.

    During training `Preemption` handles it.
    """
    os.write(2, b"jaxconv: stopped by SIGTERM, with nothing to save; the same command resumes\n")
    os._exit(PREEMPTED)


def _interrupt_at_once(*_: Any) -> None:
    """Handle Ctrl-C in one of several processes, which may be the only one that is interrupted.

    The others notice that it is lost. Its background writes would wait for them.
    """
    os.write(2, b"jaxconv: interrupted; the same commands resume from the last checkpoint\n")
    os._exit(130)


@contextlib.contextmanager
def _one_of_several() -> Iterator[None]:
    """End this process after an error, whether the others have one too or wait for this one."""
    from jaxconv.train.processes import part

    try:
        yield
    except LostProcessError as error:
        # Skip JAX's shutdown, which would wait for the lost process.
        print(f"jaxconv: {with_addresses(str(error))}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    except Exception as error:
        if part():
            raise
        if isinstance(error, UserError):
            print(f"jaxconv: {with_addresses(str(error))}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _train(args: argparse.Namespace, overrides: list[str]) -> int:
    def make_config() -> AnyConfig:
        from jaxconv.config import load_config

        return load_config(args.config, overrides)

    return run_training(args, make_config)


def run_training(args: argparse.Namespace, make_config: Callable[[], AnyConfig]) -> int:
    """Train by a config, in one of several processes if so; the exit code."""
    signal.signal(signal.SIGTERM, _stop_at_once)
    from jaxconv.checks import check_config
    from jaxconv.own import is_own

    config = make_config()
    check_config(config, with_task=not is_own(config.task.name))
    from jaxconv.train.processes import join
    from jaxconv.train.watch import announce_to

    announce_to()
    with _one_of_several():
        join(args.distributed)
        set_up_jax(config)
        import jax

        from jaxconv.cloud import address_of
        from jaxconv.files import expand
        from jaxconv.run import train

        first = jax.process_index() == 0
        announce_to(level=logging.INFO if first else logging.WARNING)
        if jax.process_count() > 1:
            signal.signal(signal.SIGINT, _interrupt_at_once)
        result = train(config, args.workdir, args.restart)
    if first:
        folder = expand(args.workdir)
        with results_kept(folder):
            print(f"workdir: {address_of(folder) or folder}")
            print_json(result, args.json)
    return 0


def _evaluate(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxconv.train.other_data import check_takes

    if args.workdir:
        check_takes("evaluate", overrides)
    with opened_runs(args, "evaluate", overrides, args.split) as opened:
        return _evaluate_corrupted(args, opened) if args.corruptions else _measure(args, opened)


def _measure(args: argparse.Namespace, opened: Opened) -> int:
    if args.frost:
        raise UserError(f"--frost={args.frost}: is for --corruptions")
    from jaxconv.evaluation import tables
    from jaxconv.evaluation.several import evaluate_runs
    from jaxconv.evaluation.views import read_scales
    from jaxconv.files import check_file, expand
    from jaxconv.tasks import Task, open_task
    from jaxconv.train.workdir import opened_config, saved_config, saved_data

    folder = expand(opened.workdirs[0])
    config = saved_config(folder)
    task = open_task(opened_config(folder, opened.overrides), saved_data(folder))
    writers, files = task.writers, {}
    if args.per_class and type(task).lines is Task.lines:
        raise UserError(f"--per_class: the task {config.task.name} has no table of classes")
    for option in filter(lambda option: getattr(args, option), FILES):
        if option not in writers:
            raise UserError(
                f"--{option}: the task {config.task.name} does not write this file; it writes "
                f"{', '.join(writers)}"
            )
        files[option] = check_file(option, getattr(args, option), writers[option][0])
    view = {"views": args.views, "scales": read_scales(args.scales), "crop_ratio": args.crop_ratio}
    view |= {"own_size": args.own_size, "files": [*files]}
    evaluation = evaluate_runs(
        opened.workdirs,
        args.split,
        args.checkpoint,
        overrides=opened.overrides,
        only_present=args.only_present or opened.some_classes,
        **view,
    )
    record = tables.make_record(evaluation, args.bootstrap)
    rows = tables.make_rows(evaluation, record, args.bootstrap)
    if opened.weights:  # which have no step
        rows[0] = ("network", opened.weights)
        record["network"] = opened.weights
    width = max(len(name) for name, _ in rows) + 2
    lines = evaluation.task.lines(evaluation.outcomes) if args.per_class else []
    for name, text in rows:
        print(f"{name:{width}}{text}")
    if args.per_class:
        print("", *lines, "", sep="\n")
    for option, file in files.items():
        writers[option][1](file, evaluation)
        print(f"{option:{max(width, len(option) + 2)}}{file}")
    print_json(record, args.json)
    return 0


def _evaluate_corrupted(args: argparse.Namespace, opened: Opened) -> int:
    from jaxconv.data.corruptions import read_corruptions
    from jaxconv.evaluation.corrupted import evaluate_corrupted

    others = ("scales", "own_size", "crop_ratio", "per_class", "only_present", *FILES)
    given = [option for option in others if getattr(args, option)]
    given += ["views"] if args.views != "center" else []
    if given or len(opened.workdirs) > 1:
        what = f"--{given[0]}" if given else "several runs"
        raise UserError(f"--corruptions: cannot be measured together with {what}")
    kinds = read_corruptions(args.corruptions, bool(args.frost))
    found = evaluate_corrupted(
        *(opened.workdirs[0], kinds, args.split, args.checkpoint),
        overrides=opened.overrides,
        frost=args.frost,
    )
    print(*found.lines(), sep="\n")
    print_json(found.record(), args.json)
    return 0


def _sweep(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxconv.grid import make_grid
    from jaxconv.sweep import sweep
    from jaxconv.train.watch import announce_to

    announce_to()
    grid = make_grid(args.grid, args.grid_file)
    return sweep(args.config, args.workdir, grid, overrides, args.launcher, args.slurm, args.table)
