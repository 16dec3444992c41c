"""NDIF servers: their address, the user's key, and what a server runs."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError  # type: ignore[attr-defined]
from nnsight import CONFIG

from robustness.errors import Refusal, first_line
from robustness.ndif.failures import PASSING
from robustness.ndif.limits import Unreadable
from robustness.ndif.transport import CONNECT, SMALL, fetch, parse

LIBRARIES = ("nnsight", "torch", "transformers")
"""Libraries whose versions on the server are recorded."""

LISTED = 5
"""Maximum number of models that a message names."""


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
            "or store it with 'nnsight login'"
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
        Versions of the server's libraries.
    revision : str, optional
        Revision by which the server knows the commit; None where it loads that commit without any.

    Raises
    ------
    Refusal
        If the server or the hub cannot be reached, the versions do not go together, or the model
        does not run there.
    """
    running = deployments(host)
    versions = _versions(host)
    _check_versions(host, versions)
    name, commit, main = _find_commit(name, revision)
    running = [each for each in running if each.task == "text-generation"]
    known_as = {each.revision for each in running if each.name == name}
    # A server that was asked for the main branch knows its commit by no name.
    if revision not in known_as and commit == main:
        revision = None
    if not deploy and not _is_running(running, name, revision):
        raise Refusal(
            f"{name}{f' at {revision}' if revision else ''} does not run on {host}, where there is "
            f"{_some_names(running)}: choose one that 'stages models --remote' lists, or ask for "
            "it to be loaded with `deploy`"
        )
    return versions, revision


def _check_versions(host: str, versions: dict[str, str]) -> None:
    """Refuse a server whose nnsight does not understand this one."""
    here, there = version("nnsight"), versions.get("nnsight", "none")
    if here.split(".")[:2] != there.split(".")[:2]:
        raise Refusal(
            f"{host} has nnsight {there} and this machine {here}, which do not understand each "
            f"other: install nnsight {'.'.join(there.split('.')[:2])}, or choose another `host`"
        )


def _find_commit(name: str, revision: str | None) -> tuple[str, str | None, str | None]:
    """Ask the hub for a model, and return its id and the commits of revision and main branch."""
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


def _is_running(running: Sequence[Deployment], name: str, revision: str | None) -> bool:
    """Whether a model runs on a server, or is being loaded."""
    return any(
        each.name == name
        and each.revision == (revision or "")
        and each.state in {"RUNNING", "DEPLOYING"}
        for each in running
    )


def _some_names(running: Sequence[Deployment]) -> str:
    """Return the first names of the models that run."""
    names = sorted({each.name for each in running if each.state == "RUNNING"})
    return ", ".join([*names[:LISTED], *(["…"] if len(names) > LISTED else [])]) or "no model"


def _ask(host: str, path: str, wanted: str) -> dict[str, Any]:
    """Return what a server answers, which has a dictionary of this name, or refuse the server."""
    timeout = httpx.Timeout(CONNECT, read=90)
    try:
        status, elsewhere, body = fetch("GET", f"{host}{path}", SMALL, timeout, within=90)
    except Unreadable:
        status, elsewhere, body = 200, "", b""
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError, OSError) as error:
        raise Refusal(
            f"{host} cannot be reached ({first_line(error)}): check `host`, or NDIF_HOST, and "
            "the network"
        ) from error
    if status in PASSING:
        raise Refusal(
            f"{host} is there, but not what computes behind it (status {status}): "
            "try again in some minutes"
        )
    found = parse(body) if status == 200 else None
    if not isinstance(found, dict) or not isinstance(found.get(wanted), dict):
        pointed = f", but points to {printable(elsewhere)}" if elsewhere else ""
        raise Refusal(
            f"{host} is not an NDIF server: it does not answer {path} as one{pointed}; check "
            "`host`, or NDIF_HOST"
        )
    return found


def printable(text: object, most: int = 200) -> str:
    """Return a server's word for something as text of one line that a terminal can show."""
    letters = text if isinstance(text, str) else ""
    return "".join(letter for letter in letters if letter.isprintable())[:most]


def _versions(host: str) -> dict[str, str]:
    found = _ask(host, "/env", "packages")
    known = {**found["packages"], "python": found.get("python_version")}
    words = {name: printable(known.get(name)).partition(" ")[0] for name in ("python", *LIBRARIES)}
    return {name: word for name, word in words.items() if word}
