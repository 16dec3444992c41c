"""Requests as jobs: each is sent to a server once, and asked for by its id until it is answered.

The connection may fail at any moment. The job goes on meanwhile, and is asked for again by the same
id; only if the server has lost it, its request is sent again.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import httpx
from nnsight.schema.response import Status

from robustness.errors import first_line
from robustness.ndif import failures
from robustness.ndif.failures import Failed
from robustness.ndif.job import SILENCE, Job, Lost
from robustness.ndif.limits import Unreadable
from robustness.ndif.messages import Message, read_message
from robustness.ndif.patience import Notify, Patience
from robustness.ndif.report import Report, lacks_memory, read_report
from robustness.ndif.transport import CONNECT, SMALL, connection, fetch, parse, place_of

QUIET = 10.0
"""Seconds without news after which the user is told what the server is waiting for."""

ASK, SUBMIT = 60.0, 300.0
"""Maximum number of seconds for the answer to a question, and to a request that is sent."""

READ = 120.0
"""Maximum number of seconds between two parts of a result."""

SLOWEST = 50e3
"""Least bytes a second with which a result must come."""


@dataclass(frozen=True)
class Request:
    """A request for a server."""

    host: str
    """The server's address."""
    key: str
    """The user's key."""
    envelope: dict[str, Any]
    """What is to be run, and where, as nnsight describes it."""
    blob: bytes
    """The trace."""
    most: float
    """Maximum number of bytes of its result."""
    patience: float
    """Minutes that may be lost to failures that pass."""
    notify: Notify
    """Function that is called with what is waited for."""
    report: Callable[[Report], object]
    """Function that is called with what the request has cost, once it is answered."""

    def run(self) -> bytes:
        """Have the server run it, and return the result.

        Raises
        ------
        Failed
            If the server answers with an error that would come again.
        Refusal
            If failures that might pass do not, for as long as there is patience.
        Unreadable
            If the answer is none.
        """
        patience, silence = self._patience(), SILENCE
        former, has_gone = None, False
        with connection() as client:
            while True:
                job = Job(60 * self.patience, silence)
                try:
                    return self._follow(client, job, former)
                except Lost as lost:
                    # A result that has gone is computed once more, and not for ever.
                    if lost.done and has_gone:
                        raise Failed(str(lost)) from None
                    has_gone, former = lost.done, job.id if lost.unknown else None
                    silence *= 2
                    patience.wait(str(lost), lived=job.age)

    def _patience(self) -> Patience:
        return Patience(self.host, self.patience, self.notify)

    def _follow(self, client: httpx.Client, job: Job, former: str | None) -> bytes:
        """Send the request, and return its result once there is one.

        Parameters
        ----------
        client : Client
            An open connection.
        job : Job
            The job that it becomes.
        former : str, optional
            Id of a job that it was before, which the server did not know.
        """
        patience, told = self._patience(), ""
        try:
            while True:
                try:
                    if not job.sent:
                        self._send(client, job, former)
                        patience.succeed()
                    time.sleep(job.pause)
                    result = self._ask(client, job)
                except failures.ON_THE_WAY as error:
                    job.miss(failures.is_away(error))
                    if not failures.is_passing(error):
                        raise
                    patience.wait(failures.reason(error))
                    continue
                if result is not None:
                    return result
                patience.succeed()
                told = self._tell(job, told)
        except KeyboardInterrupt:
            if job.sent:
                self.notify(
                    f"{self.host} goes on with job {job.id}: a job cannot be cancelled from here"
                )
            raise

    def _tell(self, job: Job, told: str) -> str:
        """Tell the user what a job waits for, unless that was told last; return what is told."""
        message = job.message
        if message is None or job.runs or job.quiet < QUIET:
            return told
        text = f"{self.host}: {message.description or message.state.lower()}"
        if text != told:
            self.notify(text)
        return text

    def _send(self, client: httpx.Client, job: Job, former: str | None) -> None:
        """Send the request, unless the server has taken note of the job that it was before."""
        if former is not None and self._read(client, former) is not None:
            job.id = former
            job.submit()
            return
        timeout = httpx.Timeout(CONNECT, read=SUBMIT, write=SUBMIT)
        # If the answer is lost, the job is known by the id that it is given here.
        envelope = json.dumps(self.envelope | {"id": job.id})
        about = {
            "ndif-timestamp": repr(time.time()),
            "nnsight-version": version("nnsight"),
            "python-version": sys.version,
        }
        try:
            status, _, body = fetch(
                client, "POST", f"{self.host}/request", SMALL, timeout, within=2 * SUBMIT,
                data={"data": envelope},
                files={"blob": ("request", self.blob, "application/octet-stream")},
                headers=self._headers | about,
            )  # fmt: skip
            if not 200 <= status < 300:
                detail = _read_detail(body) or f"status {status}"
                raise Failed(f"Failed to send request: {detail}", status)
        except BaseException as error:
            if not isinstance(error, Exception) or failures.was_taken(error):
                job.submit()
            raise
        message = read_message(body)
        job.id = message.id
        job.submit()
        job.hear(message)

    @property
    def _headers(self) -> dict[str, str]:
        return {"ndif-api-key": self.key}

    def _ask(self, client: httpx.Client, job: Job) -> bytes | None:
        """Ask for a job, and return its result if it is done."""
        message = self._read(client, job.id)
        job.hear(message)
        if message is None:
            return None
        if message.state == Status.ERROR:
            lacks = lacks_memory(message.meta)
            failed = Failed(message.description, lacks_memory=lacks)
            if failures.is_passing(failed):
                raise Lost(failures.reason(failed))
            if message.meta is not None:
                self.report(read_report(message.meta))
            raise failed
        if message.state != Status.COMPLETED or message.link is None:
            return None
        result = self._fetch(client, message.link)
        self.report(read_report(message.meta))
        return result

    def _read(self, client: httpx.Client, name: str) -> Message | None:
        """Return what the server says of a job, or None if it does not know it."""
        timeout = httpx.Timeout(CONNECT, read=ASK)
        address = f"{self.host}/response/{name}"
        status, _, body = fetch(
            client, "GET", address, SMALL, timeout, within=ASK, headers=self._headers
        )
        if status == 404:
            return None
        if status != 200:
            raise Failed(f"it does not say how the job is: status {status}", status)
        message = read_message(body)
        if message.id != name:
            raise Unreadable("it is about another job")
        return message

    def _fetch(self, client: httpx.Client, link: str) -> bytes:
        """Fetch a result from its address; the key is not sent there."""
        place = place_of(link, self.host)
        timeout = httpx.Timeout(CONNECT, read=READ)
        within = 2 * READ + self.most / SLOWEST
        try:
            status, _, result = fetch(client, "GET", link, self.most, timeout, within)
        except httpx.HTTPError as error:
            # Not the error itself, which would count as the server being away.
            text = f"no result is fetched from {place} ({first_line(error)})"
            raise ConnectionError(text) from None
        text = f"no result is fetched from {place}: status {status}"
        if status in failures.PASSING:
            raise ConnectionError(text)
        if status != 200:
            raise Lost(text, done=True)
        return result


def _read_detail(body: bytes) -> str:
    """Return the explanation in an answer that reports an error, or nothing."""
    parsed = parse(body)
    if parsed is None:
        return body.decode(errors="replace")
    detail = parsed.get("detail") if isinstance(parsed, dict) else parsed
    return detail if isinstance(detail, str) else ""
