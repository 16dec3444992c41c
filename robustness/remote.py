"""NDIF: what a server runs, whether it can be used, and the requests that go to it.

A trace is sent as source text and runs where the weights are; what it saves comes back. The way
there may fail at any moment, and then the same request is sent again, a bounded number of times.
What comes back is read as plain tensors: a server cannot make this machine run anything.
"""

import contextlib
import io
import itertools
import json
import pickle
import random
import re
import socket
import time
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import torch
import websocket
import zstandard
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError  # type: ignore[attr-defined]
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

from robustness.refusal import Refusal, first_line

RETRIES = 6
"""How often a request is sent again."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before a request is sent again: doubled each time, and a random part of it left out."""

PATIENCE = 10.0
"""Seconds without a word from the server after which the user is told what it waits for."""

SILENCE = 1800.0
"""Seconds without a word after which a request that waits for its turn counts as lost.

One that runs may take as long as it takes; there, the connection itself must be alive."""

PASSING = {408, 425, 429, *range(500, 600)}
"""Statuses of answers that may be other the next time."""

SANDBOX_LIMIT = 50.0
"""Gigabytes that a run may pass through the socket of a sandboxed server, if not said otherwise."""

CONNECT = 20.0
"""Seconds for making a connection."""

LIBRARIES = ("nnsight", "torch", "transformers")
"""Whose versions on the server are recorded."""

TRANSIENT = re.compile("try again|sorry for the inconvenience|evicted", re.IGNORECASE)
"""What a server says of errors that are not the request's fault."""

_CHANCE = random.Random()

Notify = Callable[[str], object]
"""Told what a user who waits should know."""

# Without them, a server that loses power is waited for in vain.
_KEEPALIVE = tuple(
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 30),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 6),
    )
    if hasattr(socket, name)
)


@dataclass(frozen=True)
class Deployment:
    """A model that a server has loaded, or is loading."""

    name: str
    """Its id on the hub."""
    revision: str
    """Branch, tag or commit; empty for the main one."""
    task: str
    state: str
    """`RUNNING`, `DEPLOYING`, `NOT_STARTED` or `UNHEALTHY`."""
    dtype: str


def resolve_host(host: str | None = None) -> str:
    """Return a server's address: what is given, or `NDIF_HOST`, or nnsight's configuration.

    Raises
    ------
    Refusal
        If it is no address of a server.
    """
    found = (host or CONFIG.API.HOST or "").rstrip("/")
    try:
        parts = urlsplit(found)
        known = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or 1) > 0
        (parts.hostname or "").encode("idna")
        httpx.URL(found)
    except (ValueError, httpx.InvalidURL):
        known = False
    if not known or {"@", "?", "#"} & set(found):
        shown = found.rpartition("@")[2].partition("?")[0]
        raise Refusal(f"{shown!r} is no address of a server: it looks like https://api.ndif.us")
    return found


def resolve_key() -> str:
    """Return the user's key: `NDIF_API_KEY`, or what `nnsight login` has stored.

    Raises
    ------
    Refusal
        If there is none, or it cannot be one.
    """
    key = (CONFIG.API.APIKEY or "").strip()
    if not key:
        raise Refusal(
            "there is no NDIF key: get one at https://login.ndif.us and put it into NDIF_API_KEY, "
            "or store it with `nnsight login`"
        )
    try:
        return str(uuid.UUID(key))
    except ValueError:
        raise Refusal(
            "what NDIF_API_KEY (or nnsight's configuration) holds is no NDIF key, which looks "
            "like xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx: see https://login.ndif.us"
        ) from None


def deployments(host: str | None = None) -> list[Deployment]:
    """Return what a server runs now, by name.

    Raises
    ------
    Refusal
        If it cannot be asked.
    """
    found = _ask(resolve_host(host), "/status", "deployments")["deployments"]
    known = {
        Deployment(
            name=str(each.get("repo_id") or "?"),
            revision=str(each.get("revision") or ""),
            task=str(each.get("task") or ""),
            state=str(each.get("application_state") or "UNHEALTHY"),
            dtype=str(each.get("dtype") or ""),
        )
        for each in found.values()
        if isinstance(each, dict) and each.get("deployment_level") in {"HOT", "WARM"}
    }
    return sorted(known, key=lambda each: (each.name, each.revision, each.state))


