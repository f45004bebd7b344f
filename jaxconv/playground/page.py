"""The server of the page: a few files, and one WebSocket a page, over which pictures come in and maps, votes and curves go out.

A page sends JSON objects, `{"do": "draw", "strokes": ...}`, or the bytes of an image file after a number of 4 bytes. It is sent

    a text     {"kind": "training", ...}: where the training is; {"kind": "problem", "message": ...}: what was wrong
    bytes      an answer, see `Shown.answer`, with the `id` of what it answers; 0 where the training has moved on

What is taken, and from whom:

    address    the loopback address, unless another is asked for
    Host       this machine's numbers, `localhost`, or the name that was asked for: a name that a stranger's server gives to this
               address (DNS rebinding) is refused
    Origin     the page's own: other sites' pages cannot open the WebSocket
    pages      `MOST_PAGES` at once, each with so many messages a second, a message of so many bytes
    images     JPEG and PNG files, with a limit on their pixels; they are decoded in memory, and never written

The page is told by its Content-Security-Policy to load nothing from anywhere else.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import errno
import importlib.resources
import ipaddress
import json
import logging
import math
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tornado.httpserver
import tornado.web
import tornado.websocket

from jaxconv.data import xo
from jaxconv.data.interface import DamagedError
from jaxconv.errors import UserError
from jaxconv.look.opened import Looked
from jaxconv.playground.shown import MOST_PIXELS, MOST_POINTS, Shown, decoded, drawn, make_shown, sample
from jaxconv.playground.trainer import LIMITS, WINDOW, Settings, Trainer

log = logging.getLogger(__name__)

MOST_PAGES = 8
MOST_BYTES = 8_000_000
# Characters of a message that is no file.
_TEXT = 100_000
# Messages a second that a page may send for long, and at once; a file counts for so many.
_RATE, _BURST, _FILE = 100.0, 200.0, 20.0
_FILES = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)
_TOO_MANY, _TOO_FAST, _GOING = 1013, 1008, 1001


@dataclasses.dataclass(frozen=True)
class Run:
    """The network of a run, to be looked at, and its test images, read when they are asked for."""

    title: str
    shown: Shown
    variables: Any
    source: Any


class Playground:
    """What all pages share: the network of the run, if there is one, and the trainer.

    Args:
      looked: the opened run; None begins with an untrained network for X's and O's.
      config: whose pictures are learnt from; the run's, or the default.

    Attributes:
      shape: of the pictures, (H, W, C).
      class_names: one name a class.
      trainer: of the other network.
      pages: the open WebSockets.

    Raises:
      UserError: the run does not look at images.
    """

    def __init__(self, looked: Looked | None, config: Any):
        self.config, self.run = config, None
        if looked is None:
            self.shape: tuple[int, ...] = (config.data.xo.size, config.data.xo.size, config.data.xo.channels)
            self.class_names = xo.CLASS_NAMES
        else:
            if looked.kind != "image":
                raise UserError(f"{looked.title}: looks at {looked.kind}s; the playground is for images")
            self.shape, self.class_names = looked.input_shape, looked.class_names
            shown = make_shown(looked.model, looked.preprocess, looked.variables, self.shape, self.class_names)
            self.run = Run(looked.title, shown, looked.variables, None if self.is_xo else _tests_of(looked))
        self.pages: set[Socket] = set()
        self.workers = concurrent.futures.ThreadPoolExecutor(2, "answers")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told: asyncio.Event | None = None
        self.trainer = Trainer(config, self.shape, self.class_names, self._changed)
        if looked is None:
            self.trainer.set()

    @property
    def is_xo(self) -> bool:
        """Whether the pictures are X's and O's, which can be drawn."""
        return self.config.data.source == "xo"

    def network(self, which: str) -> tuple[str, int, Shown, Any] | None:
        """(title, steps, network, variables) of the run's or the trained network; None while there is none."""
        if which == "run" and self.run:
            return self.run.title, -1, self.run.shown, self.run.variables
        found = self.trainer.network
        return ("chain, trained here", self.trainer.step, *found) if found else None

    def training(self) -> dict[str, Any]:
        """Where the training is, for the page."""
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
            "points": [[point.step, *(_finite(v) for v in (point.loss, point.accuracy))] for point in trainer.points],
        }

    def welcome(self) -> dict[str, Any]:
        """What a page is told first: what there is, and the limits."""
        return {
            "kind": "welcome",
            "shape": self.shape,
            "classes": self.class_names,
            "xo": self.is_xo,
            "source": self.config.data.source,
            "run": self.run.title if self.run else "",
            "tests": len(self.run.source) if self.run and self.run.source is not None else 0,
            "variation": dataclasses.asdict(self.trainer.variation),
            "limits": LIMITS,
            "window": WINDOW,
            "most": {"bytes": MOST_BYTES, "pixels": MOST_PIXELS, "points": MOST_POINTS, "pages": MOST_PAGES},
        }

    def _changed(self) -> None:
        """In the trainer's thread: wake the loop that tells the pages."""
        if self._loop is not None and self._told is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._told.set)

    async def tell(self) -> None:
        """Wake all pages as the training moves, without end."""
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        while True:
            await self._told.wait()
            self._told.clear()
            for page in self.pages:
                page.news.set()

    def close(self) -> None:
        """End the training and the pages."""
        self.trainer.close()
        for page in list(self.pages):
            page.close(_GOING, "the playground has ended")
        self.workers.shutdown()


