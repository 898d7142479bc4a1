"""The studies by name, in the order of the page."""

from mi_ablate._types import nearest
from mi_ablate.studies import (
    adversarial,
    along_training,
    batch_size,
    capacity,
    declining,
    grokking_sweep,
    input_attacks,
    late_penalty,
    operations,
    prediction,
    too_small,
    two_tasks,
    untrained_directions,
    weight_decay,
)
from mi_ablate.studies.study import Study

_ALL = (
    grokking_sweep.STUDY,
    weight_decay.STUDY,
    two_tasks.STUDY,
    capacity.STUDY,
    adversarial.STUDY,
    along_training.STUDY,
    too_small.STUDY,
    batch_size.STUDY,
    input_attacks.STUDY,
    untrained_directions.STUDY,
    operations.STUDY,
    late_penalty.STUDY,
    prediction.STUDY,
    declining.STUDY,
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