def check(
    name: str, *, host: str, revision: str | None = None, deploy: bool = False
) -> dict[str, str]:
    """Refuse a run that the server would not do, and return the versions of its libraries.

    Parameters
    ----------
    name : str
        Hub id.
    host : str
        The server's address.
    revision : str, optional
        Branch, tag or commit on the hub.
    deploy : bool
        Whether the server may be asked to load the model.

    Raises
    ------
    Refusal
        If the server or the hub cannot be reached, the versions do not go together, or the model
        does not run there.
    """
    running = deployments(host)
    versions = _versions(host)
    here, there = version("nnsight"), versions.get("nnsight", "none")
    if here.split(".")[:2] != there.split(".")[:2]:
        raise Refusal(
            f"{host} has nnsight {there} and this machine {here}, which do not understand each "
            f"other: install nnsight {'.'.join(there.split('.')[:2])}, or choose another --host"
        )
    try:
        name = HfApi().model_info(name, revision=revision, timeout=CONNECT).id
    except RevisionNotFoundError as error:
        raise Refusal(f"{name} has no revision {revision} on the hub") from error
    except RepositoryNotFoundError as error:
        raise Refusal(
            f"the hub has no model {name}, or none that you may see: check the id, and HF_TOKEN"
        ) from error
    except (OSError, ValueError, HTTPError) as error:
        raise Refusal(
            f"the hub cannot be asked for {name} ({first_line(error)}), and NDIF knows models by "
            "their hub id: it takes a connection to the hub, and no HF_HUB_OFFLINE"
        ) from error
    running = [each for each in running if each.task == "text-generation"]
    same = [each for each in running if each.name == name and each.revision == (revision or "")]
    if not deploy and not any(each.state in {"RUNNING", "DEPLOYING"} for each in same):
        names = sorted({each.name for each in running if each.state == "RUNNING"})
        some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise Refusal(
            f"{name}{f' at {revision}' if revision else ''} does not run on {host}, where there is "
            f"{some or 'no model'}: choose one of `stages models --remote`, or ask for it to be "
            "loaded with --deploy"
        )
    return versions


class Requests(RemoteBackend):  # type: ignore[misc]
    """Runs traces on a server: each is one request, sent again where the way there fails.

    Parameters
    ----------
    model_key : str
        How the server knows the model.
    host, key : str
        The server's address and the user's key.
    env : dict
        What the server is to set up for each request, as nnsight says.
    notify : callable, optional
        Told of waiting and of what is sent again.
    limit : float
        Gigabytes that a run may pass through the socket of a sandboxed server.
    """

    def __init__(
        self,
        model_key: str,
        host: str,
        key: str,
        env: dict[str, Any] | None = None,
        notify: Notify | None = None,
        limit: float = SANDBOX_LIMIT,
    ) -> None:
        super().__init__(model_key, host=host, api_key=key, env=env)
        self.limit = limit
        # The command line alone prints.
        self.display.enabled = self.verbose = False
        self.notify: Notify = notify or (lambda text: None)

    def __repr__(self) -> str:
        return f"Requests({self.host})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the key here: what a trace names goes along with it."""
        return str, (repr(self),)

    def __call__(self, tracer: Any = None) -> Any:
        """Send a trace, and hand back what it saved."""
        result = self._insist(self._serialize(tracer))
        self._push(result, tracer)
        return result

    def _insist(self, blob: bytes) -> dict[str, Any]:
        for attempt in itertools.count():
            try:
                return self._send(blob)
            except websocket.WebSocketBadStatusException as error:
                reason = f"the connection is refused with status {error.status_code}"
                if error.status_code not in PASSING:
                    raise Refusal(f"{self.host}: {reason}; check --host and proxies") from None
            except (OSError, httpx.HTTPError, websocket.WebSocketException) as error:
                reason = self._clean(first_line(error))
            except RemoteError as error:
                reason = self._clean(_gist(str(error)))
                if not _passes(error):
                    raise Refusal(self._explain(error, reason)) from None
            except Exception as error:  # whatever a server may answer
                reason = self._clean(first_line(error))
                raise Refusal(f"{self.host} answers what is not understood: {reason}") from None
            if attempt == RETRIES:
                raise Refusal(
                    f"{self.host} was asked {attempt + 1} times in vain ({reason}); what is done "
                    "is kept, and the same command goes on from there"
                )
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * _CHANCE.uniform(0.5, 1)
            self.notify(f"{reason}; trying again in {wait:.0f} s ({attempt + 1} of {RETRIES})")
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _send(self, blob: bytes) -> dict[str, Any]:
        request = RequestModel(model_key=self.model_key, compress=self.compress, env=self.env)
        connection = websocket.create_connection(
            f"{self.ws_host}/subscribe",
            header={"ndif-api-key": self.api_key},
            timeout=CONNECT,
            sockopt=_KEEPALIVE,
            redirect_limit=0,
        )
        with contextlib.ExitStack() as stack:
            # At once: a farewell would be waited for.
            stack.callback(connection.shutdown)
            request.session_id = json.loads(self._hear(connection))["session_id"]
            latest = self._post(request, blob)
            connection.settimeout(PATIENCE)
            heard, told = time.monotonic(), ""
            while True:
                try:
                    message = self._hear(connection)
                except websocket.WebSocketTimeoutException:
                    waits = latest.status is not Status.RUNNING
                    if waits and time.monotonic() - heard > SILENCE:
                        raise
                    text = f"{self.host}: {latest.description or latest.status.value.lower()}"
                    if text != told and waits:
                        self.notify(self._clean(text))
                    told = text
                    connection.ping()
                    continue
                heard, response = time.monotonic(), self.parse(message)
                if self.note(response):
                    found = self.download_result(response.data)
                    if not isinstance(found, dict) or not found:
                        raise ValueError("a result without values")
                    return found
                latest = latest if response.status is Status.LOG else response

    @staticmethod
    def _hear(connection: Any) -> str | bytes:
        message: str | bytes = connection.recv()
        if not message:
            raise ConnectionError("the server closed the connection")
        return message

    @staticmethod
    def parse(message: str | bytes) -> ResponseModel:
        """Read one message; tensors and plain values only."""
        if isinstance(message, str):
            return ResponseModel.model_validate_json(message)
        return ResponseModel(**_load(message))

    def finalize(self, content: bytes) -> dict[str, Any]:
        """Read what a trace saved; tensors and plain values only."""
        if self.compress:
            content = zstandard.ZstdDecompressor().decompress(content)
        return _load(content)

    def _clean(self, text: str) -> str:
        """Take out of what is said the key, signatures of links and what is no text."""
        text = re.sub(r"\?\S+", "?…", text.replace(self.api_key, "…"))
        return "".join(letter for letter in text if letter.isprintable())

    def _explain(self, error: RemoteError, reason: str) -> str:
        answer = getattr(error.__cause__, "response", None)
        if answer is not None and answer.status_code in {401, 403}:
            return (
                f"{self.host} does not accept the key in NDIF_API_KEY ({reason}): "
                "get one at https://login.ndif.us"
            )
        if re.search("out of memory|OutOfMemory|execution timeout", str(error)):
            return f"{self.host}: {reason}; ask for fewer --batch-tokens"
        return f"{self.host} could not do it: {reason}"


