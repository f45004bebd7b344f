"""One open page: a WebSocket over which pictures come in, and maps, votes and curves go out.

A page sends JSON objects, `{"do": "draw", "strokes": ...}`, or the bytes of an image file after a
number of 4 bytes. It is sent

    a text     {"kind": "training", ...}: where the training is; {"kind": "problem", "message":
               ...}: what was wrong
    bytes      an answer, see `NetworkView.answer`, with the `id` of what it answers; 0 where the
               training has moved on

What is taken, from whom module guard lets in:

    pages      `MOST_PAGES` at once, each with so many messages a second
    messages   of at most `MOST_BYTES`, if it is a file, and much less, if it is none
    images     JPEG and PNG files, with a limit on their pixels; they are decoded in memory, and
               never written
"""

import asyncio
import contextlib
import json
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
from jaxconv.playground.guard import Guarded, is_loopback
from jaxconv.playground.message import Message
from jaxconv.playground.shown import decoded, drawn, sample

log = logging.getLogger(__name__)

MOST_PAGES = 8
MOST_BYTES = 8_000_000
# Messages a second that a page may send for long, which is more than a screen has frames, and at
# once; a file counts for so many.
_RATE, _BURST, _FILE = 300.0, 600.0, 60.0
# Seconds that the training rests after a point of a stroke.
_REST = 0.1
_TOO_MANY, _TOO_FAST = 1013, 1008


class Page(Guarded, tornado.websocket.WebSocketHandler):
    """One page: its picture, which network it looks at, and what it does."""

    def initialize(self, playground: Any) -> None:
        """Begin with an empty picture and the run's network, where there is a run."""
        self._shared = playground
        self._picture = np.zeros(playground.shape, np.uint8)
        self._which = "run" if playground.run else "trained"
        self._left, self._last = _BURST, time.monotonic()
        self._about: dict[str, Any] = {}
        self.news, self._turn = asyncio.Event(), asyncio.Lock()
        self._follower: asyncio.Task | None = None
        self._trouble = ""

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
        host = self.settings["own"]
        self._say(self._shared.welcome() | {"host": host, "alone": is_loopback(host)})
        self._say(self._shared.training())
        self._follower = asyncio.create_task(self._follow())

    def on_close(self) -> None:
        """The page is gone."""
        self._shared.pages.discard(self)
        if self._follower is not None:
            self._follower.cancel()

    async def on_message(self, message: str | bytes) -> None:
        """Do what the page says, or tell it what is wrong; messages of one page are done one after
        the other.
        """
        if not self._within_rate(_FILE if isinstance(message, bytes) else 1.0):
            self.close(_TOO_FAST, "too many messages")
            return
        problem: dict[str, Any] = {"kind": "problem", "of": "picture"}
        await self._told(problem, self._act(message, problem))

    async def _told(self, problem: dict[str, Any], action: Awaitable[None]) -> None:
        """Do something, and tell the page of its trouble: a socket that an error ends says nothing
        to the person.
        """
        try:
            await action
        except UserError as error:
            self._say(problem | {"message": str(error)})
        except (
            Exception
        ) as error:  # what a network of a person's own raises, or a machine without memory
            if self not in self._shared.pages:
                return  # closed meanwhile, with what it works by
            words, before = in_words(error), self._trouble
            self._trouble = words
            if words != before:  # a training that goes on would say it several times a second
                log.error("%s of a page failed: %s", problem["of"], words)
                log.debug("from where", exc_info=True)
            self._say(problem | {"message": words})

    async def _act(self, message: str | bytes, problem: dict[str, Any]) -> None:
        """What a message asks for; fills in what its problem would be of."""
        if isinstance(message, bytes):
            (problem["id"],) = struct.unpack("<I", message[:4].ljust(4, b"\0"))
            await self._file(problem["id"], message[4:])
            return
        content = Message.read(message)
        problem |= {"of": content.text("do"), "id": content.content.get("id")}
        if content.text("do") not in _ACTIONS:
            raise UserError(
                f"there is no {content.text('do')!r} to do; there are {', '.join(_ACTIONS)}"
            )
        await _ACTIONS[content.text("do")](self, content)

    def _within_rate(self, cost: float) -> bool:
        now = time.monotonic()
        self._left = min(_BURST, self._left + _RATE * (now - self._last)) - cost
        self._last = now
        return self._left >= 0

    async def _follow(self) -> None:
        """Tell the page where the training is, and what its picture is to the network now; a slow
        page is told of the latest alone.
        """
        with contextlib.suppress(tornado.websocket.WebSocketClosedError):
            while True:
                await self.news.wait()
                self.news.clear()
                await self.write_message(json.dumps(self._shared.training()))
                if self._which == "trained":
                    await self._told({"kind": "problem", "of": "picture"}, self._answer(0))

    def _say(self, content: dict[str, Any]) -> None:
        with contextlib.suppress(tornado.websocket.WebSocketClosedError):
            self.write_message(json.dumps(content))

    async def _show(self, number: int, make: Callable[[], np.ndarray], **about: Any) -> None:
        """Take another picture, and answer for it; the training rests for as long as it takes, and
        until the next point of a stroke.
        """
        self._shared.trainer.hold()
        asyncio.get_running_loop().call_later(_REST, self._shared.trainer.release)
        self._picture, self._about = await self._work(make), about
        await self._answer(number)

    async def _answer(self, number: int) -> None:
        async with self._turn:  # what was asked first is answered first
            found = self._shared.network(self._which)
            if found is None:
                self._say(
                    {"kind": "waiting", "id": number}
                )  # it is being compiled, and the page will hear of it
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
        self._only_xo()
        xo.Variation(weight=abs(weight))  # its range
        await self._show(message.id, lambda: drawn(strokes, self._shared.shape, weight, fit))

    async def _sample(self, message: Message) -> None:
        figure, number, variation = (
            message.text("figure"),
            message.whole("number", 999_999),
            message.variation(),
        )
        self._only_xo()
        if figure not in xo.CLASS_NAMES:
            raise UserError(f"there is no figure {figure!r}; there are {', '.join(xo.CLASS_NAMES)}")
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
        await self._show(
            message.id,
            lambda: to_bytes(example["image"]),
            truth=self._shared.class_names[int(example["label"])],
        )

    async def _file(self, number: int, content: bytes) -> None:
        picture, note = await self._work(
            lambda: decoded(content, self._shared.shape, self._shared.config.data)
        )
        await self._show(number, lambda: picture, note=note)

    async def _look_at(self, message: Message) -> None:
        which = message.text("network")
        if which not in ("run", "trained") or (which == "run" and not self._shared.run):
            raise UserError(f"there is no network {which!r} here")
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
        if how not in actions:
            raise UserError(f"training cannot {how!r}; it can {', '.join(actions)}")
        actions[how]()

    async def _set(self, message: Message) -> None:
        given = message.content
        settings = message.settings() if "settings" in given else None
        rate = message.number("rate") if "rate" in given else None
        # The shapes are worked out, which takes some milliseconds.
        await self._work(
            lambda: self._shared.trainer.set(
                settings, rate, message.variation() if "variation" in given else None
            )
        )
        self._say(self._shared.training())

    def _only_xo(self) -> None:
        if not self._shared.is_xo:
            raise UserError(
                f"the pictures are of {self._shared.config.data.source}; drop an image, or take "
                "one of the test images"
            )


_ACTIONS = {
    "draw": Page._draw,
    "sample": Page._sample,
    "test": Page._test,
    "look": Page._look_at,
    "train": Page._train,
    "set": Page._set,
}
