"""Grids of training runs: cells, records, and engines that survive being killed.

`load_grid` names the cells, `run_grid` trains and measures them on an engine, and a `RecordFile` holds one JSON line a
cell. Only finished cells are recorded; everything else can be resumed.
"""

from mi_ablate.sweep.declared import GRIDS, is_grid, load_grid
from mi_ablate.sweep.grids import Grid
from mi_ablate.sweep.mapping import merged
from mi_ablate.sweep.plans import RESULTS, RUNS, Plan, plan
from mi_ablate.sweep.records import FORMAT, RecordFile
from mi_ablate.sweep.run import Outcome, check_options, run_grid

__all__ = [
    "FORMAT",
    "GRIDS",
    "RESULTS",
    "RUNS",
    "Grid",
    "Outcome",
    "Plan",
    "RecordFile",
    "check_options",
    "is_grid",
    "load_grid",
    "merged",
    "plan",
    "run_grid",
]
