"""All commands of the command line by their names, imported."""

import cli

COMMANDS = {name: cli.stages.load(name) for name in cli.COMMANDS}
