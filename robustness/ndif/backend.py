"""NDIF: what a server runs, whether it can be used, and the requests that go to it.

A trace is sent as source text and runs where the weights are; what it saves comes back. The way
there may fail at any moment, and then the same request is sent again, a bounded number of times.
What comes back is no larger than what was asked for, and read by `robustness.ndif.answer`: a server
cannot make this machine run anything.
"""

import ast
import contextlib
import json
import random
import re
import socket
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import httpx
import websocket
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError  # type: ignore[attr-defined]
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel
from nnsight.schema.response import Status

from robustness.errors import Refusal, first_line, reading
from robustness.ndif import answer
from robustness.ndif.limits import ANSWER_LIMIT, SANDBOX_LIMIT

RETRIES = 6
"""How often a request is sent again."""

RESTART = 24
"""How often while nothing answers at the server's address: five to ten minutes, with the waits."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before a request is sent again: doubled each time, and a random part of it left out."""

PATIENCE = 10.0
"""Seconds without a word from the server after which the user is told what it waits for."""

SILENCE = 1800.0
"""Seconds without a word after which a request that waits for its turn counts as lost.

One that runs may take as long as it takes; there, the connection itself must be alive."""

PASSING = {408, 425, 429, *range(500, 600)}
"""Statuses of answers that may be other the next time."""

AWAY = {502, 503, 504}
"""Statuses of what stands before a server that is not there."""

HEADROOM = 16e6
"""Bytes that an answer may have besides the numbers that were asked for."""

SMALL = 16e6
"""Bytes of an answer without numbers."""

LONGEST = 300
"""Letters of a server's words that are repeated."""

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
            name=printable(each.get("repo_id")) or "?",
            revision=printable(each.get("revision")),
            task=printable(each.get("task")),
            state=printable(each.get("application_state")) or "UNHEALTHY",
            dtype=printable(each.get("dtype")),
        )
        for each in found.values()
        if isinstance(each, dict) and printable(each.get("deployment_level")) in {"HOT", "WARM"}
    }
    return sorted(known, key=lambda each: (each.name, each.revision, each.state))