def _tests_of(looked: Looked) -> Any:
    """The run's test images; None, with a warning, where they are not there any more: the network can be looked at without them."""
    try:
        return looked.source()
    except UserError as error:
        log.warning("there are no test images: %s", error)
        return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def allowed(host: str, own: str) -> bool:
    """Whether the name in a Host header (`NAME` or `NAME:PORT`) may be answered to.

    Args:
      host: the header.
      own: the name or address that the server was told to listen on.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        # A number is nobody's name: where the page came from by number, no name was bent.
        return True
    return name in ("localhost", own.lower())


class _Guarded(tornado.web.RequestHandler):
    """Answers to its own names alone, and tells the browser to load nothing from elsewhere."""

    def prepare(self) -> None:
        if not allowed(self.request.host, self.settings["own"]):
            raise tornado.web.HTTPError(421, "the playground does not answer to this name")

    def set_default_headers(self) -> None:
        for name, value in (
            ("Content-Security-Policy", _POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.set_header(name, value)

    def write_error(self, status_code: int, **_: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status_code}: {self._reason}\n")


class _File(_Guarded):
    """One of the page's files."""

    def initialize(self, content: bytes, kind: str) -> None:
        self._content, self._kind = content, kind

    def get(self) -> None:
        self.set_header("Content-Type", f"{self._kind}; charset=utf-8")
        self.finish(self._content)


