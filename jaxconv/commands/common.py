"""Helpers shared by the commands: numeric arguments, JSON, and setup before JAX initializes."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxconv.errors import UserError
from jaxconv.files import to_json


def natural(text: str, least: int = 0) -> int:
    """Parse a whole number of at least `least`; raises an error that argparse shows."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    return natural(text, 1)


def no_overrides(command: str, overrides: list[str]) -> None:
    """Raise UserError if config keys are given to a command that has no config."""
    if overrides:
        raise UserError(f"--config.{overrides[0]}: {command} takes no config")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add --trust to a command that opens runs by --workdir; `trusting` applies it."""
    parser.add_argument(
        "--trust",
        default="ask",
        choices=("yes", "no", "ask"),
        help="whether to run custom code stored in the workdir of a run: yes, no, or ask (the "
        "default), which asks at a terminal if the workdir belongs to another user, and otherwise "
        "means yes",
    )


@contextlib.contextmanager
def trusting(args: argparse.Namespace) -> Iterator[None]:
    """Apply the --trust of a command, if it has one.

    Raises:
      UserError: --trust is given, but no run is opened.
    """
    if "trust" not in args:
        yield
        return
    if args.trust != "ask" and not args.workdir:
        raise UserError(f"--trust={args.trust}: applies to the code of a run; give a --workdir too")
    from jaxconv.train.code import trusted

    with trusted(args.trust):
        yield


def print_json(record: dict[str, Any]) -> None:
    """Print one line of JSON for programs."""
    print(to_json(record))


def set_up_jax(config: Any) -> None:
    """Set up messages, determinism and the compilation cache, before JAX initializes."""
    if config.deterministic:
        flags = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    import jax

    from jaxconv.train.watch import announce_to

    announce_to()
    if config.compilation_cache == "off" or jax.config.jax_compilation_cache_dir:
        return
    folder = config.compilation_cache
    if folder == "auto":
        folder = os.path.join(
            os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "jaxconv", "compiled"
        )
    try:
        Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if config.compilation_cache != "auto":
            raise UserError(
                f"config.compilation_cache is {folder}: cannot be written ({error.strerror})",
                exit_code=1,
            ) from error
        print(
            f"jaxconv: compiled programs are not cached: {folder} cannot be written "
            f"({error.strerror})",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
    # Small programs too: a run compiles dozens of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