def check(
    name: str, *, host: str, revision: str | None = None, deploy: bool = False
) -> tuple[dict[str, str], str | None]:
    """Refuse a run that the server would not do, and return what it has.

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

    Returns
    -------
    versions : dict of str to str
        Of the server's libraries.
    revision : str, optional
        By which the server knows the commit; None where it is what it loads without any.

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
        asked = HfApi().model_info(name, revision=revision, timeout=CONNECT)
        name = asked.id
        main = asked if revision is None else HfApi().model_info(name, timeout=CONNECT)
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
    running_as = {each.revision for each in running if each.name == name}
    if revision not in running_as and asked.sha == main.sha:
        revision = None
    same = [each for each in running if each.name == name and each.revision == (revision or "")]
    if not deploy and not any(each.state in {"RUNNING", "DEPLOYING"} for each in same):
        names = sorted({each.name for each in running if each.state == "RUNNING"})
        some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise Refusal(
            f"{name}{f' at {revision}' if revision else ''} does not run on {host}, where there is "
            f"{some or 'no model'}: choose one of `stages models --remote`, or ask for it to be "
            "loaded with --deploy"
        )
    return versions, revision


class Failed(Exception):
    """A request that is answered by an error."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        """Of the answer, where not the trace but sending it failed."""


ON_THE_WAY = (OSError, httpx.HTTPError, websocket.WebSocketException, Failed)
"""What fails on the way there, or is said to have failed there."""


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
    most : float
        Bytes that an answer may have, compressed and not.
    """

    def __init__(
        self,
        model_key: str,
        host: str,
        key: str,
        env: dict[str, Any] | None = None,
        notify: Notify | None = None,
        limit: float = SANDBOX_LIMIT,
        most: float = ANSWER_LIMIT * 1e9,
    ) -> None:
        super().__init__(model_key, host=host, api_key=key, env=env)
        self.limit, self.most = limit, most
        self.remedy = "save less in the trace, or open the model with a larger answer_limit"
        # The command line alone prints.
        self.display.enabled = self.verbose = False
        self.notify: Notify = notify or (lambda text: None)

    def __repr__(self) -> str:
        return f"Requests({self.host})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the key here: what a trace names goes along with it."""
        return str, (repr(self),)

    def expecting(self, numbers: int) -> "Requests":
        """Return the same for a trace that hands back so many numbers at most."""
        most = 8 * numbers + HEADROOM
        found = Requests(
            self.model_key, self.host, self.api_key, self.env, self.notify, self.limit, most
        )
        found.remedy = "give the same command again, or choose another --host"
        return found

    def __call__(self, tracer: Any = None) -> Any:
        """Send a trace, and hand back what it saved."""
        there = tracer.info.frame.f_code.co_filename
        known, due = _names(tracer.node)
        result = self._insist(self._serialize(tracer), there)
        missing = sorted(due - result.keys())
        if missing:
            raise self._refuse(f"it lacks {missing[0]!r}, which the trace saves")
        # A name that the trace does not bind would be overwritten in the caller.
        kept = {name: value for name, value in result.items() if name in known}
        self._push(kept, tracer)
        return kept

    def _refuse(self, reason: str) -> Refusal:
        return Refusal(f"{self._source} is not understood ({self._clean(reason)}): {self.remedy}")

    @property
    def _source(self) -> str:
        return f"what {self.host} answers"

    def _insist(self, blob: bytes, there: str) -> dict[str, Any]:
        tries: Counter[int] = Counter()
        while True:
            found = self._try(blob)
            if isinstance(found, dict):
                return found
            reason = self._clean(self._reason(found, there))
            if not _passes(found):
                raise Refusal(self._explain(found, reason))
            most = RESTART if _is_away(found) else RETRIES
            if tries[most] == most:
                raise Refusal(
                    f"{self.host} was asked {tries.total() + 1} times in vain ({reason}); what is "
                    "done is kept, and the same command goes on from there"
                )
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** tries[most]) * _CHANCE.uniform(0.5, 1)
            tries[most] += 1
            self.notify(f"{reason}; trying again in {wait:.0f} s ({tries[most]} of {most})")
            time.sleep(wait)

    def _try(self, blob: bytes) -> dict[str, Any] | Exception:
        """Return what came back, or how it failed on the way."""
        try:
            with reading(self._source, self.remedy):
                try:
                    return self._send(blob)
                except answer.Unreadable as error:
                    raise self._refuse(str(error)) from None
                except ON_THE_WAY as error:
                    return error
        except Refusal as error:
            # Words of a server may hold anything, in a traceback too.
            raise Refusal(self._clean(str(error), 2 * LONGEST)) from None

    def _send(self, blob: bytes) -> dict[str, Any]:
        request = RequestModel(model_key=self.model_key, compress=self.compress, env=self.env)
        connection: Any = websocket.create_connection(
            f"{self.ws_host}/subscribe",
            header={"ndif-api-key": self.api_key},
            timeout=CONNECT,
            sockopt=_KEEPALIVE,
            redirect_limit=0,
            class_=_Socket,
        )
        with contextlib.ExitStack() as stack:
            # At once: a farewell would be waited for.
            stack.callback(connection.shutdown)
            request.session_id = _session(self._hear(connection))
            latest = self._submit(request, blob)
            connection.most = self.most
            connection.settimeout(PATIENCE)
            heard, told = time.monotonic(), ""
            while True:
                try:
                    message = self._hear(connection)
                except websocket.WebSocketTimeoutException:
                    waits = latest.status != Status.RUNNING
                    if waits and time.monotonic() - heard > SILENCE:
                        raise
                    text = f"{self.host}: {latest.description or latest.status.lower()}"
                    if text != told and waits:
                        self.notify(self._clean(text))
                    told = text
                    connection.ping()
                    continue
                heard, response = time.monotonic(), answer.message(message, self.most)
                if response.status == Status.ERROR:
                    raise Failed(response.description)
                if response.status == Status.COMPLETED:
                    return self.download_result(response.data)
                latest = latest if response.status == Status.LOG else response

    @staticmethod
    def _hear(connection: Any) -> str | bytes:
        message: str | bytes = connection.recv()
        if not message:
            raise ConnectionError("the server closed the connection")
        return message

    def _submit(self, request: RequestModel, blob: bytes) -> answer.Message:
        """Send a request, and return what is said at once."""
        headers = {
            "ndif-api-key": self.api_key,
            "ndif-timestamp": repr(time.time()),
            "nnsight-version": version("nnsight"),
            "python-version": sys.version,
        }
        status, body = _fetch(
            "POST",
            f"{self.host}/request",
            SMALL,
            timeout=httpx.Timeout(CONNECT, read=600),
            data={"data": request.metadata()},
            files={"blob": ("request", blob, "application/octet-stream")},
            headers=headers,
        )[::2]
        if not 200 <= status < 300:
            raise Failed(f"Failed to send request: {_detail(body) or f'status {status}'}", status)
        return answer.message(body.decode(), SMALL)

    def download_result(self, url: str | bytes | None) -> dict[str, Any]:
        """Read a result that is in hand, or fetch it; the key does not go along."""
        if isinstance(url, str) and url:
            timeout = httpx.Timeout(CONNECT, read=600)
            try:
                status, _, url = _fetch("GET", url, self.most, timeout)
            except httpx.HTTPError as error:
                # Not the server, whose restart would be waited for.
                raise ConnectionError(f"no result is fetched ({first_line(error)})") from None
            if status != 200:
                raise ConnectionError(f"no result is fetched: status {status}")
        if not isinstance(url, bytes):
            raise answer.Unreadable("a result without values")
        return self.finalize(url)

    def finalize(self, content: bytes) -> dict[str, Any]:
        """Read what a trace saved; tensors and plain values only."""
        if self.compress:
            content = answer.unpack(content, self.most)
        found = answer.load(content, self.most)
        if not isinstance(found, dict) or not found:
            raise answer.Unreadable("a result without values")
        return found

    def _clean(self, text: str, most: int = LONGEST) -> str:
        """Take out of what is said the key, signatures of links and what is no text."""
        text = re.sub(r"\?\S+", "?…", text.replace(self.api_key, "…"))
        text = "".join(letter for letter in text if letter.isprintable())
        return text if len(text) <= most else f"{text[:most]}…"

    @staticmethod
    def _reason(error: Exception, there: str) -> str:
        if isinstance(error, websocket.WebSocketBadStatusException):
            return f"the connection is refused with status {error.status_code}"
        return _gist(str(error), there) if isinstance(error, Failed) else first_line(error)

    def _explain(self, error: Exception, reason: str) -> str:
        if isinstance(error, websocket.WebSocketBadStatusException):
            return f"{self.host}: {reason}; check --host and proxies"
        if isinstance(error, Failed) and error.status in {401, 403}:
            return (
                f"{self.host} does not accept the key in NDIF_API_KEY ({reason}): "
                "get one at https://login.ndif.us"
            )
        if re.search("out of memory|OutOfMemory|execution timeout", str(error)):
            return f"{self.host}: {reason}; ask for fewer --batch-tokens"
        return f"{self.host} could not do it: {reason}"


