"""The command line: ``main`` runs one command and returns its exit code."""

from pipelines.cli.app import STAGES
from pipelines.cli.program import main

__all__ = ["STAGES", "main"]
