"""One open page: a WebSocket that receives pictures, and sends maps, votes and curves.

A page sends JSON objects, `{"do": "draw", "strokes": ...}`, or the bytes of an image file after a
4-byte number. It receives

    a text     {"kind": "training", ...}: the state of the training; {"kind": "problem", "message":
               ...}: what went wrong
    bytes      an answer, see `NetworkView.answer`, with the `id` of the message that it answers;
               0 when the training has progressed

If module guard lets a page in, these are accepted:

    pages      `MOST_PAGES` at once, each with a limited rate of messages
    messages   files of at most `MOST_BYTES`, and other messages of much less
    images     JPEG and PNG files with a limit on their pixels; they are decoded in memory, and
               never written
"""

import asyncio
import contextlib
import logging
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tornado.web
import tornado.websocket

from jaxconv.data import xo
from jaxconv.data.interface import DamagedError
from jaxconv.data.layout import to_bytes
from jaxconv.errors import UserError, in_words
from jaxconv.files import to_json
from jaxconv.playground.guard import Guarded, is_loopback
from jaxconv.playground.message import Message
from jaxconv.playground.shown import decoded, drawn, sample

log = logging.getLogger(__name__)

MOST_PAGES = 8
MOST_BYTES = 8_000_000
# Messages per second that a page may send for long (more than a screen has frames), messages in a
# burst, and the number of messages that a file counts as.
_RATE, _BURST, _FILE = 300.0, 600.0, 60.0
# Seconds that the training pauses after a point of a stroke.
_REST = 0.1
_TOO_MANY, _TOO_FAST = 1013, 1008


