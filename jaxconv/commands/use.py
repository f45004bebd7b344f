"""Commands that use a trained network: export, predict."""

import argparse
from typing import Any

from jaxconv.commands.common import add_trust, no_overrides, positive, print_json, set_up_jax
from jaxconv.errors import UserError

_PLATFORMS = "cpu,cuda,tpu"


def add(commands: Any) -> None:
    """Add export and predict."""
    export = commands.add_parser(
        "export",
        help="export a trained network as one program, including weights and preprocessing",
    )
    export.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
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
        "predict", help="predict the classes, boxes or masks of files with a trained network"
    )
    predict.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="a file, a folder (for all files below it), or - for standard input",
    )
    network = predict.add_mutually_exclusive_group(required=True)
    network.add_argument("--workdir", metavar="DIR", help="folder of a run")
    network.add_argument("--exported", metavar="DIR", help="folder written by jaxconv export")
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
    no_overrides("export", overrides)
    from jaxconv.files import expand
    from jaxconv.train.workdir import saved_config

    if args.format != "program":
        return _export_weights(args)
    set_up_jax(saved_config(expand(args.workdir)))
    from jaxconv.weights.export import export_workdir

    written = export_workdir(args.workdir, args.out, args.checkpoint, args.platforms.split(","))
    shown = {
        key: written[key] for key in ("model", "step", "kind", "input_shape", "dtype", "platforms")
    }
    print_json(
        {"out": str(expand(args.out, "--out")), **shown, "bytes": written["program"]["bytes"]}
    )
    return 0


def _export_weights(args: argparse.Namespace) -> int:
    from jaxconv.files import expand
    from jaxconv.train.workdir import saved_config
    from jaxconv.weights.write import FORMATS, export_weights

    if args.platforms != _PLATFORMS:
        raise UserError(f"--platforms={args.platforms}: is for a program, not for weights alone")
    set_up_jax(saved_config(expand(args.workdir)))
    written = export_weights(args.workdir, args.out, args.checkpoint, args.format)
    file = str(expand(args.out, "--out") / FORMATS[args.format])
    print_json({"file": file, **{key: written[key] for key in ("model", "step")}})
    return 0


def _predict(args: argparse.Namespace, overrides: list[str]) -> int:
    exported = args.exported is not None
    if exported and args.checkpoint != "latest":
        raise UserError(
            f"--checkpoint={args.checkpoint}: an exported network has only one checkpoint; use it "
            "with --workdir"
        )
    from jaxconv.config import default_config
    from jaxconv.files import check_new, expand
    from jaxconv.train.other_data import check_takes
    from jaxconv.train.workdir import saved_config

    if exported:
        no_overrides("predict --exported", overrides)
    check_takes("predict", overrides)
    if args.out:
        check_new(args.out)
    set_up_jax(default_config() if exported else saved_config(expand(args.workdir)))
    from jaxconv.predict import find_items, predict_items
    from jaxconv.predicted import write_pictures
    from jaxconv.weights.export import load_exported, load_run

    network = (
        load_exported(args.exported)
        if exported
        else load_run(args.workdir, args.checkpoint, overrides)
    )
    items = find_items(args.files, network.kind, network.frames)
    predicted, found = 0, predict_items(network, items, args.top)
    if args.out:
        found = write_pictures(network, found, args.out)
    for prediction in found:
        print_json(prediction.as_dict()) if args.json else print(prediction.rows())
        predicted += 1
    return 0 if predicted == len(items) else 1
