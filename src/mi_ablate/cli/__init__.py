"""The command line: one library call a command.

Results go to stdout, progress to stderr. What a user can get wrong is one sentence and exit status 2; a traceback is ours.
"""

from mi_ablate.cli import analyses as analyses
from mi_ablate.cli import arithmetic as arithmetic
from mi_ablate.cli import attention as attention
from mi_ablate.cli import edits as edits
from mi_ablate.cli import language as language
from mi_ablate.cli import studies as studies
from mi_ablate.cli import training as training
from mi_ablate.cli.application import app, main

__all__ = ["app", "main"]
