"""What helices of both operands and of the answer write at the last token, beside their rivals (§5.1 of the paper).

    helix(a,b), helix(answer), helix(a,b,answer)     one fit each, of all prompts
    full, pca                                        the clean run's own vector; its projection on as many components as the
                                                     widest basis has columns (27 of the default periods)
    shuffled                                         the widest basis fitted to vectors of other prompts: the mean, nearly
    random                                           like pca, on a subspace drawn from the covariance

Kantamneni & Tegmark 2025 (arXiv 2502.00873) fit on correct prompts and draw the pairs from the same ones. Thousands of
prompts for 27 columns leave little to leak; to exclude it, fit on other problems than the pairs have.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.arithmetic.representation.helices import PERIODS
from mi_ablate.arithmetic.representation.last_token import BASES, pair_design, pair_fits
from mi_ablate.arithmetic.writing.written import Inputs, Written, covariance_subspace
from mi_ablate.design import Design
from mi_ablate.model import collect
from mi_ablate.regression import fit


def pair_reconstructions(
    model: HookedModel,
    problems: Problems,
    names: str | Sequence[str] = "resid_post",
    bases: Sequence[str] = BASES,
    periods: Sequence[int | float] = PERIODS,
    *,
    of: str = "answer",
    rows: int = 2000,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Written]:
    """Return "full", "pca", "helix(...)" of each basis, "shuffled" and "random" for `swap` at the last token.

    Args:
        model: the model.
        problems: what is fitted; `Asked.right` by preference.
        names: sites of one vector a position.
        bases: see `pair_design`; the controls are as wide as the widest.
        periods: of the circles of each number.
        of: whose token is read; "answer" is the last one.
        rows: a random sample of so many prompts, for the components and the controls.
        seed: of the sample, the shuffle and the random subspace.
        batch_size: rows a pass.
        progress: called with (prompts done, prompts in all) as the fits are made.

    Raises:
        ValueError: a site with heads, fewer prompts than columns. KeyError: an unknown site or basis.

    """
    fits = pair_fits(model, problems, names, bases, periods, of=of, batch_size=batch_size, progress=progress)
    generator = torch.Generator().manual_seed(seed)
    some = problems[torch.randperm(len(problems), generator=generator)[:rows]]
    acts = collect(model, some.tokens, names, pos=some.positions[of], batch_size=batch_size)
    heads = [site for site, x in acts.items() if x.ndim != 2]
    if heads:
        raise ValueError(
            f"{heads[0]} has an axis of heads: pair_fits fits each head; what is written are whole vectors."
        )
    states: dict[str, Float[Tensor, "n d"]] = {site: x.to("cpu", torch.float64) for site, x in acts.items()}
    means = {site: x.mean(0) for site, x in states.items()}
    broadest = max(bases, key=lambda basis: basis.count(","))
    widest = _design(broadest, periods)(some.inputs)
    moved = torch.randperm(len(some), generator=generator)
    null = {site: fit(x[moved], widest) for site, x in states.items()}
    found = {"full": Written("full", means=means)}
    found["pca"] = _projected("pca", states, means, len(widest.labels), seed)
    for basis in bases:
        name = f"helix({basis})"
        found[name] = Written(name, {site: fits.fit(site, basis) for site in states}, _design(basis, periods))
    found["shuffled"] = Written("shuffled", null, _design(broadest, periods))
    found["random"] = _projected("random", states, means, len(widest.labels), seed)
    return found


def _design(basis: str, periods: Sequence[int | float]) -> Callable[[Inputs], Design]:
    return lambda inputs: pair_design(inputs, basis, periods)


def _projected(name: str, states: dict[str, Tensor], means: dict[str, Tensor], rank: int, seed: int) -> Written:
    made = {site: covariance_subspace(name, x - means[site], rank, seed, site) for site, x in states.items()}
    return Written(name, subspaces=made, means=means)
