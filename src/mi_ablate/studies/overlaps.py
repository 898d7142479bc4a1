"""The overlap of two operations' leading contrastive directions in a record, beside what it must be compared with.

A record holds for k = 5, 10, 20, 30 the mean squared cosine and the mean cosine of the principal angles at the last residual,
with three references: *isotropic* random subspaces (k / d), subspaces *drawn from the covariance* of each operation's
activations, and the *split half* ceiling, the overlap of one operation with itself. The isotropic value is the log's
"random"; it is too low a bar, for any two things measured in the same few directions of a model overlap above it
(`mi_ablate.overlap`).
"""

from collections.abc import Callable
from typing import Any

import torch

from mi_ablate.studies.cells import Cells, Checkpoint
from mi_ablate.studies.groups import spread, told

KS = (5, 10, 20, 30)
REFERENCES = ("isotropic", "covariance-drawn", "split half")
PAIR = ("add", "mul")


def overlap_at(at: Checkpoint, k: int, of: str = "squared", pair: tuple[str, str] = PAIR) -> float | None:
    """Return the overlap of the leading k directions: ``of`` is "squared" or "cosine"."""
    found = at.get("overlap", pair[0], f"{pair[1]}.{k}")
    return None if found is None else float(found[of])


def reference_at(at: Checkpoint, k: int, which: str, of: str = "squared", pair: tuple[str, str] = PAIR) -> float | None:
    """Return a reference of `REFERENCES`: the mean of its draws, or of the two operations' split halves."""
    found = at.get("overlap", pair[0], f"{pair[1]}.{k}")
    if found is None:
        return None
    if which == "split half":
        halves = [half[of] for half in found["split_half"].values() if half is not None]
        return sum(halves) / len(halves) if halves else None
    return float(found["isotropic" if which == "isotropic" else "covariance"][of]["mean"])


def relative_at(at: Checkpoint, k: int, pair: tuple[str, str] = PAIR) -> float | None:
    """Return the squared overlap as a multiple of the covariance-drawn one: below 1 the operations share less than chance."""
    found, null = overlap_at(at, k, pair=pair), reference_at(at, k, "covariance-drawn", pair=pair)
    return None if found is None or not null else found / null


def reading(of: Callable[..., float | None], *given: Any) -> Callable[[Checkpoint], float | None]:
    """Return one of the functions above with everything but the checkpoint given."""
    return lambda at: of(at, *given)


def overlap_row(group: Cells, k: int, of: str = "squared") -> dict[str, str]:
    """Return the overlap and its references over seeds, as text."""
    references = {name: told(group, reading(reference_at, k, name, of), ".2f") for name in REFERENCES}
    return {"overlap": told(group, reading(overlap_at, k, of), ".2f"), **references}


def overlap_figure(group: Cells) -> Any:
    """Return the plotly figure of the overlap against k, with the range over seeds, beside its references (medians)."""
    from mi_ablate.figures import lines

    found = {k: spread(group, reading(overlap_at, k)) for k in KS}
    references = {name: [spread(group, reading(reference_at, k, name)).median for k in KS] for name in REFERENCES}
    ends = torch.tensor([[found[k].low for k in KS], [found[k].high for k in KS]])
    return lines(
        list(KS),
        {"two operations": [found[k].median for k in KS], **references},
        bands={"two operations": ends},
        controls=REFERENCES,
        axes=("leading directions k", "mean squared cosine"),
    )