class Page(Guarded, tornado.websocket.WebSocketHandler):
    """One page: its picture, the network it shows, and its actions."""

    def initialize(self, playground: Any) -> None:
        """Start with an empty picture, and with the run's network if there is a run."""
        self._shared = playground
        self._picture = np.zeros(playground.shape, np.uint8)
        self._which = "run" if playground.run else "trained"
        self._left, self._last = _BURST, time.monotonic()
        self._about: dict[str, Any] = {}
        self.news, self._turn = asyncio.Event(), asyncio.Lock()
        self._follower: asyncio.Task | None = None
        self._trouble = ""

    def prepare(self) -> None:
        """Refuse other sites' pages, and programs that do not state their origin."""
        super().prepare()
        if "Origin" not in self.request.headers:
            raise tornado.web.HTTPError(403, "the WebSocket request has no Origin")

    def check_origin(self, origin: str) -> bool:
        """Whether the origin is the page's own: the same name and port."""
        return urlsplit(origin).netloc.lower() == self.request.host.lower()

    async def open(self, *_: str, **__: str) -> None:
        """Accept the page, unless too many are open."""
        if len(self._shared.pages) >= MOST_PAGES:
            self.close(_TOO_MANY, f"{MOST_PAGES} pages are open already; close one")
            return
        self.set_nodelay(True)
        self._shared.pages.add(self)
        host = self.settings["own"]
        self._say(self._shared.welcome() | {"host": host, "alone": is_loopback(host)})
        self._say(self._shared.training())
        self._follower = asyncio.create_task(self._follow())

    def on_close(self) -> None:
        """Forget the page."""
        self._shared.pages.discard(self)
        if self._follower is not None:
            self._follower.cancel()

    async def on_message(self, message: str | bytes) -> None:
        """Handle a message, or report its error; a page's messages are handled in order."""
        if not self._within_rate(_FILE if isinstance(message, bytes) else 1.0):
            self.close(_TOO_FAST, "too many messages")
            return
        problem: dict[str, Any] = {"kind": "problem", "of": "picture"}
        await self._told(problem, self._act(message, problem))

    async def _told(self, problem: dict[str, Any], action: Awaitable[None]) -> None:
        """Run an action and send its error to the page, instead of closing the socket silently."""
        try:
            await action
        except UserError as error:
            self._say(problem | {"message": str(error)})
        except Exception as error:  # such as an error of a custom network, or out of memory
            if self not in self._shared.pages:
                return  # closed meanwhile, along with its workers
            words, before = in_words(error), self._trouble
            self._trouble = words
            if words != before:  # a running training would log it several times per second
                log.error("%s of a page failed: %s", problem["of"], words)
                log.debug("traceback", exc_info=True)
            self._say(problem | {"message": words})

    async def _act(self, message: str | bytes, problem: dict[str, Any]) -> None:
        """Carry out a message; `problem` receives the action that an error would belong to."""
        if isinstance(message, bytes):
            (problem["id"],) = struct.unpack("<I", message[:4].ljust(4, b"\0"))
            await self._file(problem["id"], message[4:])
            return
        content = Message.read(message)
        problem |= {"of": content.text("do"), "id": content.content.get("id")}
        if content.text("do") not in _ACTIONS:
            raise UserError(
                f"unknown action {content.text('do')!r}; the actions are {', '.join(_ACTIONS)}"
            )
        await _ACTIONS[content.text("do")](self, content)

    def _within_rate(self, cost: float) -> bool:
        now = time.monotonic()
        self._left = min(_BURST, self._left + _RATE * (now - self._last)) - cost
        self._last = now
        return self._left >= 0

    async def _follow(self) -> None:
        """Send the page each new state of the training, and new votes; a slow page skips some."""
        with contextlib.suppress(tornado.websocket.WebSocketClosedError):
            while True:
                await self.news.wait()
                self.news.clear()
                await self.write_message(to_json(self._shared.training()))
                if self._which == "trained":
                    await self._told({"kind": "problem", "of": "picture"}, self._answer(0))

    def _say(self, content: dict[str, Any]) -> None:
        with contextlib.suppress(tornado.websocket.WebSocketClosedError):
            self.write_message(to_json(content))

    async def _show(self, number: int, make: Callable[[], np.ndarray], **about: Any) -> None:
        """Switch to another picture and answer for it, while the training pauses for `_REST`."""
        self._shared.trainer.hold()
        asyncio.get_running_loop().call_later(_REST, self._shared.trainer.release)
        self._picture, self._about = await self._work(make), about
        await self._answer(number)

    async def _answer(self, number: int) -> None:
        async with self._turn:  # answers are sent in the order of the questions
            found = self._shared.network(self._which)
            if found is None:
                self._say(
                    {"kind": "waiting", "id": number}
                )  # it is still compiling, and the page will be notified
                return
            title, step, shown, variables = found
            about = {
                "id": number,
                "network": title,
                "which": self._which,
                "step": step,
                **self._about,
            }
            answer = await self._work(lambda: shown.answer(variables, self._picture, about))
            with contextlib.suppress(tornado.websocket.WebSocketClosedError):
                await self.write_message(answer, binary=True)

    async def _work(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._shared.workers, function)

    async def _draw(self, message: Message) -> None:
        strokes, weight, fit = (
            message.value("strokes", list),
            message.number("weight"),
            message.value("fit", bool),
        )
        if self._shared.pen is None:
            raise UserError(
                "drawings are for X's and O's, and the data is "
                f"{self._shared.config.data.source}; drop an image or choose a test image"
            )
        xo.Variation(weight=abs(weight))  # raises if the weight is out of range
        fit = fit and self._shared.is_xo  # a scene's letters stay where they are
        await self._show(message.id, lambda: drawn(strokes, self._shared.shape, weight, fit))

    async def _sample(self, message: Message) -> None:
        figure, number, variation = (
            message.text("figure"),
            message.whole("number", 999_999),
            message.variation(),
        )
        if not self._shared.is_xo:
            raise UserError(
                "samples are of single X's and O's, and the data is "
                f"{self._shared.config.data.source}; choose a test image"
            )
        if figure not in xo.CLASS_NAMES:
            raise UserError(f"unknown figure {figure!r}; choose from {', '.join(xo.CLASS_NAMES)}")
        await self._show(
            message.id, lambda: sample(figure, number, self._shared.shape, variation), truth=figure
        )

    async def _test(self, message: Message) -> None:
        source = self._shared.run.source if self._shared.run else None
        if source is None:
            raise UserError("there are no test images; draw a sample instead")
        number = message.whole("number", len(source) - 1)
        try:
            example = await self._work(lambda: source[number])
        except DamagedError as error:
            raise UserError(f"{source.name(number)}: {error}") from error
        names, label = self._shared.class_names, example.get("label")
        truth = {} if label is None else {"truth": names[int(label)]}
        await self._show(message.id, lambda: to_bytes(example["image"]), **truth)

    async def _file(self, number: int, content: bytes) -> None:
        picture, note = await self._work(
            lambda: decoded(content, self._shared.shape, self._shared.config.data)
        )
        await self._show(number, lambda: picture, note=note)

    async def _look_at(self, message: Message) -> None:
        which = message.text("network")
        if which not in ("run", "trained") or (which == "run" and not self._shared.run):
            raise UserError(f"there is no network {which!r} here")
        if which == "trained":
            self._only_votes()
        if which == "trained" and self._shared.network("trained") is None:
            self._shared.trainer.set()
        self._which = which
        await self._answer(message.id)

    async def _train(self, message: Message) -> None:
        trainer = self._shared.trainer
        actions = {
            "start": trainer.start,
            "pause": trainer.pause,
            "step": trainer.do_step,
            "new": trainer.begin,
        }
        how = message.text("how")
        self._only_votes()
        if how not in actions:
            raise UserError(f"unknown training command {how!r}; choose from {', '.join(actions)}")
        actions[how]()

    async def _set(self, message: Message) -> None:
        given = message.content
        self._only_votes()
        settings = message.settings() if "settings" in given else None
        rate = message.number("rate") if "rate" in given else None
        # Checking the shapes takes some milliseconds, so it runs in a worker.
        await self._work(
            lambda: self._shared.trainer.set(
                settings, rate, message.variation() if "variation" in given else None
            )
        )
        self._say(self._shared.training())

    def _only_votes(self) -> None:
        if not self._shared.trains:
            raise UserError(
                "the page trains networks that vote for classes; train this one with jaxconv train"
            )


_ACTIONS = {
    "draw": Page._draw,
    "sample": Page._sample,
    "test": Page._test,
    "look": Page._look_at,
    "train": Page._train,
    "set": Page._set,
}
