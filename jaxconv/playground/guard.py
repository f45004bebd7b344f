"""Who is answered, and from where a page may load: see the module page for all that is taken.

    address    the loopback address, unless another is asked for
    Host       this machine's numbers, `localhost`, or the name that was asked for: a name that a
               stranger's server gives to this address (DNS rebinding) is refused
    Origin     the page's own: other sites' pages cannot open the WebSocket

The page is told by its Content-Security-Policy to load nothing from anywhere else.
"""

import contextlib
import errno
import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

import tornado.web

from jaxconv.errors import UserError

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on a name or address of this machine; port 0 takes any that is free.

    Raises:
      UserError: the port is taken, or the host is none of this machine's.
    """
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
        listening.setblocking(False)
        return listening
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--port={port}: another program listens there; give another, or --port=0 for any "
                "that is free"
            ) from error
        raise UserError(
            f"--host={host} --port={port}: cannot be listened on ({error.strerror or error})"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on this name or address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


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


class Guarded(tornado.web.RequestHandler):
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


class File(Guarded):
    """One of the page's files."""

    def initialize(self, content: bytes, kind: str) -> None:
        self._content, self._kind = content, kind

    def get(self) -> None:
        self.set_header("Content-Type", f"{self._kind}; charset=utf-8")
        self.finish(self._content)
