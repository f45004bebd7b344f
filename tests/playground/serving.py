"""A playground in a thread of this process, for tests, and a parser of its answers."""

import asyncio
import contextlib
import json
import struct
import threading
import time

import numpy as np

from jaxconv.config import default_config
from jaxconv.playground.guard import listen
from jaxconv.playground.learner import Settings
from jaxconv.playground.server import Playground, serve


def xo_config(size=16, **noise):
    """A config of small X's and O's with the default variation."""
    config = default_config()
    config.data.xo.size = size
    config.data.xo.update(noise)
    return config


SMALL = Settings(filters=(6, 8), neurons=(16,), batch_size=32)


@contextlib.contextmanager
def served(looked=None, config=None, host="127.0.0.1", port=0):
    """(playground, its address)."""
    playground = Playground(looked, config or xo_config())
    listening = listen(host, port)
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(serve(playground, host, listening, ready.set, stop))
    )
    thread.start()
    try:
        assert ready.wait(30)
        yield playground, f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
        assert not thread.is_alive()


def until(condition, seconds=60):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def parts(answer):
    """(header, picture, filters, maps) of an answer's bytes; a mask is in the header."""
    (length,) = struct.unpack("<I", answer[:4])
    header, offset = json.loads(answer[4 : 4 + length]), 4 + length

    def take(shape, dtype):
        nonlocal offset
        count = int(np.prod(shape))
        values = np.frombuffer(answer, dtype, count, offset).reshape(shape)
        offset += count
        return values

    picture, filters = take(header["picture"], np.uint8), take(header["filters"]["shape"], np.int8)
    maps = [take(stage["shape"], np.int8) for stage in header["stages"]]
    if header.get("overlay", {}).get("mask"):
        header["mask"] = take(header["overlay"]["mask"], np.uint8)
    assert offset == len(answer)
    return header, picture, filters, maps
