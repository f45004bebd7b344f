"""The server: the page's files, and what all open pages share."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import importlib.resources
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterable
from typing import Any

import tornado.httpserver
import tornado.web

from jaxconv.data import xo
from jaxconv.errors import UserError
from jaxconv.look.opened import OpenedNetwork
from jaxconv.playground.connection import MOST_BYTES, MOST_PAGES, Page
from jaxconv.playground.guard import File, own_names
from jaxconv.playground.learner import LIMITS
from jaxconv.playground.shown import DRAWN, MOST_PIXELS, MOST_POINTS, NetworkView, make_view
from jaxconv.playground.trainer import WINDOW, Trainer
from jaxconv.tasks import Task

log = logging.getLogger(__name__)

_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_GOING = 1001


@dataclasses.dataclass(frozen=True)
class RunView:
    """The network of a run, ready to be shown, and its test images, which are read on demand."""

    title: str
    shown: NetworkView
    variables: Any
    source: Any


class Playground:
    """What all pages share: the network of the run, if there is one, and the trainer.

    Args:
      looked: the opened run; None starts with an untrained network for X's and O's.
      config: the run's or the default one; its data is trained on.

    Attributes:
      shape: of the pictures, (H, W, C).
      class_names: one name per class.
      trains: whether the page can train a network on these pictures: it votes for classes.
      trainer: of the network that is trained live.
      pages: the open WebSockets.

    Raises:
      UserError: the inputs of the run are not images.
    """

    def __init__(self, looked: OpenedNetwork | None, config: Any):
        self.config, self.run = config, None
        self.trains = looked is None or self._votes(looked)
        if looked is None:
            self.shape: tuple[int, ...] = (
                config.data.xo.size,
                config.data.xo.size,
                config.data.xo.channels,
            )
            self.class_names = xo.CLASS_NAMES
        else:
            if looked.kind != "image":
                raise UserError(
                    f"{looked.title}: takes {looked.kind}s; the playground is for images"
                )
            self.shape, self.class_names = looked.input_shape, looked.class_names
            task = None if self._votes(looked) else looked.task
            shown = make_view(
                looked.model,
                looked.preprocess,
                looked.variables,
                self.shape,
                self.class_names,
                task,
            )
            self.run = RunView(
                looked.title, shown, looked.variables, None if self.is_xo else _tests_of(looked)
            )
        self.pages: set[Page] = set()
        self.workers = concurrent.futures.ThreadPoolExecutor(2, "answers")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told: asyncio.Event | None = None
        self.trainer = Trainer(config, self.shape, self.class_names, self._changed)
        if looked is None:
            self.trainer.set()

    @property
    def is_xo(self) -> bool:
        """Whether the pictures are single X's and O's, of which samples can be drawn."""
        return self.config.data.source == "xo"

    @property
    def pen(self) -> float | None:
        """The pen's weight for drawing such pictures; None if they cannot be drawn."""
        return DRAWN.get(self.config.data.source)

    @staticmethod
    def _votes(looked: OpenedNetwork) -> bool:
        """Whether the network votes for classes, and draws nothing over the picture."""
        return type(looked.task).overlay is Task.overlay

    def network(self, which: str) -> tuple[str, int, NetworkView, Any] | None:
        """(title, steps, network, variables) of the run's or the trained network, None before."""
        if which == "run" and self.run:
            return self.run.title, -1, self.run.shown, self.run.variables
        found = self.trainer.network
        return ("chain, trained here", self.trainer.step, *found) if found else None

    def training(self) -> dict[str, Any]:
        """The state of the training, for the page."""
        trainer = self.trainer
        return {
            "kind": "training",
            "status": trainer.status,
            "message": trainer.message,
            "step": trainer.step,
            "parameters": trainer.parameters,
            "seconds": trainer.seconds,
            "settings": dataclasses.asdict(trainer.settings),
            "rate": trainer.rate,
            "points": [
                [point.step, *(_finite(v) for v in (point.loss, point.accuracy))]
                for point in trainer.points
            ],
        }

    def welcome(self) -> dict[str, Any]:
        """The first message to a page: what is available, and the limits."""
        return {
            "kind": "welcome",
            "shape": self.shape,
            "classes": self.class_names,
            "xo": self.is_xo,
            "pen": self.pen,
            "trains": self.trains,
            "run": self.run.title if self.run else "",
            "tests": len(self.run.source) if self.run and self.run.source is not None else 0,
            "variation": dataclasses.asdict(self.trainer.variation),
            "limits": LIMITS,
            "window": WINDOW,
            "most": {
                "bytes": MOST_BYTES,
                "pixels": MOST_PIXELS,
                "points": MOST_POINTS,
                "pages": MOST_PAGES,
            },
        }

    def _changed(self) -> None:
        """Wake the loop that updates the pages; called in the trainer's thread."""
        if self._loop is not None and self._told is not None:
            with contextlib.suppress(RuntimeError):  # the loop is already closed
                self._loop.call_soon_threadsafe(self._told.set)

    async def tell(self) -> None:
        """Wake all pages whenever the training changes; runs forever."""
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        while True:
            await self._told.wait()
            self._told.clear()
            for page in self.pages:
                page.news.set()

    def close(self) -> None:
        """End the training and close the pages."""
        self.trainer.close()
        pages, self.pages = self.pages, set()
        for page in pages:
            page.close(_GOING, "the playground has ended")
        self.workers.shutdown()


def _tests_of(looked: OpenedNetwork) -> Any:
    """The run's test images, or None with a warning if they are gone: the page works without."""
    try:
        return looked.source()
    except UserError as error:
        log.warning("there are no test images: %s", error)
        return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _stop_by_signals(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stopped.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopped.set))


async def serve(
    playground: Playground,
    host: str,
    listening: socket.socket,
    ready: Callable[[], None],
    stop: asyncio.Event | None = None,
    allowed_hosts: Iterable[str] = (),
) -> None:
    """Serve the page until SIGINT or SIGTERM arrives, or `stop` is set.

    Args:
      playground: what to serve; it is closed at the end.
      host: the name or address that `listening` is bound to.
      listening: the socket, see `listen`.
      ready: called once pages can connect.
      stop: for running in a thread, where no signal arrives.
      allowed_hosts: names to answer to besides those of `own_names`.
    """
    folder = importlib.resources.files("jaxconv.playground")
    routes: list[Any] = [
        (path, File, {"content": (folder / name).read_bytes(), "kind": kind})
        for path, (name, kind) in _FILES.items()
    ]
    application = tornado.web.Application(
        [*routes, ("/socket", Page, {"playground": playground})],
        own=host,
        names=own_names(host, allowed_hosts),
        log_function=lambda handler: None,
        websocket_max_message_size=MOST_BYTES + 4,
        websocket_ping_interval=30,
    )
    # Do not bother the user with refused requests of strangers.
    logging.getLogger("tornado.general").setLevel(logging.ERROR)
    server = tornado.httpserver.HTTPServer(
        application, max_body_size=1_000_000, max_header_size=65_536
    )
    server.add_socket(listening)
    stopped = stop or asyncio.Event()
    if stop is None:
        _stop_by_signals(asyncio.get_running_loop(), stopped)
    telling = asyncio.create_task(playground.tell())
    ready()
    try:
        await stopped.wait()
    finally:
        server.stop()
        telling.cancel()
        playground.close()
        await server.close_all_connections()
