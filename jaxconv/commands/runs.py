"""Commands that make runs and measure them: train, evaluate, sweep."""

import argparse
import json
import logging
import os
import signal
import sys
from typing import Any

from jaxconv.commands.common import set_up_jax
from jaxconv.errors import PREEMPTED, LostProcessError, UserError


def add(commands: Any) -> None:
    """Add train, evaluate and sweep."""
    _add_runs(commands)
    _add_sweep(commands)


def _add_runs(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a network as a config says, or go on where a run was left",
        epilog="Any key of the config is set by --config.KEY=VALUE, such as --config.optimizer.learning_rate=0.05.",
    )
    train.add_argument("--config", required=True, metavar="FILE.py[:ARGUMENT]", help="the experiment: a file with get_config()")
    train.add_argument("--workdir", required=True, metavar="DIR", help="folder for everything that the run writes")
    train.add_argument("--restart", action="store_true", help="move a run that is in the folder aside, and begin anew")
    train.add_argument(
        "--distributed", default="auto", metavar="HOW",
        help="one of several processes: on (a TPU pod, SLURM, Open MPI), off, auto (the default), or HOST:PORT,N,I",
    )  # fmt: skip
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="evaluate what a run has trained, every example exactly once")
    evaluate.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
    evaluate.add_argument("--split", default="", metavar="NAME", help="split of the data; the config's eval_split by default")
    evaluate.add_argument("--checkpoint", default="latest", metavar="WHICH", help="latest (the default), best, or a step")
    evaluate.set_defaults(run=_evaluate)


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="train every combination of some keys of the config, and compare them in a table and a plot",
        epilog="The same command goes on with what is not finished. Any key is set for all runs by --config.KEY=VALUE.",
    )
    sweep.add_argument("--config", required=True, metavar="FILE.py[:ARGUMENT]", help="the experiment, as for train")
    sweep.add_argument("--workdir", required=True, metavar="DIR", help="folder for the runs, each in one of its own, and the table")
    sweep.add_argument("--grid", default="", metavar="GRID", help="what is tried, such as 'seed=0:3 batch_size=64,128'; 0:3 is 0, 1, 2")
    sweep.add_argument("--grid_file", default="", metavar="FILE.json", help='more of it, {"KEY": [VALUE, ...]}, for spaces and commas')
    sweep.add_argument("--launcher", default="local", metavar="HOW", help="local: one after another, slurm: as jobs, print: not at all")
    sweep.add_argument("--slurm", default="", metavar="OPTIONS", help="for launch/slurm.sh, such as '--gpus=1 --time=4:00:00'")
    sweep.add_argument("--table", action="store_true", help="start nothing; make the table and the plot of what there is")
    sweep.set_defaults(run=_sweep)


def _stop_at_once(*_: Any) -> None:
    """For SIGTERM before the first step and after the last, when there is nothing to save; between them `Preemption` takes over."""
    os.write(2, b"jaxconv: stopped by SIGTERM, with nothing to save; the same command goes on\n")
    os._exit(PREEMPTED)


def _train(args: argparse.Namespace, overrides: list[str]) -> int:
    signal.signal(signal.SIGTERM, _stop_at_once)
    from jaxconv.checks import check_config
    from jaxconv.config import load_config

    config = load_config(args.config, overrides)
    check_config(config)
    from jaxconv.train.processes import join

    join(args.distributed)
    set_up_jax(config)
    import jax

    from jaxconv.train.start import train
    from jaxconv.train.watch import announce_to
    from jaxconv.train.workdir import expand

    first = jax.process_index() == 0
    announce_to(level=logging.INFO if first else logging.WARNING)
    try:
        result = train(config, args.workdir, args.restart)
    except LostProcessError as error:
        # Not by way of JAX's farewell, which would wait for the other.
        print(f"jaxconv: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    if first:
        print(f"workdir: {expand(args.workdir)}")
        print(json.dumps(result))
    return 0


def _evaluate(args: argparse.Namespace, overrides: list[str]) -> int:
    if overrides:
        raise UserError(f"--config.{overrides[0]}: evaluate takes the config of the run in --workdir; it cannot be changed")
    from jaxconv.train.workdir import expand, saved_config

    set_up_jax(saved_config(expand(args.workdir)))
    from jaxconv.evaluate import evaluate_workdir

    result = evaluate_workdir(args.workdir, args.split, args.checkpoint)
    rows = _evaluation_rows(result)
    width = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        print(f"{name:{width}}{text}")
    print(json.dumps({name: value for name, value in result.items() if name != "step"}))
    return 0


def _evaluation_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What `evaluate` found, as rows of name and text, for people."""

    def percent(top1: float) -> str:
        return f"{100 * top1:.2f} %  ({round((1 - top1) * result['examples']):,} wrong)"

    rows = [("step", f"{result['step']:,}"), ("split", result["split"]), ("examples", f"{result['examples']:,}")]
    if "members" not in result:
        return [*rows, ("loss", f"{result['loss']:.4f}"), ("top-1", percent(result["top1"]))]
    for member in result["members"]:
        rows.append((member["name"], f"loss {member['loss']:.4f}  top-1 {percent(member['top1'])}" if "loss" in member else "diverged"))
    spread = (
        f"loss {result['loss']:.4f} ± {result['loss_spread']:.4f}  top-1 {100 * result['top1']:.2f} ± {100 * result['top1_spread']:.2f} %"
    )
    together = f"loss {result['ensemble_loss']:.4f}  top-1 {percent(result['ensemble_top1'])}"
    return [*rows, ("mean and spread", spread), ("ensemble", together)]


def _sweep(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxconv.grid import make_grid
    from jaxconv.sweep import sweep
    from jaxconv.train.watch import announce_to

    announce_to()
    grid = make_grid(args.grid, args.grid_file)
    return sweep(args.config, args.workdir, grid, overrides, args.launcher, args.slurm, args.table)
