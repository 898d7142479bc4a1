"""The names of the measures, and the function that takes them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mi_ablate._types import nearest
from mi_ablate.measures import basics, circle, geometry, removal
from mi_ablate.measures.plain import plain
from mi_ablate.measures.subject import Operation, Subject

VERSION = 1
"""Raised when a number's meaning changes: records of another version are measured again."""

_ONE: dict[str, Callable[[Operation], dict[str, Any] | None]] = {
    "accuracy": basics.accuracy,
    "embedding": basics.embedding,
    "class_means": geometry.class_means,
    "variance": geometry.variance,
    "last_residual": removal.last_residual,
    "every_site": removal.every_site,
    "collateral": removal.collateral,
    "overlap": geometry.overlap,
    "writing": circle.writing,
}


def _of(one: Callable[[Operation], dict[str, Any] | None]) -> Callable[[Subject], dict[str, Any]]:
    def every_operation(subject: Subject) -> dict[str, Any]:
        with _one_thread():
            if not subject.finite:
                return dict.fromkeys(subject.operations)
            return {name: plain(one(operation)) for name, operation in subject.operations.items()}

    every_operation.__doc__ = one.__doc__
    return every_operation


MEASURES: dict[str, Callable[[Subject], dict[str, Any]]] = {name: _of(one) for name, one in _ONE.items()}
"""By name, in the order in which they are taken: a subject gives one JSON value an operation."""


def measure(
    subject: Subject, names: Sequence[str] | None = None, progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Return ``{measure: {operation: JSON}}``; what cannot be computed is None.

    Args:
        subject: the trained toy.
        names: which of `MEASURES`; all by default.
        progress: called with the name of each measure before it is taken.

    Raises:
        ValueError: a name that is no measure.

    """
    chosen = list(MEASURES if names is None else names)
    for name in chosen:
        if name not in MEASURES:
            raise ValueError(f"There is no measure {name!r}. {nearest(name, MEASURES)} All: {', '.join(MEASURES)}.")
    found = {}
    for name in chosen:
        if progress is not None:
            progress(name)
        found[name] = MEASURES[name](subject)
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order: the last digits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
