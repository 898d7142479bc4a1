"""Collection over many prompts as a map: each worker streams its part into an accumulator, and the parts are merged.

The accumulator is anything with ``merge(other)``, such as a `Fitter`. Parts are merged in their order, so the result does
not depend on which worker is quicker.
"""

import functools
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from mi_ablate.sweep.local import cores


@runtime_checkable
class Mergeable(Protocol):
    """What `merged` adds up."""

    def merge(self, other: Any) -> Any:
        """Add the other's share to this one's."""


M = TypeVar("M", bound=Mergeable)
Part = TypeVar("Part")


def merged(
    function: Callable[[Part], M], parts: Sequence[Part], *, engine: str = "local", workers: int | None = None
) -> M:
    """Return ``function(part)`` of all parts, computed in several processes and merged in order.

    Args:
        function: a function of a module (it is sent by name), which returns a `Fitter`, say.
        parts: what it is called with, such as ranges of prompt numbers.
        engine: "local" or "ray".
        workers: processes at once, one torch thread each; as many as cores by default.

    Example:
        fitter = merged(fit_part, [range(i, i + 1000) for i in range(0, 100_000, 1000)])

    Raises:
        ValueError: no parts, an engine that does not exist or is not installed.

    """
    if not parts:
        raise ValueError("There are no parts to merge; pass at least one.")
    workers = workers or cores()
    if engine == "ray":
        from mi_ablate.sweep.on_ray import connect

        ray = connect(workers)
        single = ray.remote(num_cpus=1)(_one_thread)
        results = ray.get([single.remote(function, part) for part in parts])
    elif engine == "local":
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(parts)), mp_context=spawn) as pool:
            results = list(pool.map(functools.partial(_one_thread, function), parts))
    else:
        raise ValueError(f"There is no engine {engine!r}; use 'local' or 'ray'.")
    total = results[0]
    for other in results[1:]:
        total.merge(other)
    return total


def _one_thread(function: Callable[[Part], M], part: Part) -> M:
    torch.set_num_threads(1)
    return function(part)