class _Plain(pickle.Unpickler):
    """Reads tensors and plain values, and refuses all else: a pickle can name any function.

    (torch's own way, `weights_only`, does not know the protocol that servers write.)
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"a result holds {module}.{name}, which is no tensor")
        return super().find_class(module, name)


_PLAIN = {
    ("collections", "OrderedDict"),
    ("nnsight.schema.response", "Status"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor_v2"),
    *(("torch", f"{kind}Storage") for kind in ("Float", "Double", "Half", "BFloat16")),
    *(("torch", f"{kind}Storage") for kind in ("Int", "Long", "Short", "Byte", "Char", "Bool")),
}
"""What a result may name: what torch makes a tensor of, and a request's status."""

_PICKLE = SimpleNamespace(Unpickler=_Plain, __name__="plain")
"""In the place of the module `pickle`, for `torch.load`."""


def _load(content: bytes) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        # Else torch would take it for a program.
        if any(name.endswith("constants.pkl") for name in archive.namelist()):
            raise pickle.UnpicklingError("a result is a program")
    found: dict[str, Any] = torch.load(
        io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=_PICKLE
    )
    return found


def _passes(error: RemoteError) -> bool:
    """Return whether an error is likely gone when the request is sent again."""
    cause, text = error.__cause__, str(error)
    if isinstance(cause, httpx.HTTPStatusError):
        return cause.response.status_code in PASSING
    if isinstance(cause, httpx.HTTPError):
        return True
    if text.startswith("Could not deploy") or "Traceback (most recent call last)" in text:
        return False
    return TRANSIENT.search(text) is not None


def _gist(text: str) -> str:
    """Return the one line of a server's answer that matters: a traceback's last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "no reason given"
    if not lines[0].startswith("Traceback"):
        return lines[0]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (raised or lines)[-1]


def _ask(host: str, path: str, wanted: str) -> dict[str, Any]:
    """Return what a server answers, which has a dictionary of this name, or refuse the server."""
    try:
        answer = httpx.get(f"{host}{path}", timeout=httpx.Timeout(CONNECT, read=90))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError, OSError) as error:
        raise Refusal(
            f"{host} cannot be reached ({first_line(error)}): check --host, or NDIF_HOST, and the "
            "network"
        ) from error
    if answer.status_code in PASSING:
        raise Refusal(
            f"{host} is there, but not what computes behind it (status {answer.status_code}): "
            "try again in some minutes"
        )
    try:
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        if not isinstance(found[wanted], dict):
            raise ValueError(f"{wanted} are no dictionary")
    except (httpx.HTTPStatusError, ValueError, LookupError, TypeError) as error:
        elsewhere = answer.headers.get("location", "").partition("?")[0]
        raise Refusal(
            f"{host} is not an NDIF server: it does not answer {path} as one"
            f"{f', but points to {elsewhere}' if elsewhere else ''}; check --host, or NDIF_HOST"
        ) from error
    return found


def _versions(host: str) -> dict[str, str]:
    found = _ask(host, "/env", "packages")
    python = str(found.get("python_version", "")).partition(" ")[0]
    known = {"python": python, **found["packages"]}
    return {name: str(known[name]) for name in ("python", *LIBRARIES) if known.get(name)}
