"""Commands that use a trained network: export, predict."""

import argparse
from typing import Any

from jaxconv.commands.common import (
    add_network,
    add_trust,
    no_overrides,
    opened_runs,
    positive,
    print_json,
    set_up_jax,
)
from jaxconv.errors import UserError

_PLATFORMS = "cpu,cuda,tpu"


def add(commands: Any) -> None:
    """Add export and predict."""
    export = commands.add_parser(
        "export",
        help="export a trained network as one program, including weights and preprocessing",
        epilog="With --model and --pretrained, --config.data.mean=0.5 and the like say what the "
        "weights want, if they do not.",
    )
    export.add_argument("--workdir", metavar="DIR", help="folder of the run; or")
    add_network(export)
    export.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="new folder to write, for predict --exported=DIR and for other programs",
    )
    export.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help="checkpoint of the run: latest (the default), best, or a step",
    )
    export.add_argument(
        "--platforms",
        default=_PLATFORMS,
        metavar="NAMES",
        help="platforms to export for: cpu, cuda, tpu, rocm; the first three by default",
    )
    export.add_argument(
        "--format",
        default="program",
        metavar="FORM",
        help="program (the default); or safetensors or torch: the weights alone, under "
        "torchvision's names, in a file that it and timm load",
    )
    add_trust(export)
    export.set_defaults(run=_export)

    predict = commands.add_parser(
        "predict",
        help="predict the classes, boxes or masks of files with a trained network",
        epilog="With --model and --pretrained, --config.data.mean=0.5 and the like say what the "
        "weights want, if they do not.",
    )
    predict.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="a file, a folder (for all files below it), or - for standard input",
    )
    network = predict.add_mutually_exclusive_group()
    network.add_argument("--workdir", metavar="DIR", help="folder of a run; or")
    network.add_argument("--exported", metavar="DIR", help="folder written by jaxconv export; or")
    add_network(predict)
    predict.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help="checkpoint of the run: latest (the default), best, or a step",
    )
    predict.add_argument(
        "--top", type=positive, default=5, metavar="N", help="classes to show per file (5)"
    )
    predict.add_argument(
        "--out",
        default="",
        metavar="DIR",
        help="new folder for a picture of each image with its prediction, and for masks as PNG",
    )
    predict.add_argument("--json", action="store_true", help="print one line of JSON per file")
    add_trust(predict)
    predict.set_defaults(run=_predict)


def _export(args: argparse.Namespace, overrides: list[str]) -> int:
    if args.workdir:
        no_overrides("export", overrides)
    if args.format != "program" and args.platforms != _PLATFORMS:
        raise UserError(f"--platforms={args.platforms}: is for a program, not for weights alone")
    from jaxconv.files import check_new, expand

    check_new(args.out)
    with opened_runs(args, "export", overrides) as opened:
        from jaxconv.weights.export import export_workdir
        from jaxconv.weights.write import FORMATS, export_weights

        workdir, out = opened.workdirs[0], expand(args.out, "--out")
        if args.format != "program":
            written = export_weights(workdir, args.out, args.checkpoint, args.format)
            shown = {"file": str(out / FORMATS[args.format])}
            print_json({**shown, **{key: written[key] for key in ("model", "step")}})
            return 0
        platforms = args.platforms.split(",")
        written = export_workdir(workdir, args.out, args.checkpoint, platforms)
    keys = ("model", "step", "kind", "input_shape", "dtype", "platforms")
    shown = {key: written[key] for key in keys}
    print_json({"out": str(out), **shown, "bytes": written["program"]["bytes"]})
    return 0


def _predict(args: argparse.Namespace, overrides: list[str]) -> int:
    if args.exported is not None and args.checkpoint != "latest":
        raise UserError(
            f"--checkpoint={args.checkpoint}: an exported network has only one checkpoint; use it "
            "with --workdir"
        )
    from jaxconv.files import check_new

    if args.out:
        check_new(args.out)
    network = _network(args, overrides)
    from jaxconv.predict import find_items, predict_items
    from jaxconv.predicted import write_pictures

    items = find_items(args.files, network.kind, network.frames)
    predicted, found = 0, predict_items(network, items, args.top)
    if args.out:
        found = write_pictures(network, found, args.out)
    for prediction in found:
        print_json(prediction.as_dict()) if args.json else print(prediction.rows())
        predicted += 1
    return 0 if predicted == len(items) else 1


def _network(args: argparse.Namespace, overrides: list[str]) -> Any:
    """The network that predict uses."""
    from jaxconv.config import default_config
    from jaxconv.train.other_data import check_takes

    by_name = bool(args.model or args.pretrained)
    if (args.exported is not None) + bool(args.workdir) + by_name != 1:
        raise UserError("predict: give --workdir, --exported, or --model and --pretrained")
    if args.exported is not None:
        no_overrides("predict --exported", overrides)
        set_up_jax(default_config())
        from jaxconv.weights.export import load_exported

        return load_exported(args.exported)
    if args.workdir:
        check_takes("predict", overrides)
    with opened_runs(args, "predict", overrides) as opened:
        from jaxconv.weights.export import load_run

        return load_run(opened.workdirs[0], args.checkpoint, opened.overrides)
