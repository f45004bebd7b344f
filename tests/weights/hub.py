"""A server of files on the loopback: plain addresses with ranges, and the Hugging Face hub's form.

/models/NAME                          a file, also in part
/OWNER/REPO/resolve/REVISION/FILE     a file of the hub, with its commit and digest in the headers
"""

import contextlib
import hashlib
import http.server
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the server has, how it misbehaves, and what it was asked for.

    Attributes:
      files: path -> content.
      cuts: bytes after which the next answers end, one for each.
      ranges: whether parts are sent where they are asked for.
      asked: (method, path, Range header) of each request.
      held: set to let answers that wait go on; set at first.
      denied: path -> status and X-Error-Code.
    """

    def __init__(self):
        self.files, self.cuts, self.asked = {}, [], []
        self.ranges, self.denied = True, {}
        self.held = threading.Event()
        self.held.set()
        self.url = ""

    def add(self, name, content, begins=""):
        """Put a file at an address that ends in the first digits of its digest; returns that."""
        digest = begins or hashlib.sha256(content).hexdigest()[:8]
        path = f"/models/{name}-{digest}.pth"
        self.files[path] = content
        return self.url + path


@contextlib.contextmanager
def serving():
    """A `Hub` that is served while the context lasts."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(head=True)

        def do_GET(self):
            self.answer(head=False)

        def answer(self, head):
            hub.asked.append((self.command, self.path, self.headers.get("Range")))
            hub.held.wait(60)
            path = self.path
            parts = path.split("/")
            of_hub = len(parts) > 5 and parts[3] == "resolve"
            if of_hub:
                path = "/".join([*parts[:3], *parts[5:]])
            status, code = hub.denied.get(path, (404, "EntryNotFound" if of_hub else ""))
            if path in hub.denied or path not in hub.files:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content, start = hub.files[path], 0
            asked = self.headers.get("Range") if hub.ranges else None
            if asked:
                start = int(asked.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                self.send_response(416)
                self.end_headers()
                return
            self.send_response(206 if asked else 200)
            if asked:
                last = f"{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", f"bytes {start}-{last}")
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.end_headers()
            if not head:
                sent = content[start:]
                self.wfile.write(sent[: hub.cuts.pop(0)] if hub.cuts else sent)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.held.set()
        server.shutdown()
        thread.join()
        server.server_close()
