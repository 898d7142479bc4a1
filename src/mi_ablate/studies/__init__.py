"""The research log, experiment by experiment: grids, tables beside the log's, figures, and a verdict on every claim.

``mi-ablate study NAME`` trains what is missing, measures it and prints what was found; ``python -m mi_ablate.studies`` writes
``docs/research_log.md`` from the records.
"""

from mi_ablate.studies.cells import Cell, Cells, Checkpoint
from mi_ablate.studies.registry import STUDIES, load_study
from mi_ablate.studies.running import run_study
from mi_ablate.studies.spread import Spread, Value
from mi_ablate.studies.study import Findings, Item, Study, Table, Verdict

__all__ = [
    "STUDIES", "Cell", "Cells", "Checkpoint", "Findings", "Item", "Spread", "Study", "Table", "Value", "Verdict",
    "load_study", "run_study",
]  # fmt: skip
