"""The command about weights that others have trained: weights."""

import argparse
import fnmatch
from collections.abc import Sequence
from typing import Any

from jaxconv.commands.common import no_overrides, print_json, start_jax
from jaxconv.errors import UserError, columns, human_bytes, nearest, padded


def add(commands: Any) -> None:
    """Add weights."""
    weights = commands.add_parser(
        "weights", help="list published weights, and pin those that you use"
    )
    weights.add_argument(
        "network",
        nargs="?",
        default="*",
        metavar="NETWORK",
        help="one of jaxconv.list_models(), or a pattern such as 'resnet*'; all by default",
    )
    weights.add_argument(
        "--pin",
        default="",
        metavar="TAG",
        help="fetch these weights of NETWORK, or hf:OWNER/REPO, and keep their digest and commit: "
        "what is fetched later must be the same",
    )
    weights.add_argument("--json", action="store_true", help="print one line of JSON for each")
    weights.set_defaults(run=_weights)


def _weights(args: argparse.Namespace, overrides: list[str]) -> int:
    no_overrides("weights", overrides)
    if args.pin:
        return _pin(args.network, args.pin)
    from jaxconv.models import list_models
    from jaxconv.weights.published import published

    rows = [row for row in published() if fnmatch.fnmatch(row.network, args.network)]
    if not rows:
        known = list_models(args.network)
        if known:
            raise UserError(f"{args.network}: no published weights are known for it", exit_code=1)
        raise UserError(
            f"no network is called {args.network!r}{nearest(args.network, list_models())}; "
            "`jaxconv.list_models()` lists all"
        )
    described = [_describe(row) for row in rows]
    if args.json:
        for one in described:
            print_json(one)
        return 0
    names = ("name", "published", "size", "licence", "cached", "images", "source")
    print(_table(names, [[one[name] for name in names] for one in described]))
    return 0


def _describe(row: Any) -> dict[str, str]:
    from jaxconv.weights.fetch import cached
    from jaxconv.weights.published import pins

    here = cached(row.place, row.revision)
    return {
        "name": row.name,
        "published": row.published or "-",
        "size": human_bytes(row.bytes) if row.bytes else "-",
        "licence": row.licence if row.commercial else f"{row.licence} (not commercial)",
        "cached": ("pinned" if row.place in pins() else "yes") if here else "-",
        "images": str(row.preprocessing),
        "source": row.place + (f"@{row.revision}" if row.revision else ""),
    }


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, *rows]
    widths = [max(columns(line[n]) for line in lines) for n in range(len(names))]
    return "\n".join(
        "  ".join(padded(text, width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _pin(network: str, text: str) -> int:
    from jaxconv.train.watch import announce_to
    from jaxconv.weights.pretrained import find_weights, pin_weights
    from jaxconv.weights.published import pins_file

    if network == "*" and not text.startswith("hf:") and "." not in text:
        raise UserError(f"--pin={text}: of which network? Give `jaxconv weights NETWORK --pin=TAG`")
    start_jax()
    announce_to()
    weights = find_weights(text, (network,), "--pin")
    kept = pin_weights(weights)
    print_json(
        {"pinned": weights.place, "sha256": kept.sha256, "revision": kept.revision}
        | {"file": str(pins_file())}
    )
    return 0
