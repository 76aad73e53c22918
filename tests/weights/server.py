"""A real HTTP server on 127.0.0.1 that fails in the ways that servers and networks do."""

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves `files` {path: bytes}; `requests` lists (path, Range header) in order.

    Attributes:
      cut: closes a connection after so many bytes of a body; one value a connection, then no more.
      status: answers so instead; one value a request, then no more.
      ranges: whether a Range header is obeyed.
      partial: sends this many bytes with status 206 to requests that ask for all, and states the whole length.
      conditions: whether If-None-Match is obeyed: 304 to what has the ETag of `headers`.
      pause: seconds to wait after each `block` bytes.
      headers: more headers of every answer.
      redirects: {path: (other path, headers)}.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files = files
        self.requests: list[tuple[str, str | None]] = []
        self.cut: list[int] = []
        self.status: list[int] = []
        self.ranges = True
        self.partial = 0
        self.conditions = True
        self.pause = 0.0
        self.block = 1 << 16
        self.headers: dict[str, str] = {}
        self.redirects: dict[str, tuple[str, dict[str, str]]] = {}

    def url(self, path: str) -> str:
        return f'http://127.0.0.1:{self.server_port}{path}'

    def __enter__(self) -> 'Server':
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get('Range')
        self.server.requests.append((self.path, wanted))
        if self.path in self.server.redirects:
            path, headers = self.server.redirects[self.path]
            return self.answer(302, b'', {'Location': self.server.url(path), **headers})
        if self.server.status:
            return self.answer(self.server.status.pop(0), b'<html>no</html>', {'Content-Type': 'text/html'})
        if self.path not in self.server.files:
            return self.answer(404, b'<html>no such file</html>', {'Content-Type': 'text/html'})
        content = self.server.files[self.path]
        start = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1]) if wanted and self.server.ranges else 0
        condition = self.headers.get('If-Range')
        if condition and condition != self.server.headers.get('ETag'):
            start = 0
        if start and start >= len(content):
            return self.answer(416, b'', {'Content-Range': f'bytes */{len(content)}'})
        headers = {'Content-Type': 'application/octet-stream', **self.server.headers}
        if self.server.conditions and self.headers.get('If-None-Match') == headers.get('ETag', ''):
            return self.answer(304, b'', headers)
        if self.server.partial and not wanted:
            end = self.server.partial
            headers = {'Content-Range': f'bytes 0-{end - 1}/{len(content)}', **headers}
            return self.answer(206, content[:end], headers)
        if start:
            headers['Content-Range'] = f'bytes {start}-{len(content) - 1}/{len(content)}'
        return self.answer(206 if start else 200, content[start:], headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {'Content-Length': str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        cut = self.server.cut.pop(0) if self.server.cut and body and status < 300 else len(body)
        for i in range(0, cut, self.server.block):
            self.wfile.write(body[i : min(i + self.server.block, cut)])
            self.wfile.flush()
            time.sleep(self.server.pause)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
