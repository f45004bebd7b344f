"""The command line: `jaxconv COMMAND`, the same as `python -m jaxconv COMMAND`."""

import argparse
import os
import sys

from jaxconv.commands import data, look, networks, playground, report, runs, use
from jaxconv.commands.common import trusting
from jaxconv.errors import UserError
from jaxconv.files import print_any_name
from jaxconv.version import __version__


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
      The exit code: 0, 1 for a problem with data or files, or 2 for a wrong command or config.
    """
    print_any_name()
    argv = sys.argv[1:] if argv is None else argv
    overrides = [arg.removeprefix("--config.") for arg in argv if arg.startswith("--config.")]
    args = _parser().parse_args([arg for arg in argv if not arg.startswith("--config.")])
    try:
        with trusting(args):
            code = args.run(args, overrides)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"jaxconv: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"jaxconv: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        goes_on = {
            "train": "; the same command resumes from the last checkpoint",
            "sweep": "; the same command resumes",
        }
        after = goes_on | {"prepare": "; the same command starts again"}
        print(f"jaxconv: interrupted{after.get(argv[0], '')}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxconv",
        description="Train, evaluate and inspect convolutional networks in JAX.",
    )
    parser.add_argument("--version", action="version", version=f"jaxconv {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (runs, use, look, report, playground, networks, data):
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
