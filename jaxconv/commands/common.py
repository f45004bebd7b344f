"""Helpers shared by the commands: numeric arguments, JSON, and setup before JAX initializes."""

import argparse
import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxconv.disk import cache_folder
from jaxconv.errors import UserError, human_bytes, short
from jaxconv.files import to_json
from jaxconv.streams import lost_output
from jaxconv.train.code import TRUST, trusted


def natural(text: str, least: int = 0) -> int:
    """Parse a whole number of at least `least`; raises an error that argparse shows."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    return natural(text, 1)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The other arguments, and the `KEY=VALUE` of each --config.KEY=VALUE or --config.KEY VALUE."""
    others: list[str] = []
    overrides: list[str] = []
    left = [*argv]
    while left:
        argument = left.pop(0)
        if not argument.startswith("--config."):
            others.append(argument)
            continue
        override = argument.removeprefix("--config.")
        if "=" not in override and left and not left[0].startswith("--"):
            override = f"{override}={left.pop(0)}"
        overrides.append(override)
    return others, overrides


def no_overrides(command: str, overrides: list[str]) -> None:
    """Raise UserError if config keys are given to a command that has no config."""
    if overrides:
        raise UserError(f"--config.{overrides[0]}: {command} takes no config")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add --trust to a command that opens runs by --workdir; `trusting` applies it."""
    parser.add_argument(
        "--trust",
        default="ask",
        choices=TRUST,
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
    if args.trust != "ask" and not (args.workdir or getattr(args, "runs", ())):
        raise UserError(f"--trust={args.trust}: applies to the code of a run; give a --workdir too")
    with trusted(args.trust):
        yield


def add_network(command: argparse.ArgumentParser, required: bool = False) -> None:
    """Add --model and --pretrained, which name weights that others have trained."""
    command.add_argument(
        "--model", required=required, default="", metavar="NAME", help="the network"
    )
    command.add_argument(
        "--pretrained",
        required=required,
        default="",
        metavar="WEIGHTS",
        help="its weights, as config.model.init_from takes them: a name of `jaxconv weights`, a "
        "file or a folder",
    )


class Opened(NamedTuple):
    """The runs that a command uses.

    Attributes:
      workdirs: one or several.
      overrides: of their configs.
      weights: what --model and --pretrained have named, for people; empty for runs.
      some_classes: whether the set to evaluate on lacks some of the classes of these weights.
    """

    workdirs: list[str]
    overrides: list[str]
    weights: str = ""
    some_classes: bool = False


@contextlib.contextmanager
def opened_runs(
    args: argparse.Namespace, command: str, overrides: list[str], split: str | None = None
) -> Iterator[Opened]:
    """Start JAX with the config of --workdir; or make a run of --model and --pretrained, which
    lasts as long as the context.

    Args:
      args: with `workdir`, `model`, `pretrained` and `checkpoint`.
      command: for messages.
      overrides: of the config. The run of weights has them in it already.
      split: as for `as_run`.

    Raises:
      UserError: both or neither are given, or they cannot be opened.
    """
    from jaxconv.config import default_config
    from jaxconv.files import expand
    from jaxconv.train.workdir import saved_config

    if bool(args.workdir) == bool(args.model) or bool(args.model) != bool(args.pretrained):
        raise UserError(f"{command}: give --workdir, or --model and --pretrained")
    if args.workdir:
        workdirs = [args.workdir] if isinstance(args.workdir, str) else args.workdir
        set_up_jax(saved_config(expand(workdirs[0])))
        yield Opened(workdirs, overrides)
        return
    if args.checkpoint != "latest":
        raise UserError(f"--checkpoint={args.checkpoint}: is of a run; use it with --workdir")
    set_up_jax(default_config())
    from jaxconv.weights.as_run import as_run

    with as_run(args.model, args.pretrained, overrides, split) as run:
        yield Opened([run.workdir], [], run.weights, run.some_classes)


# The most characters of a line of JSON on a terminal, unless --json is given.
_SHORT = 200


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json to a command that ends with `print_json`."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the whole last line on a terminal too; elsewhere it is always whole",
    )


def print_json(record: dict[str, Any], whole: bool = True) -> None:
    """Print one line of JSON for programs; unless `whole`, it is short on a terminal."""
    text = to_json(record)
    if whole or len(text) <= _SHORT or not sys.stdout.isatty():
        print(text)
        return
    shown: dict[str, Any] = {}
    for name, value in record.items():
        more = shown | {name: value}
        if not isinstance(value, (dict, list, tuple)) and len(to_json(more)) <= _SHORT:
            shown = more
    print(f"{to_json(shown)[:-1]}, ...}}  (--json prints all {human_bytes(len(text))})")


@contextlib.contextmanager
def results_kept(folder: Path) -> Iterator[None]:
    """Print what a folder holds; if standard output cannot be written, report that and continue.

    The work is done, and with another exit code a launcher would start it again.
    """
    with contextlib.suppress(OSError):
        yield
    if lost := lost_output():
        print(
            f"jaxconv: standard output cannot be written ({lost.strerror or lost}); the results "
            f"are in {folder}",
            file=sys.stderr,
        )


def set_up_jax(config: Any) -> None:
    """Set up messages, determinism, types and the compilation cache, and start JAX.

    Raises:
      UserError: the platform in JAX_PLATFORMS is not available, or the cache cannot be written.
    """
    if config.deterministic:
        flags = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    # Pillow warns of damaged EXIF data and many pixels; images that cannot be read are reported.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    from jaxconv.train.watch import announce_to

    announce_to()
    _set_up_cache(config.compilation_cache)
    start_jax()


def start_jax() -> None:
    """Find the devices; raises UserError if JAX_PLATFORMS names one that is not available."""
    import jax

    # With JAX_ENABLE_X64=1 a run would have other numbers, and could not resume without it.
    jax.config.update("jax_enable_x64", False)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: cuda without its plugin
        asked = os.environ.get("JAX_PLATFORMS", "")
        if not asked:
            raise
        raise UserError(
            f"JAX_PLATFORMS={asked}: JAX finds no such device here"
            f"{f' ({short(error, 200)})' if str(error) else ''}; unset it to use what is there, or "
            "install JAX for the device, such as jax[cuda12] or jax[tpu]",
            exit_code=1,
        ) from error


def _set_up_cache(place: str) -> None:
    import jax

    # jax.config's options are not in its types.
    given = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if place == "off" or given:
        return
    folder = cache_folder("compiled") if place == "auto" else Path(place)
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        why = f"cannot be written ({getattr(error, 'strerror', None) or error})"
        if place != "auto":
            raise UserError(f"config.compilation_cache is {folder}: {why}", exit_code=1) from error
        print(f"jaxconv: compiled programs are not cached: {folder} {why}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs too: a run compiles dozens of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
