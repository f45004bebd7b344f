"""The command line: `jaxconv COMMAND`, the same as `python -m jaxconv COMMAND`."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from jaxconv.errors import UserError
from jaxconv.version import __version__


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 for trouble with data or files, 2 for a wrong command or config."""
    argv = sys.argv[1:] if argv is None else argv
    overrides = [arg.removeprefix("--config.") for arg in argv if arg.startswith("--config.")]
    args = _parser().parse_args([arg for arg in argv if not arg.startswith("--config.")])
    try:
        return args.run(args, overrides)
    except UserError as error:
        print(f"jaxconv: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"jaxconv: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        after = {"train": "; the same command goes on from the last checkpoint", "prepare": "; the same command starts again"}
        print(f"jaxconv: interrupted{after.get(argv[0], '')}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jaxconv", description="Convolutional networks in JAX: trained, measured and looked into.")
    parser.add_argument("--version", action="version", version=f"jaxconv {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = commands.add_parser(
        "train",
        help="train a network as a config says, or go on where a run was left",
        epilog="Any key of the config is set by --config.KEY=VALUE, such as --config.optimizer.learning_rate=0.05.",
    )
    train.add_argument("--config", required=True, metavar="FILE.py[:ARGUMENT]", help="the experiment: a file with get_config()")
    train.add_argument("--workdir", required=True, metavar="DIR", help="folder for everything that the run writes")
    train.add_argument("--restart", action="store_true", help="move a run that is in the folder aside, and begin anew")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="evaluate what a run has trained, every example exactly once")
    evaluate.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
    evaluate.add_argument("--split", default="", metavar="NAME", help="split of the data; the config's eval_split by default")
    evaluate.add_argument("--checkpoint", default="latest", metavar="WHICH", help="latest (the default), best, or a step")
    evaluate.set_defaults(run=_evaluate)

    data = commands.add_parser(
        "data",
        help="what a source of examples holds, how augmented examples look, and how fast they come",
        epilog="Any key of the config is set by --config.KEY=VALUE, such as --config.data.image_size=224.",
    )
    data.add_argument("source", metavar="SOURCE", help="as in config.data.source: folder:DIR, tfds:NAME, arrays:FILE.npz ...")
    data.add_argument("--split", default="", metavar="NAME", help="split of the data; the config's train_split by default")
    data.add_argument("--config", default="", metavar="FILE.py[:ARGUMENT]", help="an experiment, for its augmentation and settings")
    data.add_argument("--png", default="samples.png", metavar="FILE", help="where to draw a grid of augmented samples (samples.png)")
    data.add_argument("--examples", type=int, default=2000, metavar="N", help="how many to look at for sizes, mean and std (2000)")
    data.set_defaults(run=_data)

    prepare = commands.add_parser("prepare", help="prepare a set of TensorFlow Datasets, for the source tfds:NAME")
    prepare.add_argument("name", metavar="NAME", help="TFDS's name, such as cifar10 or imagenet2012")
    prepare.add_argument("--data_dir", default="", metavar="DIR", help="where to put it; TFDS's own folder by default")
    prepare.add_argument("--manual_dir", default="", metavar="DIR", help="folder of files that you fetched, such as ImageNet's two tars")
    prepare.add_argument("--partial", action="store_true", help="accept tars of ImageNet that lack classes or images")
    prepare.set_defaults(run=_prepare)
    return parser


def _train(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxconv.config import check_config, load_config

    config = load_config(args.config, overrides)
    check_config(config)
    _set_up_jax(config)
    from jaxconv.train.loop import train
    from jaxconv.train.workdir import expand

    result = train(config, args.workdir, args.restart)
    print(f"workdir: {expand(args.workdir)}")
    print(json.dumps(result))
    return 0


def _evaluate(args: argparse.Namespace, overrides: list[str]) -> int:
    if overrides:
        raise UserError(f"--config.{overrides[0]}: evaluate takes the config of the run in --workdir; it cannot be changed")
    from jaxconv.train.workdir import expand, saved_config

    _set_up_jax(saved_config(expand(args.workdir)))
    from jaxconv.evaluate import evaluate_workdir

    result = evaluate_workdir(args.workdir, args.split, args.checkpoint)
    wrong = round((1 - result["top1"]) * result["examples"])
    for name, text in (
        ("step", f"{result.pop('step'):,}"),
        ("split", result["split"]),
        ("examples", f"{result['examples']:,}"),
        ("loss", f"{result['loss']:.4f}"),
        ("top-1", f"{100 * result['top1']:.2f} %  ({wrong:,} wrong)"),
    ):
        print(f"{name:10}{text}")
    print(json.dumps(result))
    return 0


def _data(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxconv.config import check_config, default_config, load_config, set_key

    config = load_config(args.config, overrides) if args.config else default_config()
    for override in [] if args.config else overrides:
        key, _, text = override.partition("=")
        set_key(config, key, text)
    config.data.source = args.source
    if not config.steps and not config.epochs:
        config.steps = 1  # none is trained
    if args.examples < 1:
        raise UserError(f"--examples={args.examples}: must be at least 1")
    check_config(config)
    _set_up_jax(config)
    from jaxconv.data.survey import show

    rows, result = show(config, args.split or config.data.train_split, args.examples, Path(args.png))
    for name, text in rows:
        print(f"{name:28}{text}")
    print(json.dumps(result))
    return 0


def _prepare(args: argparse.Namespace, overrides: list[str]) -> int:
    if overrides:
        raise UserError(f"--config.{overrides[0]}: prepare takes no config")
    from jaxconv.data.prepare import prepare
    from jaxconv.train.loop import announce_to

    announce_to()
    print(prepare(args.name, args.data_dir, args.manual_dir, args.partial))
    return 0


def _set_up_jax(config: Any) -> None:
    """What must be settled before JAX looks for devices: messages, determinism, and the cache of compiled programs."""
    if config.deterministic:
        flags = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    import jax

    from jaxconv.train.loop import announce_to

    announce_to()
    if config.compilation_cache == "off" or jax.config.jax_compilation_cache_dir:
        return
    folder = config.compilation_cache
    if folder == "auto":
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "jaxconv", "compiled")
    try:
        Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if config.compilation_cache != "auto":
            raise UserError(f"config.compilation_cache is {folder}: cannot be written ({error.strerror})", exit_code=1) from error
        print(f"jaxconv: compiled programs are not kept: {folder} cannot be written ({error.strerror})", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
    # Small programs too: a run compiles dozens of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


if __name__ == "__main__":
    sys.exit(main())
