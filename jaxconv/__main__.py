"""The command line: `jaxconv COMMAND`, the same as `python -m jaxconv COMMAND`."""

import argparse
import os
import sys
from collections.abc import Sequence

from jaxconv import doctor
from jaxconv.cloud import with_addresses
from jaxconv.errors import UserError, needing_extras
from jaxconv.streams import lost_output, usable_streams
from jaxconv.version import __version__

# What is said of a command that is interrupted.
_AFTER = {
    "train": "; the same command resumes from the last checkpoint",
    "finetune": "; the same command resumes from the last checkpoint",
    "sweep": "; the same command resumes",
    "prepare": "; the same command starts again",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
      The exit code: 0, 1 for a problem with data or files, or 2 for a wrong command or config.
    """
    with usable_streams():
        try:
            code = _run(sys.argv[1:] if argv is None else argv)
        except SystemExit:  # argparse: after --help, or for a wrong command
            lost_output()
            raise
        lost = lost_output()
        if lost and not code:
            _say_lost(lost)
            return 1
        return code


def _run(argv: Sequence[str]) -> int:
    if argv[:1] == ["doctor"]:  # before anything that may be broken is imported
        return doctor.main(argv[1:])
    from jaxconv.commands.common import split_overrides, trusting

    others, overrides = split_overrides(argv)
    args = _parser().parse_args(others)
    try:
        _check_folder()
        with trusting(args), needing_extras(f"jaxconv {others[0]}"):
            return args.run(args, overrides)
    except UserError as error:
        print(f"jaxconv: {with_addresses(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        lost = lost_output()
        if error is lost:
            _say_lost(error)
        else:
            where = error.filename or "a file"
            print(f"jaxconv: {where}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"jaxconv: interrupted{_AFTER.get(argv[0], '')}", file=sys.stderr)
        return 130


def _check_folder() -> None:
    """Raise UserError if the current folder was deleted, at which libraries crash in many ways."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the current folder cannot be used ({error.strerror or error}); change to another",
            exit_code=1,
        ) from error


def _say_lost(error: OSError) -> None:
    if not isinstance(error, BrokenPipeError):  # else the reader has seen enough, as `head` does
        why = error.strerror or error
        print(f"jaxconv: standard output cannot be written ({why})", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    from jaxconv.commands import (
        data,
        look,
        networks,
        playground,
        report,
        runs,
        transfer,
        use,
        weights,
    )

    parser = argparse.ArgumentParser(
        prog="jaxconv",
        description="Train, evaluate and inspect convolutional networks in JAX.",
    )
    parser.add_argument("--version", action="version", version=f"jaxconv {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (runs, transfer, use, look, report, playground, networks, weights, data, doctor):
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
