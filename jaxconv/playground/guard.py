"""Which requests are answered, and from where a page may load; connection lists what is accepted.

    address    the loopback address, unless another is requested
    Host       an IP address, `localhost`, the requested name, one given by --allowed_hosts, or, if
               other machines can connect, this machine's own; any other name, which an attacker
               may point at this address (DNS rebinding), is refused
    Origin     the page's own: other sites' pages cannot open the WebSocket

The Content-Security-Policy forbids the page to load anything from elsewhere.
"""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Container, Iterable
from typing import Any
from urllib.parse import urlsplit

import tornado.web

from jaxconv.errors import UserError

_REFUSED = "the playground does not answer to this name; allow it by --allowed_hosts=NAME"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a name or address of this machine; port 0 picks a free one.

    Raises:
      UserError: the port is taken, or the host is not of this machine.
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
                f"--port={port}: another program is listening there; choose another port, or "
                "--port=0 for any free one"
            ) from error
        raise UserError(
            f"--host={host} --port={port}: cannot listen there ({error.strerror or error})"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on this name or address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def own_names(host: str, others: Iterable[str] = ()) -> frozenset[str]:
    """The names that the server answers to, in lower case.

    These are the names under which this machine finds itself: its host name, alone, as a
    `.local` name of mDNS, and in full. DNS rebinding needs a name that an attacker's page is loaded
    under, so one that the attacker's own server has had. Who can give this machine's names to
    another server already controls its network, and could read and change the unencrypted page. No
    name is taken from a request, and no name is looked up from an address: such an answer comes
    from whoever owns the address.

    Args:
      host: the name or address that the server listens on.
      others: more names to answer to.
    """
    names = {"localhost", host, *others}
    if not is_loopback(host):
        machine = socket.gethostname()
        names |= {machine, f"{machine.partition('.')[0]}.local"}
        with contextlib.suppress(OSError):  # the machine's name need not be in any DNS
            found = socket.getaddrinfo(machine, None, flags=socket.AI_CANONNAME)
            names |= {canonical for *_, canonical, _ in found if canonical}
    return frozenset(name.lower().rstrip(".") for name in names) - {""}


def allowed(host: str, names: Container[str]) -> bool:
    """Whether to answer requests with this Host header (`NAME` or `NAME:PORT`).

    Args:
      host: the header.
      names: those that the server answers to, see `own_names`.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        # Safe: a page loaded from an IP address used no name, so there was no DNS rebinding.
        return True
    return name.rstrip(".") in names


class Guarded(tornado.web.RequestHandler):
    """Answers only to its own names, and tells the browser to load nothing from elsewhere."""

    def prepare(self) -> None:
        if not allowed(self.request.host, self.settings["names"]):
            raise tornado.web.HTTPError(421, _REFUSED, reason=_REFUSED)

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
