"""The command that lists models."""

import click

from recipes.commands.parameters import Host
from recipes.commands.progress import advise, quiet_option
from recipes.commands.tables import say_rows, table_options


@click.command()
@click.option("--remote", is_flag=True, help="List what an NDIF server runs now instead.")
@click.option(
    "--host",
    type=Host(),
    metavar="URL",
    help="Address of the NDIF server.  [default: NDIF_HOST, or NDIF's]",
)
@table_options
@quiet_option
def models(remote: bool, host: str | None) -> None:
    """List the built-in models and the sixteen of the paper, or what NDIF runs now.

    Many more can be opened: any decoder on the hub whose blocks, run one by one, reproduce its
    logits.

    \b
    stages models
    stages models --remote
    stages models --json
    """
    if remote:
        _say_deployments(host)
        return
    if host:
        raise click.UsageError("--host goes with --remote")
    from recipes.paper_models import BUILTIN, PAPER

    rows = [(model.name, model.family, model.layers, model.blocks) for model in BUILTIN + PAPER]
    say_rows(("model", "family", "layers", "blocks"), rows)
    advise("sweep MODEL")


def _say_deployments(host: str | None) -> None:
    """Print the language models that a server runs now."""
    from robustness.ndif.server import deployments

    rows = []
    for deployment in deployments(host):
        if deployment.task == "text-generation":
            state = deployment.state.lower()
            rows.append((deployment.name, state, deployment.dtype, deployment.revision))
    say_rows(("model", "state", "dtype", "revision"), rows)
    advise("sweep MODEL --remote")
