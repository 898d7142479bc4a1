"""The command line: one library call a command.

Results go to stdout, progress to stderr. What a user can get wrong is one sentence and exit status 2; a traceback is ours.
"""

from mi_ablate.cli import analyses, attention, edits, language, training
from mi_ablate.cli.app import app, main

__all__ = ["analyses", "app", "attention", "edits", "language", "main", "training"]
