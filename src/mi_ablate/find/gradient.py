"""A direction found by gradient: the one whose removal and addition change the behaviour, whatever writes it.

Refusal direction optimisation (Wollschläger et al. 2025, arXiv 2502.17420), for any metric m that is higher where the
behaviour is there and has a gradient. With c+ and c- its clean means on the positive and the negative prompts, and r a
unit vector, the loss is the sum of three terms, times their weights (1, 0.2 and 1 in the authors' code):

    ablation   mean over positives of max(0, m(r removed at all writers) - c-) / (c+ - c-)
    addition   mean over negatives of max(0, c+ - m(r added at the site, as long as the difference of means)) / (c+ - c-)
    retain     mean over negatives of KL(clean || r removed), in nats, of the next token

The first two are shares of the way between the classes, and nothing is gained beyond it: a metric such as a log-odds has no
lower end. The model's weights are not touched; the vector alone has gradients, and every step makes it unit again (AdamW).

With ``rank`` above 1 a cone: the loss is the mean over the basis vectors and over ``samples`` random directions between
them, v = sum of a_i r_i with a_i >= 0, each removed and added by itself. Any of these does the job alone, then; removing
the whole subspace is another edit, to be measured for itself.

When it misleads: it finds what *moves the output*, which no part of the model need ever write, so it may work through a
pathway that is dormant on the model's own inputs (`mi_ablate.dormant` tests that) and fit the prompts it was found on.
``source["cosine_with_means"]`` says how near the difference of class means it ended; compare both on other prompts.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_ablate._types import HookedModel
from mi_ablate.find._descent import Problem, descend, frozen, orthonormal
from mi_ablate.find._inputs import Labels, two_classes
from mi_ablate.find.grid import Candidates, candidates
from mi_ablate.model import sites
from mi_ablate.subspace import Subspace

WEIGHTS = {"ablation": 1.0, "addition": 0.2, "retain": 1.0}


def optimised(
    model: HookedModel,
    tokens: Int[Tensor, "n p"],
    labels: Labels,
    metric: Callable[..., Tensor],
    site: str,
    *,
    pos: int = -1,
    rank: int = 1,
    start: str | Subspace = "means",
    weights: Mapping[str, int | float] | None = None,
    steps: int = 200,
    lr: int | float = 1e-2,
    batch_size: int = 16,
    samples: int = 8,
    patience: int | None = 20,
    seed: int = 0,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    progress: Callable[[int, int], None] | None = None,
    name: str = "",
) -> Subspace:
    """Return the direction, or cone, of the smallest loss (see the head of this module); ``Add(s.vector)`` is what was added.

    Args:
        model: a hooked model.
        tokens: prompts of both classes.
        labels: True where the behaviour is there.
        metric: higher there, with a gradient: `logit_diff`, `refusal_score`, or your own, given no clean logits.
        site: where the direction is added, such as "blocks.5.hook_resid_post"; at all positions.
        pos: where the difference of means is read.
        rank: directions.
        start: "means", "random", or a subspace; directions that it lacks start at random.
        weights: of "ablation", "addition" and "retain", where not those above; 0 leaves a term out.
        steps: at most.
        lr: of AdamW.
        batch_size: prompts of each class a step.
        samples: directions drawn from the cone a step, for a ``rank`` above 1.
        patience: stop after so many steps without a smaller smoothed loss; None never does.
        seed: of the batches, of random starts and of the samples.
        attention_mask: 1 for real tokens.
        progress: called with (steps done, steps in all).
        name: of the result.

    Raises:
        ValueError: one class only; a metric without a gradient, of other prompts, no higher on the positives; an odd site.

    """
    positive, _ = two_classes(labels, len(tokens), "optimised")
    options = {"steps": steps, "lr": lr, "batch_size": batch_size, "samples": samples if rank > 1 else 0, "seed": seed}
    terms = _checked(model, metric, len(tokens), site, rank, weights, {**options, "patience": patience})
    means = _means(candidates(model, tokens, labels, site, pos=pos, attention_mask=attention_mask), model.cfg.d_model)
    generator = torch.Generator().manual_seed(seed)
    rows, size = _started(start, means, rank, generator), float(means.vector.norm())
    problem = Problem(model, tokens, attention_mask, metric, positive.cpu(), site, terms, size)
    with frozen(model), torch.inference_mode(False), torch.enable_grad():
        problem.set_levels(batch_size)
        found, history = descend(problem, rows, options, patience, generator, progress)
    told = {**options, "pos": pos, "start": start if isinstance(start, str) else start.name, "history": history}
    return _told(found, means, problem, told, name or f"optimised at {site}")


def _means(found: Candidates, width: int) -> Subspace:
    """The difference of means of the one candidate."""
    key = next(iter(found))
    if found.moments[key.site].mean.shape[2:] != (width,):
        raise ValueError(
            f"{key.site} is no part of the residual stream, where the direction is removed at all writers."
        )
    return found.subspace(*key)


def _told(
    rows: Float[Tensor, "r d"], means: Subspace, problem: Problem, options: dict[str, Any], name: str
) -> Subspace:
    """The rows as a subspace that says how it was found."""
    source = {"method": "optimised by gradient", "site": problem.site, "weights": problem.weights, **options}
    source["n"] = {"positive": int(problem.positive.sum()), "negative": int((~problem.positive).sum())}
    source |= {"levels": {"negative": problem.low, "positive": problem.high}, "sizes": [problem.size] * len(rows)}
    along = rows @ means.basis[:, 0].cpu()
    source["cosine_with_means"] = float(along.norm() if len(rows) > 1 else along[0])
    source["steps_taken"] = len(options["history"]["loss"])
    return Subspace(rows.T.contiguous(), name, source)


def _started(start: str | Subspace, means: Subspace, rank: int, generator: torch.Generator) -> Float[Tensor, "r d"]:
    if isinstance(start, str) and start not in ("means", "random"):
        raise ValueError(f"start={start!r} is 'means', 'random' or a Subspace.")
    given = means if start == "means" else start
    rows = torch.randn(rank, means.d, generator=generator, dtype=torch.float64)
    if isinstance(given, Subspace):
        if given.d != means.d:
            raise ValueError(f"start is {given!r}, and the site has width {means.d}.")
        rows = torch.cat([given.basis.T.cpu()[:rank], rows[min(rank, given.rank) :]])
    return orthonormal(rows)


def _checked(
    model: Any,
    metric: Any,
    n: int,
    site: str,
    rank: int,
    weights: Mapping[str, int | float] | None,
    numbers: dict[str, Any],
) -> dict[str, float]:
    """Refuse what cannot be optimised, and return the weight of each term."""
    found = {**WEIGHTS, **(weights or {})}
    if set(found) != set(WEIGHTS) or not all(0 <= w < float("inf") for w in found.values()) or not any(found.values()):
        raise ValueError(f"weights={weights}: numbers of 0 or more, not all 0, for some of {list(WEIGHTS)}.")
    if sites(model, site) != (site,):
        raise ValueError(
            f"site={site!r}: the full name of one hook point is needed, such as 'blocks.0.hook_resid_post'."
        )
    if getattr(metric, "better", "higher") == "lower":
        raise ValueError(
            f"The metric {metric!r} is a loss, lower where the model does better; a higher one has to mean the behaviour."
        )
    if getattr(metric, "n", None) not in (None, n):
        raise ValueError(f"The metric has answers for {metric.n} examples; there are {n} prompts to optimise on.")
    if not 1 <= rank <= model.cfg.d_model:
        raise ValueError(f"rank={rank}: from 1 to {model.cfg.d_model} directions of the residual stream.")
    for key in ("steps", "batch_size", "lr", "patience"):
        if numbers[key] is not None and not 0 < numbers[key] < float("inf"):
            raise ValueError(f"{key}={numbers[key]}: a number above 0 is needed to optimise.")
    if numbers["samples"] < 0:
        raise ValueError(f"samples={numbers['samples']}: how many directions of the cone to draw each step, 0 or more.")
    return {key: float(value) for key, value in found.items()}
