"""Commands about networks and their weights: summary, convert."""

import argparse
import dataclasses
from typing import Any

from jaxconv.commands.common import natural, no_overrides, positive, print_json, start_jax
from jaxconv.errors import UserError


def add(commands: Any) -> None:
    """Add convert and summary."""
    convert = commands.add_parser(
        "convert", help="convert PyTorch weights to a folder that training can start from"
    )
    convert.add_argument(
        "file",
        metavar="FILE",
        help="weights by torchvision's names: safetensors, what torch.save wrote, .npz or ONNX; or "
        "a name of `jaxconv weights`",
    )
    convert.add_argument(
        "--model", required=True, metavar="NAME", help="the network, one of jaxconv.list_models()"
    )
    convert.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="new folder to write, for --config.model.init_from=DIR",
    )
    convert.add_argument(
        "--weights_key",
        default="",
        metavar="NAME",
        help="of several dictionaries in the file, the one to take, such as model_ema or "
        "state_dict_ema",
    )
    convert.set_defaults(run=_convert)

    summary = commands.add_parser(
        "summary", help="explain a network layer by layer, before it runs"
    )
    summary.add_argument(
        "model",
        metavar="NAME",
        help="one of jaxconv.list_models(), or text: followed by the notation",
    )
    summary.add_argument(
        "--input",
        default="",
        metavar="H,W,C",
        help="shape of one example; the network's usual one by default",
    )
    summary.add_argument(
        "--batch",
        type=positive,
        default=32,
        metavar="N",
        help="images per training step, for the memory estimate (32)",
    )
    summary.add_argument(
        "--classes",
        type=positive,
        default=0,
        metavar="K",
        help="number of classes; as published by default",
    )
    summary.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="compute type",
    )
    summary.add_argument(
        "--depth",
        type=natural,
        default=0,
        metavar="D",
        help="sum up layers below D levels of modules; 0 shows every layer",
    )
    summary.add_argument("--markdown", action="store_true", help="print Markdown")
    summary.add_argument(
        "--compile", action="store_true", help="also compile a training step, and add XLA's figures"
    )
    summary.set_defaults(run=_summary)


def _summary(args: argparse.Namespace, overrides: list[str]) -> int:
    no_overrides("summary", overrides)
    from jaxconv.models import create_model, usual_task
    from jaxconv.summary import summarize

    sizes = args.input.split(",") if args.input else []
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes) or len(sizes) == 1:
        raise UserError(
            f"--input={args.input}: give the sizes of one example, separated by commas, channels "
            "last, such as 224,224,3"
        )
    try:
        usual_shape, usual_classes = usual_task(args.model)
        model = create_model(args.model, args.classes or usual_classes, args.dtype)
    except ValueError as error:
        raise UserError(str(error)) from error
    start_jax()
    shape = tuple(map(int, sizes)) or usual_shape
    size = "x".join(map(str, shape))
    try:
        summary = summarize(model, shape, args.batch, args.dtype, compile_step=args.compile)
    except ValueError as error:
        raise UserError(f"{args.model} cannot take images of {size}: {error}") from error
    summary = dataclasses.replace(
        summary.at_depth(args.depth), title=f"{args.model} on {size}, {args.dtype}"
    )
    print(summary.markdown() if args.markdown else summary)
    return 0


def _convert(args: argparse.Namespace, overrides: list[str]) -> int:
    no_overrides("convert", overrides)
    from jaxconv.files import expand
    from jaxconv.train.watch import announce_to
    from jaxconv.weights.convert import convert

    start_jax()
    announce_to()
    written = convert(args.file, args.model, args.out, args.weights_key)
    print_json({"out": str(expand(args.out, "--out")), **written})
    return 0