class Socket(_Guarded, tornado.websocket.WebSocketHandler):
    """One page: its picture, which network it looks at, and what it does."""

    def initialize(self, playground: Playground) -> None:
        """Begin with an empty picture and the run's network, where there is a run."""
        self._shared = playground
        self._picture = np.zeros(playground.shape, np.uint8)
        self._which = "run" if playground.run else "trained"
        self._left, self._last = _BURST, time.monotonic()
        self._about: dict[str, Any] = {}
        self.news, self._turn = asyncio.Event(), asyncio.Lock()
        self._follower: asyncio.Task | None = None

    def prepare(self) -> None:
        """Refuse other sites' pages, and programs that do not say where they come from."""
        super().prepare()
        if "Origin" not in self.request.headers:
            raise tornado.web.HTTPError(403, "a WebSocket without Origin")

    def check_origin(self, origin: str) -> bool:
        """Whether it is the page's own: the same name and port."""
        return urlsplit(origin).netloc.lower() == self.request.host.lower()

    async def open(self, *_: str, **__: str) -> None:
        """Take the page in, unless there are too many."""
        if len(self._shared.pages) >= MOST_PAGES:
            self.close(_TOO_MANY, f"{MOST_PAGES} pages are open already; close one")
            return
        self.set_nodelay(True)
        self._shared.pages.add(self)
        self._say(self._shared.welcome())
        self._say(self._shared.training())
        self._follower = asyncio.create_task(self._follow())

    def on_close(self) -> None:
        """The page is gone."""
        self._shared.pages.discard(self)
        if self._follower is not None:
            self._follower.cancel()

    async def on_message(self, message: str | bytes) -> None:
        """Do what the page says, or tell it what is wrong; messages of one page are done one after the other."""
        if not self._within_rate(_FILE if isinstance(message, bytes) else 1.0):
            self.close(_TOO_FAST, "too many messages")
            return
        problem: dict[str, Any] = {"kind": "problem", "of": "picture"}
        try:
            if isinstance(message, bytes):
                (problem["id"],) = struct.unpack("<I", message[:4].ljust(4, b"\0"))
                await self._file(problem["id"], message[4:])
                return
            content = _Message.read(message)
            problem |= {"of": content.text("do"), "id": content.content.get("id")}
            if content.text("do") not in _ACTIONS:
                raise UserError(f"there is no {content.text('do')!r} to do; there are {', '.join(_ACTIONS)}")
            await _ACTIONS[content.text("do")](self, content)
        except UserError as error:
            self._say(problem | {"message": str(error)})

    def _within_rate(self, cost: float) -> bool:
        now = time.monotonic()
        self._left = min(_BURST, self._left + _RATE * (now - self._last)) - cost
        self._last = now
        return self._left >= 0

    async def _follow(self) -> None:
        """Tell the page where the training is, and what its picture is to the network now; a slow page is told of the latest alone."""
        with contextlib.suppress(tornado.websocket.WebSocketClosedError):
            while True:
                await self.news.wait()
                self.news.clear()
                await self.write_message(json.dumps(self._shared.training()))
                if self._which == "trained":
                    await self._answer(0)

    def _say(self, content: dict[str, Any]) -> None:
        with contextlib.suppress(tornado.websocket.WebSocketClosedError):
            self.write_message(json.dumps(content))

    async def _show(self, number: int, make: Callable[[], np.ndarray], **about: Any) -> None:
        """Take another picture, and answer for it."""
        self._picture, self._about = await self._work(make), about
        await self._answer(number)

    async def _answer(self, number: int) -> None:
        async with self._turn:  # what was asked first is answered first
            found = self._shared.network(self._which)
            if found is None:
                self._say({"kind": "waiting", "id": number})  # it is being compiled, and the page will hear of it
                return
            title, step, shown, variables = found
            about = {"id": number, "network": title, "which": self._which, "step": step, **self._about}
            answer = await self._work(lambda: shown.answer(variables, self._picture, about))
            with contextlib.suppress(tornado.websocket.WebSocketClosedError):
                await self.write_message(answer, binary=True)

    async def _work(self, function: Callable[[], Any]) -> Any:
        with self._shared.trainer.held():
            return await asyncio.get_running_loop().run_in_executor(self._shared.workers, function)

    async def _draw(self, message: "_Message") -> None:
        strokes, weight, fit = message.value("strokes", list), message.number("weight"), message.value("fit", bool)
        self._only_xo()
        xo.Variation(weight=abs(weight))  # its range
        await self._show(message.id, lambda: drawn(strokes, self._shared.shape, weight, fit))

    async def _sample(self, message: "_Message") -> None:
        figure, number, variation = message.text("figure"), message.whole("number", 999_999), message.variation()
        self._only_xo()
        if figure not in xo.CLASS_NAMES:
            raise UserError(f"there is no figure {figure!r}; there are {', '.join(xo.CLASS_NAMES)}")
        await self._show(message.id, lambda: sample(figure, number, self._shared.shape, variation), truth=figure)

    async def _test(self, message: "_Message") -> None:
        source = self._shared.run.source if self._shared.run else None
        if source is None:
            raise UserError("there are no test images; draw a sample instead")
        number = message.whole("number", len(source) - 1)
        try:
            example = await self._work(lambda: source[number])
        except DamagedError as error:
            raise UserError(f"{source.name(number)}: {error}") from error
        await self._show(message.id, lambda: example["image"], truth=self._shared.class_names[int(example["label"])])

    async def _file(self, number: int, content: bytes) -> None:
        picture, note = await self._work(lambda: decoded(content, self._shared.shape, self._shared.config.data))
        await self._show(number, lambda: picture, note=note)

    async def _look_at(self, message: "_Message") -> None:
        which = message.text("network")
        if which not in ("run", "trained") or (which == "run" and not self._shared.run):
            raise UserError(f"there is no network {which!r} here")
        if which == "trained" and self._shared.network("trained") is None:
            self._shared.trainer.set()
        self._which = which
        await self._answer(message.id)

    async def _train(self, message: "_Message") -> None:
        trainer = self._shared.trainer
        actions = {"start": trainer.start, "pause": trainer.pause, "step": trainer.do_step, "new": trainer.begin}
        how = message.text("how")
        if how not in actions:
            raise UserError(f"training cannot {how!r}; it can {', '.join(actions)}")
        actions[how]()

    async def _set(self, message: "_Message") -> None:
        given = message.content
        settings = message.settings() if "settings" in given else None
        rate = message.number("rate") if "rate" in given else None
        # The shapes are worked out, which takes some milliseconds.
        await self._work(lambda: self._shared.trainer.set(settings, rate, message.variation() if "variation" in given else None))
        self._say(self._shared.training())

    def _only_xo(self) -> None:
        if not self._shared.is_xo:
            raise UserError(f"the pictures are of {self._shared.config.data.source}; drop an image, or take one of the test images")