class _Socket(websocket.WebSocket):
    """Reads no more of one message than was asked for."""

    most, _count = SMALL, 0

    def recv(self) -> str | bytes:
        found: str | bytes = websocket.WebSocket.recv(self)
        self._count = 0
        return found

    def _recv(self, bufsize: int) -> bytes:
        piece: bytes = websocket.WebSocket._recv(self, bufsize)  # type: ignore[no-untyped-call]
        self._count += len(piece)
        answer.check_size(self._count, self.most)
        return piece


def _session(message: str | bytes) -> str:
    found = _parsed(message)
    session = found.get("session_id") if isinstance(found, dict) else None
    if not isinstance(session, str) or not re.fullmatch(r"[\w.:-]{1,200}", session):
        raise answer.Unreadable("it begins with no session_id")
    return session


def _detail(body: bytes) -> str:
    """Return what an answer says of an error, or nothing."""
    found = _parsed(body)
    if found is None:
        return body.decode(errors="replace")
    found = found.get("detail") if isinstance(found, dict) else found
    return found if isinstance(found, str) else ""


def _names(node: Any) -> tuple[set[str], set[str]]:
    """Return the names by which a trace may save values, and those by which it does in any case."""
    known, due = set(), set()
    for part in (part for statement in node.body for part in ast.walk(statement)):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            known.add(part.id)
        elif isinstance(part, ast.FunctionDef | ast.ClassDef):
            known.add(part.name)
        elif isinstance(part, ast.Call) and _is_save(part):
            # What is saved may have its name from before.
            receiver = [part.func.value] if isinstance(part.func, ast.Attribute) else []
            known |= {each.id for each in (*receiver, *part.args) if isinstance(each, ast.Name)}
    waiting = list(node.body)
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.With):
            waiting += part.body
        elif isinstance(part, ast.Assign) and _is_save(part.value):
            due |= {target.id for target in part.targets if isinstance(target, ast.Name)}
    return known, due


def _is_save(part: Any) -> bool:
    """Whether a piece of source is a call of `save`, as a function or as a method."""
    if not isinstance(part, ast.Call):
        return False
    return getattr(part.func, "attr", getattr(part.func, "id", None)) == "save"


def _is_away(error: Exception) -> bool:
    """Whether nothing answers at the server's address, as while it is restarted."""
    if isinstance(error, websocket.WebSocketBadStatusException):
        return error.status_code in AWAY
    if isinstance(error, Failed):
        return error.status in AWAY
    return isinstance(error, _NO_CONNECTION)


