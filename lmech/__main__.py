"""``python -m lmech``."""

from lmech.cli import command

command()