_ACTIONS = {
    "draw": Socket._draw,
    "sample": Socket._sample,
    "test": Socket._test,
    "look": Socket._look_at,
    "train": Socket._train,
    "set": Socket._set,
}


class _Message:
    """A JSON object that a page has sent, whose parts are looked at before they are used; all raise UserError."""

    def __init__(self, content: dict[str, Any]):
        self.content = content

    @classmethod
    def read(cls, text: str) -> "_Message":
        if len(text) > _TEXT:
            raise UserError(f"the message has {len(text):,} characters; at most {_TEXT:,} are read")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError("the message is no JSON") from error
        if not isinstance(content, dict):
            raise UserError("the message is no JSON object")
        return cls(content)

    @property
    def id(self) -> int:
        """The number that its answer will bear."""
        return self.whole("id", 2**32 - 1)

    def value(self, name: str, kind: type | tuple[type, ...]) -> Any:
        if name not in self.content or not isinstance(self.content[name], kind):
            raise UserError(f"the message has no {name!r} as it should be")
        return self.content[name]

    def text(self, name: str) -> str:
        return self.value(name, str)

    def number(self, name: str) -> float:
        value = self.value(name, (int, float))
        if not -1e9 <= value <= 1e9:  # neither is NaN
            raise UserError(f"{name} is {value}, which is no number to work with")
        return float(value)

    def whole(self, name: str, most: int) -> int:
        value = self.value(name, int)
        if not 0 <= value <= most:
            raise UserError(f"{name} is {value}; it must be a whole number from 0 to {most}")
        return value

    def variation(self) -> xo.Variation:
        """How a sample, or the pictures that are learnt from, may differ."""
        part = _Message(self.value("variation", dict))
        return xo.Variation(**{field.name: part.number(field.name) for field in dataclasses.fields(xo.Variation)})

    def settings(self) -> Settings:
        """Of the network that is trained."""
        given, wanted = self.value("settings", dict), dataclasses.asdict(Settings())
        if given.keys() != wanted.keys():
            raise UserError(f"the settings are {', '.join(wanted)}")
        return Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


async def serve(
    playground: Playground, host: str, listening: socket.socket, ready: Callable[[], None], stop: asyncio.Event | None = None
) -> None:
    """Serve the page until SIGINT or SIGTERM comes, or `stop` is set.

    Args:
      playground: what is served; it is closed at the end.
      host: the name or address that is listened on.
      listening: see `listen`.
      ready: called once pages can come.
      stop: for whoever runs it in a thread, where no signal arrives.
    """
    folder = importlib.resources.files("jaxconv.playground")
    routes: list[Any] = [(path, _File, {"content": (folder / name).read_bytes(), "kind": kind}) for path, (name, kind) in _FILES.items()]
    application = tornado.web.Application(
        [*routes, ("/socket", Socket, {"playground": playground})],
        own=host,
        log_function=lambda handler: None,
        websocket_max_message_size=MOST_BYTES + 4,
        websocket_ping_interval=30,
    )
    # Strangers who are refused are no trouble of the person's.
    logging.getLogger("tornado.general").setLevel(logging.ERROR)
    server = tornado.httpserver.HTTPServer(application, max_body_size=1_000_000, max_header_size=65_536)
    server.add_socket(listening)
    stopped = stop or asyncio.Event()
    if stop is None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    telling = asyncio.create_task(playground.tell())
    ready()
    try:
        await stopped.wait()
    finally:
        server.stop()
        telling.cancel()
        playground.close()
        await server.close_all_connections()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on a name or address of this machine; port 0 takes any that is free.

    Raises:
      UserError: the port is taken, or the host is none of this machine's.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        listening.setblocking(False)
        return listening
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port={port}: another program listens there; give another, or --port=0 for any that is free") from error
        raise UserError(f"--host={host} --port={port}: cannot be listened on ({error.strerror or error})") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on this name or address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
