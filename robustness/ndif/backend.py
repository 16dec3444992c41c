"""Requests to a server: a trace is sent as source text, and what it saves comes back.

The connection may fail at any moment; the same request is then sent again, a bounded number of
times. An answer may be no larger than what was asked for, and `robustness.ndif.pickle_reader` reads
it, so that a server cannot make this machine run anything.
"""

import contextlib
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import httpx
import websocket
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel
from nnsight.schema.response import Status

from robustness.errors import Refusal, first_line, reading
from robustness.ndif import failures, transport
from robustness.ndif.archive import unpack
from robustness.ndif.failures import Failed
from robustness.ndif.limits import Limits, Unreadable
from robustness.ndif.messages import Message, read_message
from robustness.ndif.pickle_reader import load
from robustness.ndif.report import Report
from robustness.ndif.room import Room
from robustness.ndif.saved_names import saved_names

RETRIES = 6
"""Maximum number of times that a request is sent again."""

RESTART = 24
"""Maximum number of times that a request is sent again if nothing answers at the server's address:
five to ten minutes, with the waits."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""First and longest wait, in seconds, before a request is sent again. The wait doubles each time,
and is shortened at random, by half at most."""

PATIENCE = 10.0
"""Seconds of silence after which the user is told what the server is waiting for."""

SILENCE = 1800.0
"""Seconds of silence after which a request that waits for its turn counts as lost.

A request that runs has no such limit: only the connection must stay alive."""

READ = 600.0
"""Maximum number of seconds between two parts of an answer or of a result."""

HEADROOM = 16e6
"""Number of bytes that an answer may have besides the numbers that were asked for."""

LONGEST = 300
"""Maximum number of characters of a server's message that are passed on."""

_CHANCE = random.Random()

Notify = Callable[[str], object]
"""Function that is called with a message for a user who waits."""


