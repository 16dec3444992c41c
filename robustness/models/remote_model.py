"""Models that run on an NDIF server: built without weights here, checked on the server."""

from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from nnsight import TransformersModel

from robustness.errors import Refusal, first_line
from robustness.models import checkpoint
from robustness.models.settings import ModelSettings
from robustness.models.wrapping import Wrapped
from robustness.ndif import room, server
from robustness.ndif.backend import Requests
from robustness.ndif.limits import Limits
from robustness.ndif.patience import Notify


def build(settings: ModelSettings, notify: Notify | None) -> Wrapped:
    """Build a model without weights whose traces run on a server."""
    name, path = checkpoint.resolve(settings.source)
    revision, trust = settings.revision, settings.trust_remote_code
    if Path(path).is_dir():
        raise Refusal(f"{name} is on this machine; a remote model is given by its hub id")
    host, key = server.resolve_host(settings.host), server.resolve_key()
    # The server may know a commit by another revision than the one that was given.
    versions, known_as, replicas = server.check(
        name,
        host=host,
        revision=revision,
        deploy=settings.deploy,
        patience=settings.patience,
        notify=notify,
    )
    checkpoint.read_config(name, path, revision, trust)
    tokenizer = checkpoint.load_tokenizer(name, path, revision=revision, trust_remote_code=trust)
    try:
        traced = TransformersModel(
            name,
            revision=known_as,
            task="text-generation",
            tokenizer=tokenizer,
            **({"trust_remote_code": True} if trust else {}),
        )
        model_key = traced.to_model_key()
    except (*checkpoint.LOADING_ERRORS, ImportError, HTTPError) as error:
        raise Refusal(f"{name} cannot be built: {first_line(error)}") from error
    limits = Limits(
        sandbox=settings.sandbox_limit,
        answer=settings.answer_limit * 1e9,
        patience=settings.patience,
        seconds=settings.request_seconds,
        memory=None if settings.request_gb is None else settings.request_gb * 1e9,
    )
    env = traced._remoteable_get_env()
    vars(traced)["_load"] = _Elsewhere(name, host)
    identity = {
        "model": name,
        "revision": checkpoint.commit(path, revision),
        "server": urlsplit(host).hostname or host,
        "server_versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }
    requests = Requests(model_key, host, key, env, notify, limits)
    parameters = sum(weight.numel() for weight in traced._module.parameters())
    given = [(replica.assigned, replica.dtype) for replica in replicas]
    requests.room = room.least(given, parameters)
    return Wrapped(traced, tokenizer, identity, {"backend": requests})


class _Elsewhere:
    """Refuses to load weights, as nnsight does for a trace without a backend."""

    def __init__(self, name: str, host: str) -> None:
        self.name, self.host = name, host

    def __call__(self, *_: object, **__: object) -> None:
        raise Refusal(
            f"{self.name} runs on {self.host}, and a trace of it says so: "
            "trace(…, **model.request); without that all its weights would be loaded here"
        )
