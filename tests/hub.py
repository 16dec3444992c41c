"""A Hugging Face hub on loopback that serves local directories: `hub.py PORT NAME=DIRECTORY …`.

It answers what the hub's client and transformers ask: what a model is, which files it has, and the
files, in ranges too. `GET /bytes` says how many bytes of files it has sent.
"""

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves models, a mapping from names (`owner/model`) to directories."""

    daemon_threads = True
    cut = 0
    """If not 0, how many bytes too few a range has at most."""

    def __init__(self, port: int, models: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.models = models
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    # Else an answer of two parts waits for the first to be acknowledged.
    disable_nagle_algorithm = True

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts == ["bytes"]:
            self._json(self.server.sent)
        elif parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.server.models:
            self._describe("/".join(parts[2:4]), parts[4:])
        elif parts[2:3] == ["resolve"] and "/".join(parts[:2]) in self.server.models:
            self._send(self.server.models["/".join(parts[:2])].joinpath(*parts[4:]))
        else:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _describe(self, name: str, kind: list[str]) -> None:
        files = [path for path in sorted(self.server.models[name].iterdir()) if path.is_file()]
        if kind[:1] == ["tree"]:
            self._json(
                [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": COMMIT}
                 for f in files]
            )  # fmt: skip
            return
        siblings = [{"rfilename": path.name} for path in files]
        known = kind[1:] in ([], ["main"], [COMMIT])
        commit = COMMIT if known else hashlib.sha1(kind[1].encode()).hexdigest()
        self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})

    def _send(self, path: Path) -> None:
        if not path.is_file():
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        body = path.read_bytes()
        first, last, status = 0, len(body) - 1, 200
        headers = {
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        asked = self.headers.get("Range")
        if asked:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last, status = int(start), min(int(end or last), last), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        if asked and self.server.cut:
            last = first + self.server.cut
        self._answer(status, body[first : last + 1], headers)
        if self.command == "GET":
            self.server.sent += last + 1 - first

    def _json(self, value: object, status: int = 200, headers: dict[str, str] = {}) -> None:  # noqa: B006
        self._answer(status, json.dumps(value).encode(), headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    pairs = [each.split("=", 1) for each in sys.argv[2:]]
    Hub(int(sys.argv[1]), {name: Path(path) for name, path in pairs}).serve_forever()
