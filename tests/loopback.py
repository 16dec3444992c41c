"""An NDIF server on loopback, as far as its clients see one, in a thread of this process.

It answers what NDIF 0.1.2 answers, runs traces from their serialised form, and fails as it is told:
`faults` holds what happens to the next requests, one each, after which they are served.
"""

import base64
import contextlib
import hashlib
import io
import json
import queue
import struct
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
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


class Loopback(ThreadingHTTPServer):
    """Serves one model.

    Faults are: a number, the status by which a request is refused; `lost`, the connection ends
    while it runs; `silent`, nothing more is heard of it; `error: …`, what it fails with; `bytes`,
    given as such, the answer.
    """

    daemon_threads = True

    def __init__(self, name: str, model: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.model = name, model
        self.faults: list[Any] = []
        self.refuses: list[Any] = []
        """Answers to the next subscriptions."""
        self.links = False
        """Whether results are to be fetched, as large ones are."""
        self.staged = b""
        self.good: int | None = None
        """How many requests are served before all are lost."""
        self.requests = 0
        self.state = "RUNNING"
        self.packages = {"nnsight": "0.8.0", "torch": "2.13.0", "transformers": "5.22.2"}
        self.mangle: Callable[[dict[str, Any]], Any] | None = None
        """What is done to results before they are sent."""
        self.greeting: Any = None
        """What a subscription begins with, in the place of a session's id."""
        self.pages: dict[str, Any] = {}
        """Answers in the place of those to a path."""
        self.sessions: dict[str, queue.Queue[Any]] = {}
        self.work: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self.serve_forever, daemon=True).start()
        # A model belongs to one thread.
        threading.Thread(target=self._run, daemon=True).start()

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

    def _run(self) -> None:
        while True:
            blob, answers = self.work.get()
            fault = self.faults.pop(0) if self.faults else None
            if self.good is not None:
                fault = None if self.good else "lost"
                self.good = max(0, self.good - 1)
            answers.put(_said(Status.QUEUED, "Moved to position 1 in Queue."))
            if fault == "silent":
                continue
            answers.put(_said(Status.RUNNING, "Your job has started running."))
            if fault == "lost":
                answers.put(None)
            elif isinstance(fault, bytes):
                answers.put(fault)
            elif fault is not None and not fault.startswith("error: "):
                answers.put(fault)
            elif fault is not None:
                answers.put(_said(Status.ERROR, fault.removeprefix("error: ")))
            else:
                answers.put(self._serve(blob))

    def _serve(self, blob: bytes) -> Any:
        try:
            saved = execute(blob, self.model)
            if self.mangle is not None:
                buffer = io.BytesIO()
                found = torch.load(io.BytesIO(saved), weights_only=False)
                torch.save(self.mangle(found), buffer)
                saved = buffer.getvalue()
            data = zstandard.ZstdCompressor().compress(saved)
        except Exception:
            return _said(Status.ERROR, traceback.format_exc())
        if not self.links:
            return completed(data)
        self.staged = data
        done = ResponseModel(id="1", status=Status.COMPLETED, data=f"{self.url}/staged?Key=1")
        return done.model_dump_json()


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
    server.faults, server.pages, server.requests, server.state = [], {}, 0, "RUNNING"
    server.good, server.refuses, server.links = None, [], False
    server.mangle = server.greeting = None


def _said(status: Status, description: str) -> str:
    return ResponseModel(id="1", status=status, description=description).model_dump_json()


def completed(data: Any) -> bytes:
    """Return the answer of a server that is done."""
    return ResponseModel(id="1", status=Status.COMPLETED, data=data).pickle()


def result(value: Any) -> bytes:
    """Return the answer of a server that sends back some value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return completed(zstandard.ZstdCompressor().compress(buffer.getvalue()))


class _Handler(BaseHTTPRequestHandler):
    # Else an answer of two parts waits for the first to be acknowledged.
    disable_nagle_algorithm = True

    server: Loopback

    def do_GET(self) -> None:
        if self.path in self.server.pages:
            self._answer(*self.server.pages[self.path])
        elif self.path == "/status":
            self._answer(200, self.server.status)
        elif self.path == "/env":
            python = {"python_version": "3.12.1 (main)", "packages": self.server.packages}
            self._answer(200, python)
        elif self.path == "/subscribe":
            if self.server.refuses:
                self._answer(*self.server.refuses.pop(0))
            else:
                self._subscribe()
        elif self.path.startswith("/staged"):
            self._answer(200, self.server.staged)
        else:
            self._answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests += 1
        if self.server.faults and isinstance(self.server.faults[0], int):
            # As NDIF does it, which repeats a malformed key.
            detail = f"no: '{self.headers['ndif-api-key']}'"
            self._answer(self.server.faults.pop(0), {"detail": detail})
            return
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts: list[Message] = BytesParser().parsebytes(head + body).get_payload()  # type: ignore[assignment]
        envelope, blob = (bytes(part.get_payload(decode=True)) for part in parts)  # type: ignore[arg-type]
        answers = self.server.sessions[json.loads(envelope)["session_id"]]
        self._answer(200, json.loads(_said(Status.RECEIVED, "Received.")))
        self.server.work.put((blob, answers))

    def _subscribe(self) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        accepted = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accepted)
        self.end_headers()
        session = uuid.uuid4().hex
        answers = self.server.sessions[session] = queue.Queue()
        greeting = self.server.greeting
        self._frame(json.dumps({"session_id": session}) if greeting is None else greeting)
        while (message := answers.get()) is not None:
            self._frame(message)
        self.close_connection = True

    def _frame(self, message: str | bytes) -> None:
        data = message.encode() if isinstance(message, str) else message
        kind = 0x81 if isinstance(message, str) else 0x82
        self.wfile.write(struct.pack(">BBQ", kind, 127, len(data)) + data)

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
