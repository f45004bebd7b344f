"""The command line: `jaxconv COMMAND`, the same as `python -m jaxconv COMMAND`."""

import argparse
import dataclasses
import itertools
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from jaxconv.errors import LostProcessError, UserError
from jaxconv.version import __version__


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 for trouble with data or files, 2 for a wrong command or config."""
    argv = sys.argv[1:] if argv is None else argv
    overrides = [arg.removeprefix("--config.") for arg in argv if arg.startswith("--config.")]
    args = _parser().parse_args([arg for arg in argv if not arg.startswith("--config.")])
    try:
        code = args.run(args, overrides)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"jaxconv: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read our output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"jaxconv: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        goes_on = {"train": "; the same command goes on from the last checkpoint", "sweep": "; the same command goes on"}
        after = goes_on | {"prepare": "; the same command starts again"}
        print(f"jaxconv: interrupted{after.get(argv[0], '')}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jaxconv", description="Convolutional networks in JAX: trained, measured and looked into.")
    parser.add_argument("--version", action="version", version=f"jaxconv {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_runs(commands)
    _add_sweep(commands)
    _add_use(commands)
    _add_networks(commands)
    _add_data(commands)
    return parser


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


def _add_use(commands: Any) -> None:
    export = commands.add_parser("export", help="write a trained network as one program, with weights and preprocessing inside")
    export.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
    export.add_argument("--out", required=True, metavar="DIR", help="a new folder, for predict --exported=DIR and for other programs")
    export.add_argument("--checkpoint", default="latest", metavar="WHICH", help="latest (the default), best, or a step")
    export.add_argument("--platforms", default="cpu,cuda,tpu", metavar="NAMES", help="cpu, cuda, tpu, rocm; the first three by default")
    export.set_defaults(run=_export)

    predict = commands.add_parser("predict", help="the most probable classes of files, by a trained network")
    predict.add_argument("files", nargs="+", metavar="FILE", help="a file, a folder for all files below it, or - for standard input")
    network = predict.add_mutually_exclusive_group(required=True)
    network.add_argument("--workdir", metavar="DIR", help="folder of the run, or")
    network.add_argument("--exported", metavar="DIR", help="folder of jaxconv export")
    predict.add_argument("--checkpoint", default="latest", metavar="WHICH", help="of the run: latest (the default), best, or a step")
    predict.add_argument("--top", type=_positive, default=5, metavar="N", help="classes to show of each file (5)")
    predict.add_argument("--json", action="store_true", help="print one JSON object a line for each file")
    predict.set_defaults(run=_predict)


def _add_networks(commands: Any) -> None:
    convert = commands.add_parser("convert", help="turn weights of PyTorch into a folder to start from")
    convert.add_argument("file", metavar="FILE.pth|FILE.safetensors", help="torchvision's weights; .pth needs torch")
    convert.add_argument("--model", required=True, metavar="NAME", help="the network, one of jaxconv.list_models()")
    convert.add_argument("--out", required=True, metavar="DIR", help="a new folder, for --config.model.init_from=DIR")
    convert.set_defaults(run=_convert)

    summary = commands.add_parser("summary", help="explain a network, layer by layer, before it runs")
    summary.add_argument("model", metavar="NAME", help="one of jaxconv.list_models(), or text: and a text in the notation")
    summary.add_argument("--input", default="", metavar="H,W,C", help="shape of one example; the network's own by default")
    summary.add_argument("--batch", type=_positive, default=32, metavar="N", help="images of a training step, for its memory (32)")
    summary.add_argument(
        "--classes", type=_positive, default=0, metavar="K", help="classes to tell apart; those it was published for by default"
    )
    summary.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="compute type")
    summary.add_argument(
        "--depth", type=_natural, default=0, metavar="D", help="add up what lies below D levels of modules; 0: show every layer"
    )
    summary.add_argument("--markdown", action="store_true", help="print Markdown")
    summary.add_argument("--compile", action="store_true", help="compile a training step too, and add XLA's figures")
    summary.set_defaults(run=_summary)


def _add_data(commands: Any) -> None:
    data = commands.add_parser(
        "data",
        help="what a source of examples holds, how augmented examples look, and how fast they come",
        epilog="Any key of the config is set by --config.KEY=VALUE, such as --config.data.image_size=224.",
    )
    data.add_argument("source", metavar="SOURCE", help="as in config.data.source: folder:DIR, tfds:NAME, arrays:FILE.npz ...")
    data.add_argument("--split", default="", metavar="NAME", help="split of the data; the config's train_split by default")
    data.add_argument("--config", default="", metavar="FILE.py[:ARGUMENT]", help="an experiment, for its augmentation and settings")
    data.add_argument("--png", default="samples.png", metavar="FILE", help="where to draw a grid of augmented samples (samples.png)")
    data.add_argument("--examples", type=_positive, default=2000, metavar="N", help="how many to look at for sizes, mean and std (2000)")
    data.set_defaults(run=_data)

    prepare = commands.add_parser("prepare", help="prepare a set of TensorFlow Datasets, for the source tfds:NAME")
    prepare.add_argument("name", metavar="NAME", help="TFDS's name, such as cifar10 or imagenet2012")
    prepare.add_argument("--data_dir", default="", metavar="DIR", help="where to put it; TFDS's own folder by default")
    prepare.add_argument("--manual_dir", default="", metavar="DIR", help="folder of files that you fetched, such as ImageNet's two tars")
    prepare.add_argument("--partial", action="store_true", help="accept tars of ImageNet that lack classes or images")
    prepare.set_defaults(run=_prepare)

    wordnet = commands.add_parser("wordnet", help="a class of ImageNet in WordNet: all that it is, up to entity")
    wordnet.add_argument(
        "names", nargs="+", metavar="NAME", help="an id such as n02109961, or a word; of two, what they have in common too"
    )
    wordnet.set_defaults(run=_wordnet)


def _natural(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


def _positive(text: str) -> int:
    return _natural(text, 1)


def _train(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxconv.checks import check_config
    from jaxconv.config import load_config

    config = load_config(args.config, overrides)
    check_config(config)
    from jaxconv.train.processes import join

    join(args.distributed)
    _set_up_jax(config)
    import jax

    from jaxconv.train.loop import announce_to, train
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


def _sweep(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxconv.grid import make_grid
    from jaxconv.sweep import sweep
    from jaxconv.train.loop import announce_to

    announce_to()
    grid = make_grid(args.grid, args.grid_file)
    return sweep(args.config, args.workdir, grid, overrides, args.launcher, args.slurm, args.table)


def _evaluate(args: argparse.Namespace, overrides: list[str]) -> int:
    if overrides:
        raise UserError(f"--config.{overrides[0]}: evaluate takes the config of the run in --workdir; it cannot be changed")
    from jaxconv.train.workdir import expand, saved_config

    _set_up_jax(saved_config(expand(args.workdir)))
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


def _export(args: argparse.Namespace, overrides: list[str]) -> int:
    _no_overrides("export", overrides)
    from jaxconv.train.workdir import expand, saved_config

    _set_up_jax(saved_config(expand(args.workdir)))
    from jaxconv.interop.export import export_workdir

    written = export_workdir(args.workdir, args.out, args.checkpoint, args.platforms.split(","))
    shown = {key: written[key] for key in ("model", "step", "kind", "input_shape", "dtype", "platforms")}
    print(json.dumps({"out": str(expand(args.out, "--out")), **shown, "bytes": written["program"]["bytes"]}))
    return 0


def _predict(args: argparse.Namespace, overrides: list[str]) -> int:
    _no_overrides("predict", overrides)
    exported = args.exported is not None
    if exported and args.checkpoint != "latest":
        raise UserError(f"--checkpoint={args.checkpoint}: an exported network is of one checkpoint; it goes with --workdir")
    from jaxconv.config import default_config
    from jaxconv.train.workdir import expand, saved_config

    _set_up_jax(default_config() if exported else saved_config(expand(args.workdir)))
    from jaxconv.interop.export import load_exported, load_run
    from jaxconv.predict import find_items, predictions

    network = load_exported(args.exported) if exported else load_run(args.workdir, args.checkpoint)
    items = find_items(args.files, network.kind)
    predicted = 0
    for prediction in predictions(network, items, args.top):
        print(json.dumps(prediction.as_dict()) if args.json else prediction.rows())
        predicted += 1
    return 0 if predicted == len(items) else 1


def _convert(args: argparse.Namespace, overrides: list[str]) -> int:
    _no_overrides("convert", overrides)
    from jaxconv.interop.weights import convert
    from jaxconv.train.loop import announce_to

    announce_to()
    print(json.dumps(convert(args.file, args.model, args.out)))
    return 0


def _wordnet(args: argparse.Namespace, overrides: list[str]) -> int:
    _no_overrides("wordnet", overrides)
    from jaxconv.data import wordnet

    print("\n\n".join(map(wordnet.show, args.names)))
    ids = [wordnet.find(name).id for name in args.names]
    for a, b in itertools.pairwise(ids):
        lowest = wordnet.lowest_common_ancestor(a, b)
        print(f"\n{a} and {b}: {lowest}  {wordnet.synsets()[lowest]}, at height {wordnet.heights()[lowest]}")
    return 0


def _no_overrides(command: str, overrides: list[str]) -> None:
    if overrides:
        raise UserError(f"--config.{overrides[0]}: {command} takes no config")


def _summary(args: argparse.Namespace, overrides: list[str]) -> int:
    _no_overrides("summary", overrides)
    from jaxconv.models import create_model, usual_task
    from jaxconv.summary import summarize

    sizes = args.input.split(",") if args.input else []
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes) or len(sizes) == 1:
        raise UserError(f"--input={args.input}: give the sizes of one example with commas between, channels last, such as 224,224,3")
    try:
        usual_shape, usual_classes = usual_task(args.model)
        model = create_model(args.model, args.classes or usual_classes, args.dtype)
    except ValueError as error:
        raise UserError(str(error)) from error
    shape = tuple(map(int, sizes)) or usual_shape
    size = "x".join(map(str, shape))
    try:
        summary = summarize(model, shape, args.batch, args.dtype, compile_step=args.compile)
    except ValueError as error:
        raise UserError(f"{args.model} cannot take images of {size}: {error}") from error
    summary = dataclasses.replace(summary.at_depth(args.depth), title=f"{args.model} on {size}, {args.dtype}")
    print(summary.markdown() if args.markdown else summary)
    return 0


def _data(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxconv.checks import check_config
    from jaxconv.config import default_config, load_config, set_key

    config = load_config(args.config, overrides) if args.config else default_config()
    for override in [] if args.config else overrides:
        key, _, text = override.partition("=")
        set_key(config, key, text)
    config.data.source = args.source
    if not config.steps and not config.epochs:
        config.steps = 1  # none is trained
    check_config(config)
    _set_up_jax(config)
    from jaxconv.survey import show

    rows, result = show(config, args.split or config.data.train_split, args.examples, Path(args.png))
    for name, text in rows:
        print(f"{name:28}{text}")
    print(json.dumps(result))
    return 0


def _prepare(args: argparse.Namespace, overrides: list[str]) -> int:
    _no_overrides("prepare", overrides)
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
