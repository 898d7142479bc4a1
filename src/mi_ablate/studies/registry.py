"""The studies by name, in the order of the page."""

from mi_ablate._types import nearest
from mi_ablate.studies import batch_size, grokking_sweep, weight_decay
from mi_ablate.studies.study import Study

_ALL = (
    grokking_sweep.STUDY,
    weight_decay.STUDY,
    batch_size.STUDY,
)
STUDIES: dict[str, Study] = {study.name: study for study in _ALL}


def load_study(name: str) -> Study:
    """Return the study of that name.

    Raises:
        ValueError: there is none (with the nearest names).

    """
    if name not in STUDIES:
        raise ValueError(f"There is no study {name!r}. {nearest(name, STUDIES)} All: {', '.join(STUDIES)}.")
    return STUDIES[name]
