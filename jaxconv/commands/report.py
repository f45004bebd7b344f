"""Commands that show runs: report, curves."""

import argparse
from typing import Any

from jaxconv.commands.common import add_trust, natural, no_overrides, set_up_jax


def add(commands: Any) -> None:
    """Add report and curves."""
    report = commands.add_parser(
        "report", help="all that there is to see of a run, as one HTML page that opens from disk"
    )
    report.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="folder of the run, which may be going on, or of a sweep",
    )
    report.add_argument(
        "--out", default="", metavar="FILE", help="the page; report.html in the workdir by default"
    )
    report.add_argument(
        "--watch",
        action="store_true",
        help="write it again whenever the run has logged or saved something, until no process "
        "trains there; of a sweep whose runs Slurm "
        "starts, until each has finished or failed, or Ctrl-C. That a process trains is told by "
        "its lock, which some file systems show on "
        "its own machine alone",
    )
    report.add_argument(
        "--examples",
        type=natural,
        default=10_000,
        metavar="N",
        help="of the test set to look at, at most, evenly spread; 0: all (10000)",
    )
    add_trust(report)
    report.set_defaults(run=_report)

    curves = commands.add_parser(
        "curves", help="loss and accuracy of runs as text, in the terminal"
    )
    curves.add_argument(
        "--workdir", required=True, nargs="+", metavar="DIR", help="folders of the runs"
    )
    curves.add_argument(
        "--watch", action="store_true", help="draw them as they grow, until the runs have ended"
    )
    curves.set_defaults(run=_curves)


def _report(args: argparse.Namespace, overrides: list[str]) -> int:
    no_overrides("report", overrides)
    from jaxconv.config import default_config
    from jaxconv.files import check_file, expand
    from jaxconv.train.workdir import in_use, saved_config

    folder = expand(args.workdir)
    if args.out:
        check_file("out", args.out, (".html",))
    set_up_jax(default_config() if (folder / "sweep.json").exists() else saved_config(folder))
    import jax

    from jaxconv.report.write import report, watch

    if in_use(folder) and not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")  # the run has the accelerator, and its memory
    settings = {"out": args.out, "examples": args.examples}
    for path in watch(folder, **settings) if args.watch else [report(folder, **settings)]:
        print(path, flush=True)
    return 0


def _curves(args: argparse.Namespace, overrides: list[str]) -> int:
    no_overrides("curves", overrides)
    from jaxconv.look.live import in_terminal

    in_terminal(args.workdir, args.watch)
    return 0
