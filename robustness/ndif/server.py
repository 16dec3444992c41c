"""NDIF servers: their address, the user's key, and the models and versions that they run."""

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError  # type: ignore[attr-defined]
from nnsight import CONFIG

from robustness.errors import Refusal, first_line
from robustness.ndif.failures import PASSING, Failed, is_unreached, reason
from robustness.ndif.limits import PATIENCE, Unreadable
from robustness.ndif.patience import Notify, Patience
from robustness.ndif.room import Assigned, read_assigned
from robustness.ndif.transport import CONNECT, SMALL, connection, fetch, parse

LIBRARIES = ("nnsight", "torch", "transformers")
"""Names of the libraries whose versions on the server are recorded."""

LISTED = 5
"""Maximum number of models that a message names."""


@dataclass(frozen=True)
class Deployment:
    """A model that a server has loaded, or is loading."""

    name: str
    """Its id on the hub."""
    revision: str
    """Branch, tag or commit; empty for the main branch."""
    task: str
    """Task of its pipeline, such as `text-generation`."""
    state: str
    """`RUNNING`, `DEPLOYING`, `NOT_STARTED` or `UNHEALTHY`."""
    dtype: str
    """Type of its weights."""
    assigned: Assigned
    """Memory and time that the server gives it."""


def resolve_host(host: str | None = None) -> str:
    """Return a server's address: the given one, `NDIF_HOST`, or the one in nnsight's configuration.

    Raises
    ------
    Refusal
        If it is no address of a server.
    """
    address = (host or CONFIG.API.HOST or "").rstrip("/")
    # Parsed by httpx, too, which sends the requests and refuses more addresses.
    try:
        parts = urlsplit(address)
        usable = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or 1) > 0
        (parts.hostname or "").encode("idna")
        httpx.URL(address)
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable or {"@", "?", "#"} & set(address):
        # Without a password before the @, and without what may be a key after the ?.
        shown = address.rpartition("@")[2].partition("?")[0]
        raise Refusal(f"{shown!r} is no address of a server: it looks like https://api.ndif.us")
    return address


def resolve_key() -> str:
    """Return the user's key: `NDIF_API_KEY`, or the one that `nnsight login` has stored.

    Raises
    ------
    Refusal
        If there is none, or it has not the form of a key.
    """
    key = (CONFIG.API.APIKEY or "").strip()
    if not key:
        raise Refusal(
            "there is no NDIF key: get one at https://login.ndif.us and put it into NDIF_API_KEY, "
            "or store it with 'nnsight login'"
        )
    try:
        return str(uuid.UUID(key))
    except ValueError:
        raise Refusal(
            "what NDIF_API_KEY (or nnsight's configuration) holds is no NDIF key, which looks "
            "like xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx: see https://login.ndif.us"
        ) from None


def deployments(
    host: str | None = None, patience: float = PATIENCE, notify: Notify | None = None
) -> list[Deployment]:
    """Return the models that a server runs now, sorted by name.

    Parameters
    ----------
    host : str, optional
        The server's address; by default `NDIF_HOST`, or the one in nnsight's configuration.
    patience : float
        Minutes for which a server that is there, but does not answer, is asked again.
    notify : callable, optional
        Function that is called with what is waited for.

    Raises
    ------
    Refusal
        If it cannot be asked.
    """
    waits = _patience(resolve_host(host), patience, notify)
    entries = _ask(resolve_host(host), "/status", "deployments", waits)["deployments"]
    # A set, since several deployments may be alike in what is shown of them.
    running = set()
    for entry in entries.values():
        if isinstance(entry, dict) and printable(entry.get("deployment_level")) in {"HOT", "WARM"}:
            running.add(_read_deployment(entry))
    return sorted(running, key=lambda model: (model.name, model.revision, model.state))


def _read_deployment(entry: dict[str, Any]) -> Deployment:
    return Deployment(
        name=printable(entry.get("repo_id")) or "?",
        revision=printable(entry.get("revision")),
        task=printable(entry.get("task")),
        state=printable(entry.get("application_state")) or "UNHEALTHY",
        dtype=printable(entry.get("dtype")),
        assigned=read_assigned(entry),
    )


