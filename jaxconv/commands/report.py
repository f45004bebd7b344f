"""Commands that show runs: report, curves."""

import argparse
from typing import Any

from jaxconv.commands.common import add_trust, natural, no_overrides, set_up_jax


def add(commands: Any) -> None:
    """Add report and curves."""
    report = commands.add_parser(
        "report", help="write everything about a run to a single, self-contained HTML page"
    )
    report.add_argument(
        "runs",
        nargs="*",
        metavar="DIR",
        help="folder of a run, which may be still training, or of a sweep; with several runs, the "
        "page compares them",
    )
    report.add_argument("--workdir", default="", metavar="DIR", help="the same as one DIR")
    report.add_argument(
        "--out",
        default="",
        metavar="FILE",
        help="file to write; report.html in the workdir by default, or comparison.html here",
    )
    report.add_argument(
        "--watch",
        action="store_true",
        help="rewrite the page whenever the run logs or saves something, until no process trains "
        "there; for a sweep on Slurm, until every run has finished, failed or been "
        "cancelled. Ctrl-C stops it. A "
        "training process is recognized by its lock, which on some file systems is visible only "
        "on its own machine",
    )
    report.add_argument(
        "--examples",
        type=natural,
        default=10_000,
        metavar="N",
        help="the most test examples to use, evenly spread; 0 for all (10000)",
    )
    add_trust(report)
    report.set_defaults(run=_report)

    curves = commands.add_parser(
        "curves", help="plot loss and accuracy of runs as text in the terminal"
    )
    curves.add_argument(
        "--workdir", required=True, nargs="+", metavar="DIR", help="folders of the runs"
    )
    curves.add_argument(
        "--watch", action="store_true", help="redraw them live until the runs have ended"
    )
    curves.set_defaults(run=_curves)


def _report(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxconv.cloud import with_addresses
    from jaxconv.config import default_config
    from jaxconv.errors import UserError
    from jaxconv.files import check_file, expand
    from jaxconv.train.other_data import check_takes
    from jaxconv.train.workdir import in_use, saved_config

    runs = [*args.runs, *([args.workdir] if args.workdir else [])]
    if not runs or (args.runs and args.workdir):
        raise UserError("report: give the folder of a run or sweep, or of several runs to compare")
    if len(runs) > 1:
        return _compare(args, runs, overrides)
    folder = expand(runs[0])
    check_takes("report", overrides)
    if overrides and (folder / "sweep.json").exists():
        raise UserError(f"--config.{overrides[0]}: the page of a sweep shows no data")
    if args.out:
        check_file("out", args.out, (".html",))
    set_up_jax(default_config() if (folder / "sweep.json").exists() else saved_config(folder))
    import jax

    from jaxconv.report.write import report, watch

    # jax.config's options are not in its types.
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if in_use(folder) and not platforms:
        jax.config.update("jax_platforms", "cpu")  # the run occupies the accelerator and its memory
    settings = {"out": args.out, "examples": args.examples, "overrides": overrides}
    for path in watch(folder, **settings) if args.watch else [report(folder, **settings)]:
        print(with_addresses(str(path)), flush=True)
    return 0


def _compare(args: argparse.Namespace, runs: list[str], overrides: list[str]) -> int:
    from jaxconv.errors import UserError
    from jaxconv.files import check_file
    from jaxconv.report.write import compare

    no_overrides("report of several runs", overrides)
    if args.watch:
        raise UserError("--watch: is for the page of one run or sweep, not of several runs")
    out = args.out or "comparison.html"
    check_file("out", out, (".html",))
    print(compare(runs, out))
    return 0


def _curves(args: argparse.Namespace, overrides: list[str]) -> int:
    no_overrides("curves", overrides)
    from jaxconv.look.live import in_terminal

    in_terminal(args.workdir, args.watch)
    return 0
