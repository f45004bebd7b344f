"""Buckets on this machine: servers of the protocols of S3 and GCS, behind a proxy that fails."""

import contextlib
import http.client
import itertools
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = ("s3", "gs")
BUCKET = "bucket"


@dataclass
class Store:
    """A store with one bucket.

    Attributes:
      kind: of `KINDS`.
      environment: variables that lead to it.
      asked: (method, path) of each request, in order.
      fault: (method, path) -> what to do with the request: `cut` the connection after half of the
        answer, `lose` the request, answer `403` or `503`, or `no list`: an empty one.
    """

    kind: str
    environment: dict[str, str]
    asked: list[tuple[str, str]] = field(default_factory=list)
    fault: Callable[[str, str], str] = lambda method, path: ""

    def address(self, path: str) -> str:
        return f"{self.kind}://{BUCKET}/{path}"

    def files(self):
        """The bucket by fsspec, to look and to damage; the proxy sees it too."""
        import fsspec

        return fsspec.filesystem(self.kind, use_listings_cache=False)


def some_of(faults: str, every: int) -> Callable[[str, str], str]:
    """Each of the faults in turn, for one in `every` requests."""
    turn, kinds = itertools.count(1), itertools.cycle(faults.split())
    return lambda method, path: next(kinds) if next(turn) % every == 0 else ""


@contextlib.contextmanager
def store(kind: str) -> Iterator[Store]:
    """Start a server and its proxy; the environment must have the store's variables to use it."""
    with _server(kind) as port, _proxy(port) as (front, made):
        made.kind = kind
        url = f"http://127.0.0.1:{front}"
        if kind == "s3":
            made.environment = {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        else:
            made.environment = {"STORAGE_EMULATOR_HOST": url}
        yield made


@contextlib.contextmanager
def _server(kind: str) -> Iterator[int]:
    if kind == "s3":
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        app = DomainDispatcherApplication(create_backend_app)
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        _ask("PUT", f"http://127.0.0.1:{server.server_port}/{BUCKET}")
        try:
            yield server.server_port
        finally:
            _ask("POST", f"http://127.0.0.1:{server.server_port}/moto-api/reset")
            server.shutdown()
            server.server_close()
            thread.join()
    else:
        from gcp_storage_emulator import server as emulator

        if emulator._read_data.__name__ == "_read_data":
            emulator._read_data = _whole(emulator._read_data)
        server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
        server.start()
        try:
            yield server._api._httpd.server_port
        finally:
            server.stop()


def _whole(usual: Callable) -> Callable:
    """The emulator takes what gcsfs uploads for a mail, and cuts a line break at its end."""

    def read(handler: BaseHTTPRequestHandler, query: object) -> object:
        kind = handler.headers.get("Content-Type") or ""
        if not kind.startswith("multipart/related"):
            return usual(handler, query)
        mark = kind.partition("boundary=")[2].strip('"').encode()
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        meta, _, rest = raw.partition(b"\n--" + mark + b"\n")
        head, _, rest = rest.partition(b"\n\n")
        return {
            "meta": json.loads(meta[meta.index(b"{") :]),
            "content": rest.removesuffix(b"\n--" + mark + b"--"),
            "content-type": head.partition(b":")[2].strip().decode(),
        }

    return read


def _ask(method: str, url: str) -> None:
    urllib.request.urlopen(urllib.request.Request(url, method=method)).close()


@contextlib.contextmanager
def _proxy(port: int) -> Iterator[tuple[int, Store]]:
    made = Store("", {})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # which answers `Expect: 100-continue`

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else self._chunks()
            made.asked.append((self.command, self.path))
            fault = made.fault(self.command, self.path)
            if fault == "lose":
                self.close_connection = True
                return
            if fault in ("403", "503"):
                self._send(int(fault), [("Content-Length", "0")], b"")
                return
            code, headers, content = self._forward(body)
            if fault == "no list" and is_list(self.command, self.path):
                content = _EMPTY.get(made.kind, content)
                headers = [("Content-Type", headers_of(headers, "Content-Type"))]
                headers.append(("Content-Length", str(len(content))))
            if fault == "cut":
                content = content[: len(content) // 2]
            self._send(code, headers, content)
            if fault == "cut":
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = answer

        def _chunks(self) -> bytes:
            found = b""
            if self.headers.get("Transfer-Encoding", "") != "chunked":
                return found
            while size := int(self.rfile.readline().split(b";")[0], 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            drop = ("connection", "content-length", "transfer-encoding", "expect")
            headers = {k: v for k, v in self.headers.items() if k.lower() not in drop}
            chunked = self.headers.get("Transfer-Encoding", "") == "chunked"
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as behind:
                if chunked:
                    headers["Transfer-Encoding"] = "chunked"
                    behind.request(self.command, self.path, [body], headers, encode_chunked=True)
                else:
                    headers["Content-Length"] = str(len(body))
                    behind.request(self.command, self.path, body, headers)
                found = behind.getresponse()
                return found.status, found.getheaders(), found.read()

        def _send(self, code: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(code)
            for name, value in headers:
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            if not headers_of(headers, "Content-Length"):
                self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "close")
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # of clients that are killed

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1], made
        finally:
            server.shutdown()
            thread.join()


def headers_of(headers: list[tuple[str, str]], wanted: str) -> str:
    return next((value for name, value in headers if name.lower() == wanted.lower()), "")


def is_list(method: str, path: str) -> bool:
    """Whether a request asks for a listing."""
    return method == "GET" and ("list-type=2" in path or "/o?" in path or path.endswith("/o"))


_EMPTY = {
    "s3": b'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult '
    b'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name><KeyCount>0</KeyCount>'
    b"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>",
    "gs": b'{"kind": "storage#objects", "items": []}',
}