class Requests(RemoteBackend):  # type: ignore[misc]
    """Runs traces on a server: each trace is one request, which is sent again if it is lost.

    Parameters
    ----------
    model_key : str
        Name by which the server knows the model.
    host, key : str
        The server's address and the user's key.
    env : dict
        Environment that the server sets up for each request, as nnsight describes it.
    notify : callable, optional
        Function that is called with a message when the server keeps the user waiting, and when a
        request is sent again.
    limits : Limits, optional
        Maximum sizes of an answer, and of the traffic through a sandbox's socket.
    """

    def __init__(
        self,
        model_key: str,
        host: str,
        key: str,
        env: dict[str, Any] | None = None,
        notify: Notify | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(model_key, host=host, api_key=key, env=env)
        self.limits = limits or Limits()
        self.limit, self.most = self.limits.sandbox, self.limits.answer
        # Shared with the copies that `expecting` makes.
        self.reports: list[Report] = []
        self.room: Room | None = None
        self.remedy = "save less in the trace, or open the model with a larger `answer_limit`"
        # nnsight would print its progress; here the command line alone prints.
        self.display.enabled = self.verbose = False
        self.notify: Notify = notify or (lambda text: None)

    def __repr__(self) -> str:
        return f"Requests({self.host})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Return a text to pickle: a trace takes along what it names, and the key must not go."""
        return str, (repr(self),)

    def expecting(self, numbers: int) -> "Requests":
        """Return a copy for a trace that returns at most this number of numbers."""
        # Eight bytes a number: float64 and int64 are the widest types that are asked for.
        limits = replace(self.limits, answer=8 * numbers + HEADROOM)
        requests = Requests(self.model_key, self.host, self.api_key, self.env, self.notify, limits)
        requests.reports, requests.room = self.reports, self.room
        requests.remedy = "give the same command again, or choose another `host`"
        return requests

    def __call__(self, tracer: Any = None) -> Any:
        """Send a trace, and return the values that it saved."""
        there = tracer.info.frame.f_code.co_filename
        known, due = saved_names(tracer.node)
        result = self._insist(self._serialize(tracer), there)
        missing = sorted(due - result.keys())
        if missing:
            raise self._refuse(f"it lacks {missing[0]!r}, which the trace saves")
        # nnsight assigns every value to the caller's variable of that name: a server must not be
        # able to overwrite others.
        kept = {name: value for name, value in result.items() if name in known}
        self._push(kept, tracer)
        return kept

    def _refuse(self, reason: str) -> Refusal:
        return Refusal(f"{self._source} is not understood ({self._clean(reason)}): {self.remedy}")

    @property
    def _source(self) -> str:
        return f"what {self.host} answers"

    def _insist(self, blob: bytes, there: str) -> dict[str, Any]:
        """Send a request until it is answered, or has failed often enough or for good."""
        tries: Counter[int] = Counter()
        while True:
            outcome = self._try(blob)
            if isinstance(outcome, dict):
                return outcome
            reason = self._clean(failures.reason(outcome, there))
            if not failures.is_passing(outcome):
                raise Refusal(failures.explain(outcome, reason, self.host))
            most = RESTART if failures.is_away(outcome) else RETRIES
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
        """Return the values that came back, or the error of a request that was lost."""
        try:
            with reading(self._source, self.remedy):
                try:
                    return self._send(blob)
                except Unreadable as error:
                    raise self._refuse(str(error)) from None
                except failures.ON_THE_WAY as error:
                    return error
        except Refusal as error:
            # A server's words may hold anything, and so must not stand in a traceback either.
            raise Refusal(self._clean(str(error), 2 * LONGEST)) from None

    def _send(self, blob: bytes) -> dict[str, Any]:
        """Send a request once, and return the values that its trace saved."""
        request = RequestModel(model_key=self.model_key, compress=self.compress, env=self.env)
        connection = transport.subscribe(self.ws_host, self.api_key)
        with contextlib.ExitStack() as stack:
            # Not `close`, which waits for the server to say goodbye.
            stack.callback(connection.shutdown)
            request.session_id = _read_session(transport.hear(connection))
            latest = self._submit(request, blob)
            connection.most = self.most
            connection.settimeout(PATIENCE)
            return self.download_result(self._wait(connection, latest))

    def _submit(self, request: RequestModel, blob: bytes) -> Message:
        """Submit a request, and return the server's first message about it."""
        headers = {
            "ndif-api-key": self.api_key,
            "ndif-timestamp": repr(time.time()),
            "nnsight-version": version("nnsight"),
            "python-version": sys.version,
        }
        status, _, body = transport.fetch(
            "POST",
            f"{self.host}/request",
            transport.SMALL,
            timeout=httpx.Timeout(transport.CONNECT, read=READ),
            data={"data": request.metadata()},
            files={"blob": ("request", blob, "application/octet-stream")},
            headers=headers,
        )
        if not 200 <= status < 300:
            detail = _read_detail(body) or f"status {status}"
            raise Failed(f"Failed to send request: {detail}", status)
        return read_message(body.decode(), transport.SMALL)

    def _wait(self, connection: Any, latest: Message) -> str | bytes | None:
        """Wait until a request is done, and return its result, or the address of it.

        The user is told what the server is waiting for whenever that changes.
        """
        heard, told = time.monotonic(), ""
        while True:
            try:
                frame = transport.hear(connection)
            except websocket.WebSocketTimeoutException:
                waits = latest.status != Status.RUNNING
                if waits and time.monotonic() - heard > SILENCE:
                    raise
                text = f"{self.host}: {latest.description or latest.status.lower()}"
                if text != told and waits:
                    self.notify(self._clean(text))
                told = text
                # Sending fails if the connection is dead; waiting alone would not notice.
                connection.ping()
                continue
            heard, message = time.monotonic(), read_message(frame, self.most)
            if message.status == Status.ERROR:
                raise Failed(message.description)
            if message.status == Status.COMPLETED:
                return message.data
            latest = latest if message.status == Status.LOG else message

    def download_result(self, url: str | bytes | None) -> dict[str, Any]:
        """Read a result, or fetch it from its address; the key is not sent there."""
        if isinstance(url, str) and url:
            timeout = httpx.Timeout(transport.CONNECT, read=READ)
            try:
                status, _, url = transport.fetch("GET", url, self.most, timeout)
            except httpx.HTTPError as error:
                # Not the error itself, which would count as the server being restarted.
                raise ConnectionError(f"no result is fetched ({first_line(error)})") from None
            if status != 200:
                raise ConnectionError(f"no result is fetched: status {status}")
        if not isinstance(url, bytes):
            raise Unreadable("a result without values")
        return self.finalize(url)

    def finalize(self, content: bytes) -> dict[str, Any]:
        """Read the values that a trace saved: tensors and plain values only."""
        if self.compress:
            content = unpack(content, self.most)
        saved = load(content, self.most)
        if not isinstance(saved, dict) or not saved:
            raise Unreadable("a result without values")
        return saved

    def _clean(self, text: str, most: int = LONGEST) -> str:
        """Remove the key, signatures of links and control characters from a message."""
        text = re.sub(r"\?\S+", "?…", text.replace(self.api_key, "…"))
        text = "".join(letter for letter in text if letter.isprintable())
        return text if len(text) <= most else f"{text[:most]}…"


def _read_session(message: str | bytes) -> str:
    """Return the session id in the first message of a subscription."""
    entries = transport.parse(message)
    session = entries.get("session_id") if isinstance(entries, dict) else None
    if not isinstance(session, str) or not re.fullmatch(r"[\w.:-]{1,200}", session):
        raise Unreadable("it begins with no session_id")
    return session


def _read_detail(body: bytes) -> str:
    """Return the explanation in an answer that reports an error, or nothing."""
    parsed = transport.parse(body)
    if parsed is None:
        return body.decode(errors="replace")
    detail = parsed.get("detail") if isinstance(parsed, dict) else parsed
    return detail if isinstance(detail, str) else ""