def check(
    name: str,
    *,
    host: str,
    revision: str | None = None,
    deploy: bool = False,
    patience: float = PATIENCE,
    notify: Notify | None = None,
) -> tuple[dict[str, str], str | None, list[Deployment]]:
    """Refuse a model that the server does not run, and return what the server says of it.

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
    patience, notify
        As for `deployments`.

    Returns
    -------
    versions : dict of str to str
        Versions of the server's libraries.
    revision : str, optional
        Revision that the server has the commit under; None if it has it under no revision.
    replicas : list of Deployment
        The model's replicas that run or are loaded; none where it is to be deployed.

    Raises
    ------
    Refusal
        If the server or the hub cannot be reached, the versions do not go together, or the model
        does not run there.
    """
    running = deployments(host, patience, notify)
    versions = _versions(host, _patience(host, patience, notify))
    _check_versions(host, versions)
    name, commit, main = _find_commit(name, revision)
    running = [each for each in running if each.task == "text-generation"]
    known_as = {each.revision for each in running if each.name == name}
    # A server that has loaded the main branch lists no revision for it.
    if revision not in known_as and commit == main:
        revision = None
    replicas = [each for each in running if _is_replica(each, name, revision)]
    if not deploy and not replicas:
        raise Refusal(
            f"{name}{f' at {revision}' if revision else ''} does not run on {host}, where there is "
            f"{_some_names(running)}: choose one that 'stages models --remote' lists, or ask for "
            "it to be loaded with `deploy`"
        )
    return versions, revision, replicas


def _check_versions(host: str, versions: dict[str, str]) -> None:
    """Refuse a server with another minor version of nnsight."""
    here, there = version("nnsight"), versions.get("nnsight", "none")
    if here.split(".")[:2] != there.split(".")[:2]:
        raise Refusal(
            f"{host} has nnsight {there} and this machine {here}, which do not understand each "
            f"other: install nnsight {'.'.join(there.split('.')[:2])}, or choose another `host`"
        )


def _find_commit(name: str, revision: str | None) -> tuple[str, str | None, str | None]:
    """Return a model's id on the hub, and the commits of the revision and of the main branch."""
    # The hub knows old names of a model that was renamed; a server knows the new one alone.
    try:
        asked = HfApi().model_info(name, revision=revision, timeout=CONNECT)
        main = asked if revision is None else HfApi().model_info(asked.id, timeout=CONNECT)
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
    return asked.id, asked.sha, main.sha


def _is_replica(model: Deployment, name: str, revision: str | None) -> bool:
    """Whether a deployment is of a model, and runs or is being loaded."""
    is_it = (model.name, model.revision) == (name, revision or "")
    return is_it and model.state in {"RUNNING", "DEPLOYING"}


def _some_names(running: Sequence[Deployment]) -> str:
    """Return the first names of the models that run, for a message."""
    names = sorted({each.name for each in running if each.state == "RUNNING"})
    if len(names) > LISTED:
        names = [*names[:LISTED], "…"]
    return ", ".join(names) or "no model"


def _patience(host: str, minutes: float, notify: Notify | None) -> Patience:
    return Patience(host, minutes, notify or (lambda text: None))


def _ask(host: str, path: str, wanted: str, patience: Patience) -> dict[str, Any]:
    """Return a server's answer, which must have the wanted dictionary; refuse other servers."""
    elsewhere, body = "", b""
    with suppress(Unreadable):
        elsewhere, body = _insist(host, path, patience)
    entries = parse(body)
    if not isinstance(entries, dict) or not isinstance(entries.get(wanted), dict):
        pointed = f", but points to {printable(elsewhere)}" if elsewhere else ""
        raise Refusal(
            f"{host} is not an NDIF server: it does not answer {path} as one{pointed}; check "
            "`host`, or NDIF_HOST"
        )
    return entries


def _insist(host: str, path: str, patience: Patience) -> tuple[str, bytes]:
    """Return where an answer points, and its body, once a server that is there gives one.

    Raises
    ------
    Refusal
        If nothing is there, which is not waited for: the address may be wrong.
    """
    timeout = httpx.Timeout(CONNECT, read=90)
    while True:
        try:
            with connection() as client:
                status, elsewhere, body = fetch(client, "GET", f"{host}{path}", SMALL, timeout, 90)
            if status not in PASSING:
                return elsewhere, body if status == 200 else b""
            failure: Exception = Failed(
                f"{host} is there, but not what computes behind it (status {status})", status
            )
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError, OSError) as error:
            if isinstance(error, Unreadable):
                raise
            if is_unreached(error):
                raise Refusal(
                    f"{host} cannot be reached ({first_line(error)}): check `host`, or NDIF_HOST, "
                    "and the network"
                ) from error
            failure = error
        patience.wait(reason(failure))


def printable(text: object, most: int = 200) -> str:
    """Return a value of a server's answer as one line of text that a terminal can show."""
    letters = text if isinstance(text, str) else ""
    return "".join(letter for letter in letters if letter.isprintable())[:most]


def _versions(host: str, patience: Patience) -> dict[str, str]:
    """Return the versions of Python and of `LIBRARIES` on a server."""
    environment = _ask(host, "/env", "packages", patience)
    packages = {**environment["packages"], "python": environment.get("python_version")}
    versions = {}
    for name in ("python", *LIBRARIES):
        # Without the compiler and date that follow Python's version.
        number = printable(packages.get(name)).partition(" ")[0]
        if number:
            versions[name] = number
    return versions