_NO_CONNECTION = (
    ConnectionRefusedError,
    socket.gaierror,
    websocket.WebSocketAddressException,
    httpx.ConnectError,
    httpx.ConnectTimeout,
)


def _passes(error: Exception) -> bool:
    """Return whether an error is likely gone when the request is sent again."""
    if isinstance(error, websocket.WebSocketBadStatusException):
        return error.status_code in PASSING
    if not isinstance(error, Failed):
        return True
    text = str(error)
    if error.status is not None:
        return error.status in PASSING
    if text.startswith("Could not deploy") or "Traceback (most recent call last)" in text:
        return False
    return TRANSIENT.search(text) is not None


def _gist(text: str, there: str) -> str:
    """Return the one line of a server's answer that matters: a traceback's last, and where.

    Parameters
    ----------
    text : str
        What the server says.
    there : str
        The file that the trace is written in.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "no reason given"
    if not lines[0].startswith("Traceback"):
        return lines[0]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (raised or lines)[-1] + _place(lines, there)


def _place(lines: list[str], there: str) -> str:
    """Return where in the user's own code a traceback has been last, or nothing."""
    found = ""
    for line, code in pairwise(lines):
        entry = re.match(r'File "(.+)", line (\d+), in ', line)
        if entry is None or code.startswith("File "):
            continue
        path, number = entry.groups()
        name = re.split(r"[/\\\\]", path)[-1]
        if path == there or not re.search(
            r"[/\\](site-packages|dist-packages|lib[/\\]python[\d.]+)[/\\]", path
        ):
            found = f" (line {number} of {name}: {code})"
    return found


def _fetch(
    method: str,
    url: str,
    most: float,
    timeout: httpx.Timeout,
    within: float = float("inf"),
    **options: Any,
) -> tuple[int, str, bytes]:
    """Ask for something over HTTP, and return the status, where it points to and what is sent.

    Raises
    ------
    Unreadable
        If more is sent than so many bytes, or it is compressed, which was not asked for.
    ReadTimeout
        If it takes longer than so many seconds, however little at a time.
    """
    end = time.monotonic() + within
    with (
        httpx.Client(timeout=timeout, headers={"Accept-Encoding": "identity"}) as client,
        client.stream(method, url, **options) as found,
    ):
        if found.headers.get("content-encoding", "identity") != "identity":
            raise answer.Unreadable("it is compressed")
        body = bytearray()
        for piece in found.iter_raw():
            body += piece
            answer.check_size(len(body), most)
            if time.monotonic() > end:
                raise httpx.ReadTimeout("it answers too slowly")
        elsewhere = found.headers.get("location", "").partition("?")[0]
        return found.status_code, elsewhere, bytes(body)


def _ask(host: str, path: str, wanted: str) -> dict[str, Any]:
    """Return what a server answers, which has a dictionary of this name, or refuse the server."""
    timeout = httpx.Timeout(CONNECT, read=90)
    try:
        status, elsewhere, body = _fetch("GET", f"{host}{path}", SMALL, timeout, within=90)
    except answer.Unreadable:
        status, elsewhere, body = 200, "", b""
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError, OSError) as error:
        raise Refusal(
            f"{host} cannot be reached ({first_line(error)}): check --host, or NDIF_HOST, and the "
            "network"
        ) from error
    if status in PASSING:
        raise Refusal(
            f"{host} is there, but not what computes behind it (status {status}): "
            "try again in some minutes"
        )
    found = _parsed(body) if status == 200 else None
    if not isinstance(found, dict) or not isinstance(found.get(wanted), dict):
        pointed = f", but points to {printable(elsewhere)}" if elsewhere else ""
        raise Refusal(
            f"{host} is not an NDIF server: it does not answer {path} as one{pointed}; check "
            "--host, or NDIF_HOST"
        )
    return found


def _parsed(body: str | bytes) -> Any:
    """Return what is written in JSON, or None."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def printable(text: object, most: int = 200) -> str:
    """Return a server's word for something as text of one line that a terminal can show."""
    letters = text if isinstance(text, str) else ""
    return "".join(letter for letter in letters if letter.isprintable())[:most]


def _versions(host: str) -> dict[str, str]:
    found = _ask(host, "/env", "packages")
    known = {**found["packages"], "python": found.get("python_version")}
    words = {name: printable(known.get(name)).partition(" ")[0] for name in ("python", *LIBRARIES)}
    return {name: word for name, word in words.items() if word}
