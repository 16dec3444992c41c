"""What an error says at the command line."""

import ast

import click
import pytest
from commands import COMMANDS
from test_layers import EVERY, tree

from recipes.commands.errors import SETTING, SPELLED_OTHERWISE, as_options, explained
from robustness.errors import Refusal

OF_PYTHON_ALONE = {"centre_writes", "clean_long_name", "held_out", "pair", "weight_decay"}
"""Settings of functions that no command calls."""


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("ask for `context` 64 or less", "ask for --context 64 or less"),
        ("lower `batch_tokens`, or `cap`", "lower --batch-tokens, or --state-cap"),
        ("fewer `interventions` of `source`", "fewer --intervention of --data"),
        ("log in with `nnsight login`", "log in with `nnsight login`"),
        ("`stages models --remote` has 3", "`stages models --remote` has 3"),
        ("there is no file a`b.nc", "there is no file a`b.nc"),
    ],
)
def test_settings_are_told_as_options(message, told):
    assert as_options(message) == told
    assert explained(Refusal(message)) == f"stages: {told}"


def test_a_refusal_of_the_library_names_the_option_at_the_command_line(run, monkeypatch, llama):
    def refuse(*_, **__):
        raise Refusal("ask for `device_map` auto")

    monkeypatch.setattr("robustness.models.opening.open_settings", refuse)
    code, _, err = run("sweep", llama)
    assert (code, err.splitlines()[-1]) == (1, "stages: ask for --device-map auto")


def settings_named_in(module: str) -> set[str]:
    """Return the settings that a module's texts name, but for its docstrings."""
    nodes = list(ast.walk(tree(module)))
    described = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in described]
    return {name for text in texts for name in SETTING.findall(str(text.value))}


@pytest.mark.slow
def test_every_setting_that_a_message_names_is_one_at_the_command_line():
    spelled = set()
    for command in COMMANDS.values():
        for parameter in command.params:
            argument = isinstance(parameter, click.Argument)
            words = [parameter.make_metavar(click.Context(command))] if argument else parameter.opts
            spelled |= {word.strip("[].") for word in words}
    assert set(SPELLED_OTHERWISE.values()) <= spelled
    unknown = set()
    for module in EVERY:
        for setting in settings_named_in(module) - OF_PYTHON_ALONE:
            if as_options(f"`{setting}`") not in spelled:
                unknown.add((module, setting))
    assert not unknown
