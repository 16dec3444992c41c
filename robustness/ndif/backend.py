"""Requests to a server: a trace is sent as source text, and what it saves comes back.

The way there may fail at any moment, and then the same request is sent again, a bounded number of
times. What comes back is no larger than what was asked for, and read by
`robustness.ndif.pickle_reader`: a server cannot make this machine run anything.
"""

import contextlib
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
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
from robustness.ndif.saved_names import saved_names

RETRIES = 6
"""Number of times that a request is sent again."""

RESTART = 24
"""Number of times while nothing answers at the server's address: five to ten minutes, with the
waits."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before a request is sent again: doubled each time, and a random part of it left out."""

PATIENCE = 10.0
"""Seconds without a word from the server after which the user is told what it waits for."""

SILENCE = 1800.0
"""Seconds without a word after which a request that waits for its turn counts as lost.

One that runs may take as long as it takes; there, the connection itself must be alive."""

READ = 600.0
"""Seconds to wait for an answer to a request, and for a result."""

HEADROOM = 16e6
"""Bytes that an answer may have besides the numbers that were asked for."""

LONGEST = 300
"""Maximum number of letters of a server's words that are repeated."""

_CHANCE = random.Random()

Notify = Callable[[str], object]
"""Told what a user who waits should know."""


class Requests(RemoteBackend):  # type: ignore[misc]
    """Runs traces on a server: each is one request, sent again where the way there fails.

    Parameters
    ----------
    model_key : str
        Name by which the server knows the model.
    host, key : str
        The server's address and the user's key.
    env : dict
        What the server is to set up for each request, as nnsight says.
    notify : callable, optional
        Told of waiting and of what is sent again.
    limits : Limits, optional
        How much may come back, and how much may pass through a sandbox's socket.
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
        limits = limits or Limits()
        self.limit, self.most = limits.sandbox, limits.answer
        self.remedy = "save less in the trace, or open the model with a larger `answer_limit`"
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
        limits = Limits(self.limit, 8 * numbers + HEADROOM)
        requests = Requests(self.model_key, self.host, self.api_key, self.env, self.notify, limits)
        requests.remedy = "give the same command again, or choose another `host`"
        return requests

    def __call__(self, tracer: Any = None) -> Any:
        """Send a trace, and hand back what it saved."""
        there = tracer.info.frame.f_code.co_filename
        known, due = saved_names(tracer.node)
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
        """Return what came back, or how it failed on the way."""
        try:
            with reading(self._source, self.remedy):
                try:
                    return self._send(blob)
                except Unreadable as error:
                    raise self._refuse(str(error)) from None
                except failures.ON_THE_WAY as error:
                    return error
        except Refusal as error:
            # Words of a server may hold anything, in a traceback too.
            raise Refusal(self._clean(str(error), 2 * LONGEST)) from None

    def _send(self, blob: bytes) -> dict[str, Any]:
        """Send a request once, and return what its trace saved."""
        request = RequestModel(model_key=self.model_key, compress=self.compress, env=self.env)
        connection = transport.subscribe(self.ws_host, self.api_key)
        with contextlib.ExitStack() as stack:
            # At once: a farewell would be waited for.
            stack.callback(connection.shutdown)
            request.session_id = _read_session(transport.hear(connection))
            latest = self._submit(request, blob)
            connection.most = self.most
            connection.settimeout(PATIENCE)
            return self.download_result(self._wait(connection, latest))

    def _submit(self, request: RequestModel, blob: bytes) -> Message:
        """Hand in a request, and return what the server says at once."""
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

        The user is told what it waits for, each thing once.
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
                connection.ping()
                continue
            heard, message = time.monotonic(), read_message(frame, self.most)
            if message.status == Status.ERROR:
                raise Failed(message.description)
            if message.status == Status.COMPLETED:
                return message.data
            latest = latest if message.status == Status.LOG else message

    def download_result(self, url: str | bytes | None) -> dict[str, Any]:
        """Read a result that is in hand, or fetch it; the key does not go along."""
        if isinstance(url, str) and url:
            timeout = httpx.Timeout(transport.CONNECT, read=READ)
            try:
                status, _, url = transport.fetch("GET", url, self.most, timeout)
            except httpx.HTTPError as error:
                # Not the server, whose restart would be waited for.
                raise ConnectionError(f"no result is fetched ({first_line(error)})") from None
            if status != 200:
                raise ConnectionError(f"no result is fetched: status {status}")
        if not isinstance(url, bytes):
            raise Unreadable("a result without values")
        return self.finalize(url)

    def finalize(self, content: bytes) -> dict[str, Any]:
        """Read what a trace saved; tensors and plain values only."""
        if self.compress:
            content = unpack(content, self.most)
        saved = load(content, self.most)
        if not isinstance(saved, dict) or not saved:
            raise Unreadable("a result without values")
        return saved

    def _clean(self, text: str, most: int = LONGEST) -> str:
        """Take out of what is said the key, signatures of links and what is no text."""
        text = re.sub(r"\?\S+", "?…", text.replace(self.api_key, "…"))
        text = "".join(letter for letter in text if letter.isprintable())
        return text if len(text) <= most else f"{text[:most]}…"


def _read_session(message: str | bytes) -> str:
    """Return the id that a subscription begins with."""
    entries = transport.parse(message)
    session = entries.get("session_id") if isinstance(entries, dict) else None
    if not isinstance(session, str) or not re.fullmatch(r"[\w.:-]{1,200}", session):
        raise Unreadable("it begins with no session_id")
    return session


def _read_detail(body: bytes) -> str:
    """Return what an answer says of an error, or nothing."""
    parsed = transport.parse(body)
    if parsed is None:
        return body.decode(errors="replace")
    detail = parsed.get("detail") if isinstance(parsed, dict) else parsed
    return detail if isinstance(detail, str) else ""
