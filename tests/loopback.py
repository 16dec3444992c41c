"""An NDIF server on loopback, as far as its clients see one, in a thread of this process.

It answers what NDIF 0.1.2 answers, runs traces from their serialised form, and fails as it is told:
`faults` holds what happens to the next requests, one each, after which they are served, and `polls`
what the next questions for a job are answered with.
"""

import contextlib
import io
import json
import queue
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.hf_api
import torch
import zstandard
from hub import Hub
from nnsight import CONFIG, TransformersModel
from nnsight.schema.response import ResponseModel, Status
from strict import execute
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import hf_api

NAME = "stages/tiny"
"""The one model that runs there."""

KEY = "33333333-3333-4333-8333-333333333333"


@dataclass(frozen=True)
class Staged:
    """A job that is done, and the bytes in the place of its result."""

    content: bytes


class Loopback(ThreadingHTTPServer):
    """Serves one model.

    Faults are: a number, the status by which a request is refused; `unanswered`, it is taken, and
    the connection ends; `forgotten`, it is taken and then unknown; `silent`, it waits for ever;
    `endless`, it runs for ever; `error: …`, what it fails with; bytes or text, what is said of it
    as such; a `Staged` result; a status and a body, the answer to the request.
    """

    daemon_threads = True

    def __init__(self, name: str, model: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.model = name, model
        self.packages = {"nnsight": "0.8.0", "torch": "2.13.0", "transformers": "5.22.2"}
        self.work: queue.Queue[Any] = queue.Queue()
        self.reset()
        threading.Thread(target=self.serve_forever, daemon=True).start()
        # A model belongs to one thread.
        threading.Thread(target=self._run, daemon=True).start()

    def reset(self) -> None:
        """Forget all jobs, and let nothing be wrong."""
        self.faults: list[Any] = []
        self.polls: list[Any] = []
        """Answers to the next questions for a job: a status and a body, or None for no answer."""
        self.fetches: list[Any] = []
        """Answers to the next questions for a result."""
        self.good: int | None = None
        """How many requests are served before all are refused."""
        self.requests = self.executed = self.connections = 0
        """How many requests came, and were executed, and over how many connections."""
        self.ids: list[str] = []
        """Names that clients have given to their jobs."""
        self.headers: list[tuple[str, dict[str, str]]] = []
        """Paths that were asked for, and with what."""
        self.renames = False
        """Whether jobs get other names than clients have given them."""
        self.state = "RUNNING"
        self.meta: Any = None
        """What jobs are said to have cost."""
        self.seconds = 0.0
        """Seconds that a job runs at least."""
        self.mangle: Callable[[dict[str, Any]], Any] | None = None
        """What is done to results before they are sent."""
        self.pages: dict[str, Any] = {}
        """Answers in the place of those to a path."""
        self.forgets: set[str] = set()
        self.jobs: dict[str, bytes] = {}
        self.results: dict[str, bytes] = {}

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def status(self) -> dict[str, Any]:
        entry = {
            "application_state": self.state, "deployment_level": "HOT", "repo_id": self.name,
            "task": "text-generation", "revision": None, "dtype": "float64",
        }  # fmt: skip
        cold = {**entry, "deployment_level": "COLD", "repo_id": "stages/cold"}
        return {"deployments": {"one": entry, "two": cold}}

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that leave."""

    def say(self, name: str, status: Status, description: str, **more: Any) -> None:
        """Note the state of a job, for those who ask."""
        self.jobs[name] = said(name, status, description, **more)

    def _run(self) -> None:
        while True:
            name, fault, blob = self.work.get()
            self.say(name, Status.QUEUED, "Added to Queue at position 1.")
            if fault in ("silent", "forgotten"):
                continue
            self.say(name, Status.RUNNING, "Your job has started running.")
            if fault == "endless":
                continue
            threading.Event().wait(self.seconds)
            if isinstance(fault, Staged):
                self._stage(name, fault.content)
            elif isinstance(fault, str) and fault.startswith("error: "):
                text = fault.removeprefix("error: ")
                self.say(name, Status.ERROR, text, meta=self.meta)
            elif isinstance(fault, str | bytes):
                self.jobs[name] = fault if isinstance(fault, bytes) else fault.encode()
            else:
                self._serve(name, blob)

    def _serve(self, name: str, blob: bytes) -> None:
        self.executed += 1
        try:
            saved = execute(blob, self.model)
            if self.mangle is not None:
                buffer = io.BytesIO()
                found = torch.load(io.BytesIO(saved), weights_only=False)
                torch.save(self.mangle(found), buffer)
                saved = buffer.getvalue()
            self._stage(name, zstandard.ZstdCompressor().compress(saved))
        except Exception:
            self.say(name, Status.ERROR, traceback.format_exc(), meta=self.meta)

    def _stage(self, name: str, content: bytes) -> None:
        self.results[name] = content
        link = f"{self.url}/staged/{name}?Signature=se-cret"
        self.say(name, Status.COMPLETED, "Your job has been completed.", data=link, meta=self.meta)


@contextlib.contextmanager
def serving(name: str, directory: Path, dtype: torch.dtype) -> Iterator[tuple[Hub, Loopback]]:
    """Serve the model of a directory: from a hub its files, from a server its runs."""
    hub = Hub(0, {name: directory})
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    module = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    module.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    server = Loopback(name, TransformersModel(module, task="text-generation", tokenizer=tokenizer))
    yield hub, server
    for each in (hub, server):
        each.shutdown()
        each.server_close()


def configure(monkeypatch: Any, hub: Hub, server: Loopback, cache: Path) -> None:
    """Point this process at a hub and a server, with nothing wrong with them."""
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in (
        ("ENDPOINT", hub.url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", template),
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_CACHE", str(cache)),
    ):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    # Clients that are made once and kept.
    for kept in (huggingface_hub.hf_api.api, hf_api()):
        monkeypatch.setattr(kept, "endpoint", hub.url)
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    server.reset()


def said(name: str, status: Status, description: str = "", **more: Any) -> bytes:
    """Return what a server says of a job."""
    response = ResponseModel(id=name, status=status, description=description, **more)
    return response.model_dump_json().encode()


def linked(link: Any) -> str:
    """Return what a server says of a job that is done, whatever its name, and its link."""
    return json.dumps({"id": "*", "status": "COMPLETED", "data": link})


def result(value: Any) -> Staged:
    """Return a job that has some value as its result."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return Staged(zstandard.ZstdCompressor().compress(buffer.getvalue()))


class _Handler(BaseHTTPRequestHandler):
    # Else an answer of two parts waits for the first to be acknowledged.
    disable_nagle_algorithm = True

    protocol_version = "HTTP/1.1"
    server: Loopback

    def do_GET(self) -> None:
        place, _, name = self.path.partition("?")[0].removeprefix("/").partition("/")
        self.server.headers.append((self.path, dict(self.headers)))
        if self.path in self.server.pages:
            self._answer(*self.server.pages[self.path])
        elif self.path == "/status":
            self._answer(200, self.server.status)
        elif self.path == "/env":
            python = {"python_version": "3.12.1 (main)", "packages": self.server.packages}
            self._answer(200, python)
        elif place == "response":
            self._tell(name)
        elif place == "staged" and self.server.fetches:
            self._fail(self.server.fetches.pop(0))
        elif place == "staged" and name in self.server.results:
            self._answer(200, self.server.results[name])
        else:
            self._answer(404, {"detail": "Not Found"})

    def _tell(self, name: str) -> None:
        if self.server.polls:
            answer = self.server.polls.pop(0)
        elif name in self.server.jobs:
            answer = 200, self.server.jobs[name]
            if name in self.server.forgets:
                del self.server.jobs[name]
        else:
            answer = 404, b"{}"
        if answer is not None and isinstance(answer[1], bytes):
            # Of a message that is given as such, the name is still open.
            answer = answer[0], answer[1].replace(b'"*"', f'"{name}"'.encode())
        self._fail(answer)

    def _fail(self, answer: Any) -> None:
        if answer is None:
            self.close_connection = True
        else:
            self._answer(*answer)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.headers.append((self.path, dict(self.headers)))
        server = self.server
        server.requests += 1
        fault = server.faults.pop(0) if server.faults else None
        if server.good is not None:
            fault = None if server.good else 503
            server.good = max(0, server.good - 1)
        if isinstance(fault, int):
            # As NDIF does it, which repeats a malformed key.
            self._answer(fault, {"detail": f"no: '{self.headers['ndif-api-key']}'"})
            return
        if isinstance(fault, tuple):
            self._answer(*fault)
            return
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts: list[Message] = BytesParser().parsebytes(head + body).get_payload()  # type: ignore[assignment]
        envelope, blob = (bytes(part.get_payload(decode=True)) for part in parts)  # type: ignore[arg-type]
        entries = json.loads(envelope)
        assert not entries["session_id"], "a request without a session is not waited for"
        server.ids.append(entries["id"])
        name = uuid.uuid4().hex if server.renames else entries["id"]
        if fault == "forgotten":
            server.forgets.add(name)
        server.work.put((name, None if fault == "unanswered" else fault, blob))
        if fault == "unanswered":
            self.close_connection = True
        else:
            self._answer(200, said(name, Status.RECEIVED, "Received."))

    def _answer(self, status: int, value: Any) -> None:
        if isinstance(value, bytes):
            body = value
        else:
            body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def say(server: Any, path: str, status: int, value: Any) -> None:
    """Let a server answer what is asked at a path otherwise."""
    server.pages = {path: (status, value)}
