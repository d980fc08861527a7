"""The command line: one module per command, loaded when it is used."""

from pyllm.cli.app import main

__all__ = ["main"]
