"""Requests to a server: a trace is sent as source text, and what it saves comes back.

An answer may be no larger than what was asked for, and `robustness.ndif.pickle_reader` reads it, so
that a server cannot make this machine run anything.
"""

from dataclasses import replace
from typing import Any

from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel

from robustness.errors import Refusal, TooLarge, Unanswered, reading
from robustness.ndif import failures
from robustness.ndif.archive import unpack
from robustness.ndif.failures import LONGEST, Failed
from robustness.ndif.jobs import Request
from robustness.ndif.limits import Limits, Unreadable
from robustness.ndif.patience import Notify
from robustness.ndif.pickle_reader import load
from robustness.ndif.report import Report
from robustness.ndif.room import Room
from robustness.ndif.saved_names import saved_names

HEADROOM = 16e6
"""Number of bytes that an answer may have besides the numbers that were asked for."""


class Requests(RemoteBackend):  # type: ignore[misc]
    """Runs traces on a server: each trace is one request.

    Parameters
    ----------
    model_key : str
        Name by which the server knows the model.
    host, key : str
        The server's address and the user's key.
    env : dict
        Environment that the server sets up for each request, as nnsight describes it.
    notify : callable, optional
        Function that is called with a message when the server keeps the user waiting, and when
        something fails that may pass.
    limits : Limits, optional
        Maximum sizes of an answer and of the traffic through a sandbox's socket, and how long a
        server is waited for.
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
        result = self._ask(self._serialize(tracer), there)
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

    def _ask(self, blob: bytes, there: str = "") -> dict[str, Any]:
        """Have the server run a trace, and return the values that came back.

        Parameters
        ----------
        blob : bytes
            The trace.
        there : str
            Path of the file that it is written in.

        Raises
        ------
        TooLarge
            If the server has too little memory or time for it.
        Unanswered
            If the server does not answer for as long as there is patience.
        Refusal
            If the server cannot be asked, or gives no answer that can be used.
        """
        try:
            with reading(self._source, self.remedy):
                try:
                    return self.finalize(self._run(blob))
                except Unreadable as error:
                    raise self._refuse(str(error)) from None
                except Failed as error:
                    raise failures.refusal(error, there, self.host) from None
        except Refusal as error:
            # A server's words may hold anything, and so must not stand in a traceback either.
            text = self._clean(str(error), 2 * LONGEST)
            if isinstance(error, TooLarge):
                raise TooLarge(text, error.lacking) from None
            if isinstance(error, Unanswered):
                raise Unanswered(text) from None
            raise Refusal(text) from None

    def _run(self, blob: bytes) -> bytes:
        """Have the server run a trace, and return its result as it came."""
        envelope = RequestModel(model_key=self.model_key, compress=self.compress, env=self.env)
        return Request(
            host=self.host,
            key=self.api_key,
            envelope=envelope.model_dump(),
            blob=blob,
            most=self.most,
            patience=self.limits.patience,
            notify=lambda text: self.notify(self._clean(text)),
            report=self.reports.append,
        ).run()

    def finalize(self, content: bytes) -> dict[str, Any]:
        """Read the values that a trace saved: tensors and plain values only."""
        if self.compress:
            content = unpack(content, self.most)
        saved = load(content, self.most)
        if not isinstance(saved, dict) or not saved:
            raise Unreadable("a result without values")
        return saved

    def _clean(self, text: str, most: int = LONGEST) -> str:
        return failures.clean(text, self.api_key, most)
