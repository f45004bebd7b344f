"""The command that serves the interactive page: playground."""

import argparse
import importlib.util
import re
import sys
from typing import Any

from jaxconv.commands.common import add_trust, natural, no_overrides, set_up_jax
from jaxconv.errors import UserError, missing

_PORT = 8400


def add(commands: Any) -> None:
    """Add playground."""
    playground = commands.add_parser(
        "playground",
        help="serve a page to draw X's and O's, see a network's maps and votes, and train it live",
    )
    playground.add_argument(
        "--workdir",
        default="",
        metavar="DIR",
        help="folder of a run on images; an untrained network by default",
    )
    playground.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help="checkpoint of the run: latest (the default), best, or a step",
    )
    playground.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="address to listen on; only this machine by default",
    )
    playground.add_argument(
        "--allowed_hosts",
        default="",
        metavar="NAME,...",
        help="names, besides this machine's own, under which browsers reach the page, such as that "
        "of a proxy",
    )
    playground.add_argument(
        "--port",
        type=natural,
        default=_PORT,
        metavar="N",
        help=f"port to listen on ({_PORT}); 0 for any free port",
    )
    add_trust(playground)
    playground.set_defaults(run=_playground)


def _names(text: str) -> list[str]:
    """Parse --allowed_hosts; raises UserError for what no browser sends as a name."""
    names = text.split(",") if text else []
    for name in names:
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
            raise UserError(
                f"--allowed_hosts={text}: {name!r} is not a name; give names without http:// and "
                "port, separated by commas, such as lab.example.org"
            )
    return names


def _playground(args: argparse.Namespace, overrides: list[str]) -> int:
    no_overrides("playground", overrides)
    if args.port > 65535:
        raise UserError(f"--port={args.port}: must be at most 65535")
    if importlib.util.find_spec("tornado") is None:
        raise missing("the playground", "tornado")
    names = _names(args.allowed_hosts)
    import asyncio

    from jaxconv.config import default_config
    from jaxconv.files import expand
    from jaxconv.train.workdir import saved_config

    config = saved_config(expand(args.workdir)) if args.workdir else default_config()
    set_up_jax(config)
    from jaxconv.look.opened import open_run
    from jaxconv.playground.guard import is_loopback, listen
    from jaxconv.playground.server import Playground, serve

    listening = listen(args.host, args.port)  # fails before a network is compiled in vain
    looked = open_run(args.workdir, args.checkpoint) if args.workdir else None
    if looked is not None and not looked.class_names:
        raise UserError(
            f"--workdir={args.workdir}: the run has no classes, which the page shows; use jaxconv "
            "predict to run it on files"
        )
    if not is_loopback(args.host):
        print(
            f"jaxconv: --host={args.host}: anyone who can reach this machine over the network can "
            "use the page, without a password; without --host only this machine can",
            file=sys.stderr,
        )

    def ready() -> None:
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"http://{host}:{listening.getsockname()[1]}/   (Ctrl-C stops it)", flush=True)

    shared = Playground(looked, config)
    asyncio.run(serve(shared, args.host, listening, ready, allowed_hosts=names))
    print("stopped", flush=True)
    return 0
