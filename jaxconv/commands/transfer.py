"""Commands that use weights that others have trained: finetune, neighbours."""

import argparse
from typing import Any

from jaxconv.commands.common import add_network, add_trust, positive, print_json, set_up_jax
from jaxconv.commands.runs import add_run, run_training
from jaxconv.errors import UserError
from jaxconv.values import AnyConfig


def add(commands: Any) -> None:
    """Add finetune and neighbours."""
    finetune = commands.add_parser(
        "finetune",
        help="train on your images from weights that others have trained, by a usual recipe",
        epilog="It is train with a config that it makes; set any key of it by --config.KEY=VALUE.",
    )
    finetune.add_argument("source", metavar="SOURCE", help="the examples, such as folder:DIR")
    add_network(finetune, required=True)
    finetune.add_argument(
        "--probe",
        default="",
        metavar="linear",
        help="train the last layer alone, on frozen features (linear probing)",
    )
    finetune.add_argument(
        "--norm",
        default="tracked",
        metavar="HOW",
        help="BatchNorm: tracked (the default) gathers statistics of the new images, frozen keeps "
        "those of the weights, which is better for batches of a few images",
    )
    add_run(finetune)
    finetune.set_defaults(run=_finetune)

    neighbours = commands.add_parser(
        "neighbours",
        help="classify by the nearest neighbours of features: how good they are, without training",
        epilog="Set any key of the config by --config.KEY=VALUE, such as "
        "--config.data.eval_split=validation.",
    )
    neighbours.add_argument(
        "source", nargs="?", default="", metavar="SOURCE", help="the examples, such as folder:DIR"
    )
    neighbours.add_argument("--workdir", default="", metavar="DIR", help="of a run; or")
    add_network(neighbours)
    neighbours.add_argument(
        "--k", type=positive, default=20, metavar="N", help="neighbours that vote (20)"
    )
    add_trust(neighbours)
    neighbours.set_defaults(run=_neighbours)


def _finetune(args: argparse.Namespace, overrides: list[str]) -> int:
    def make_config() -> AnyConfig:
        from jaxconv.finetune import finetune_config

        made = finetune_config(
            args.source, args.model, args.pretrained, overrides, args.probe, args.norm
        )
        print(*made.said, sep="\n", flush=True)
        return made.config

    return run_training(args, make_config)


def _neighbours(args: argparse.Namespace, overrides: list[str]) -> int:
    if bool(args.workdir) == bool(args.model) or bool(args.model) != bool(args.pretrained):
        raise UserError("neighbours: give --workdir, or --model and --pretrained")
    if args.model and not args.source:
        raise UserError("neighbours: give a SOURCE, such as folder:DIR")
    from jaxconv.evaluation.neighbours import of_run, of_weights
    from jaxconv.files import expand
    from jaxconv.train.workdir import saved_config

    if args.workdir:
        set_up_jax(saved_config(expand(args.workdir)))
        if args.source:
            overrides = [f"data.source={args.source}", *overrides]
        found = of_run(args.workdir, args.k, overrides)
    else:
        from jaxconv.finetune import finetune_config
        from jaxconv.weights.preprocessing import networks_of
        from jaxconv.weights.pretrained import read_weights

        config = finetune_config(
            args.source, args.model, args.pretrained, overrides, "linear"
        ).config
        set_up_jax(config)
        networks = networks_of(config)
        found = of_weights(config, args.k, lambda place: read_weights(place, networks))
    low, high = found.interval
    print(
        f"{found.k} nearest neighbours by {found.width:,} features, {len(found.right):,} examples "
        f"against {found.known:,}: top-1 {100 * found.top1:.2f} % "
        f"[{100 * low:.2f}, {100 * high:.2f}]"
    )
    print_json(found.record())
    return 0
