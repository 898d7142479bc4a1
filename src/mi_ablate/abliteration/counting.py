"""How many prompts go through the model in all, and how many have: for a bar that says how long it will take."""

from collections.abc import Callable, Sequence
from typing import Any

from mi_ablate.prompts import Contrast

Progress = Callable[[str, int, int], None]
"""Called with the stage, the prompts that went through the model so far, and how many will in all."""


class Count:
    """Prompts through the model, over all stages."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, stage: str, n: int) -> None:
        """Count ``n`` more."""
        self.done += n
        if self.progress is not None:
            self.progress(stage, self.done, max(self.total, self.done))

    def run(self, stage: str, work: Callable[[Callable[[int], None]], Any]) -> Any:
        """Run work that calls back with the prompts that it has run."""
        return work(lambda n: self.add(stage, n))

    def share(self, stage: str, cost: int, work: Callable[[Callable[[int, int], None]], Any]) -> Any:
        """Run work that calls back with (done, of all) in units of its own, and costs ``cost`` prompts."""
        start = self.done

        def tick(done: int, of: int) -> None:
            self.add(stage, start + cost * done // max(1, of) - self.done)

        return work(tick)


def cost(contrast: Contrast, tried: int, ks: Sequence[int], draws: int, answers: bool) -> dict[str, int]:
    """Return the prompts that each stage runs.

    Args:
        contrast: the prompts.
        tried: candidates.
        ks: points of the curve.
        draws: of each of the two drawn controls; the principal component is one more.
        answers: whether they have to be found.

    """
    find, check, test = contrast.find, contrast.validation, contrast.test
    plus, minus = len(test.positives), len(test.negatives)
    return {
        "answers": answers * len(find.prompts),
        "candidates": len(find.prompts),
        "choice": len(check.prompts) + tried * (len(check.positives) + 2 * len(check.negatives)),
        "directions": len(find.prompts),
        "effects": (3 + 2 * draws) * plus + (4 + 4 * draws) * minus,
        "curve": (len(ks) * (2 + 2 * draws) + 2) * plus if ks else 0,
    }
