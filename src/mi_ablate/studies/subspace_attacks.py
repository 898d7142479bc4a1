"""Which directions to remove from an operation's last residual stream: found on training pairs, scored on others.

With x the last residual stream, Q orthonormal directions, and `to` zero or the mean of x, a removal leaves

    readout(x - Q Q^T (x - to)),      readout = final norm, then W_U and b_U.

``contrastive`` is the kind that adversarial training removes; ``pca``, the top principal components; ``LEACE``, what
erasing the answer takes out, best read off first (Belrose et al. 2023, arXiv 2306.03819); ``probe``, the weights of a
logistic probe, INLP's first round (Ravfogel et al. 2020, arXiv 2004.07667); ``gradient``, the subspace of each rank
that a descent finds to hurt most; ``best drawn``, of `N_DRAWN` covariance-drawn subspaces of each rank the one that
hurts most. The last two search on training pairs only. The descent maximises the cross-entropy, cut off for each prompt
at that of a uniform guess, so that it ruins many prompts instead of a few entirely; each rank starts from the subspace
of the rank below and from the contrastive directions, and the better one is kept. ``covariance-drawn`` and
``isotropic`` are means over draws: what a subspace of that rank does by chance.

It misleads as a bound: a descent that fails shows nothing. Only an attack that works is evidence.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate import find
from mi_ablate.controls import covariance, isotropic, pca
from mi_ablate.curves import removal_curve
from mi_ablate.measures.bases import SPARSE, contrastive
from mi_ablate.measures.subject import Operation, Subject
from mi_ablate.subspace import Subspace
from mi_ablate.toys.forward import Params, readout

KS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40)
DEEPEST = 32
"""The largest rank that is searched by gradient."""
STEPS, BATCH, RATE = 150, 512, 0.02
N_DRAWN, DRAWS = 64, 5
SHRINKAGE = 1e-6
"""Of LEACE: after the first attention some directions hardly vary."""
SCORED = 1_024
"""Training pairs that the searches compare subspaces on."""
ABLATIONS = ("zero", "mean")
FIXED = ("contrastive", "pca", "LEACE", "probe")
SEARCHED = ("gradient", "best drawn")
CHANCE = ("covariance-drawn", "isotropic")
Bases = Mapping[int, Float[Tensor, "d k"]]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Last residual streams of one operation's prompts, their answers, and the weights that read them."""

    subject: Subject
    acts: Float[Tensor, "n d"]
    answers: Int[Tensor, " n"]

    @classmethod
    def of(cls, one: Operation, rows: Int[Tensor, " n"]) -> "Prompts":
        """Return rows of an operation's task."""
        return cls(one.subject, one.every_acts[one.last][rows].float(), one.task.tokens_of[one.task.values[rows]])

    @cached_property
    def mean(self) -> Float[Tensor, " d"]:
        """The mean activation."""
        return self.acts.double().mean(0).float()

    @property
    def params(self) -> Params:
        """The model's weights."""
        return self.subject.weights

    def logits(self, q: Float[Tensor, "d k"], ablation: str, rows: Any = slice(None)) -> Float[Tensor, "n v"]:
        """Return the logits after the removal of the orthonormal columns of q."""
        x = self.acts[rows]
        gone = (x - self.mean if ablation == "mean" else x) @ q
        return readout(self.subject.config.config, self.params, x - gone @ q.T)

    @torch.no_grad()
    def accuracy(self, q: Float[Tensor, "d k"], ablation: str) -> float:
        """Return the share of right answers after the removal."""
        return float((self.logits(q, ablation).argmax(-1) == self.answers).double().mean())

    def harm(self, q: Float[Tensor, "d k"], ablation: str, rows: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """Return the mean cross-entropy, at most that of a uniform guess for each prompt."""
        logits = self.logits(q, ablation, rows)
        loss = F.cross_entropy(logits, self.answers[rows], reduction="none")
        return loss.clamp(max=log(logits.shape[-1])).mean()


def descended(
    prompts: Prompts, ablation: str, start: Float[Tensor, "d r"], ks: Iterable[int], steps: int = STEPS, seed: int = 0
) -> dict[int, Float[Tensor, "d k"]]:
    """Return for each rank the directions whose removal hurts these prompts most, of two descents (see the module).

    Args:
        prompts: training pairs.
        ablation: "zero" or "mean".
        start: ordered directions that the second descent of each rank starts from.
        ks: the ranks, rising.
        steps: of each descent (Adam, batches of `BATCH` prompts).
        seed: of the batches and of the first descent's new directions.

    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[int, Tensor] = {}
    last = start[:, :0].float()
    for k in ks:
        fresh = torch.randn(len(start), k - last.shape[1], generator=generator)
        leads = [torch.cat([last, fresh / fresh.norm(dim=0)], 1), start[:, :k].float()]
        tried = [_descend(prompts, ablation, lead, steps, generator) for lead in leads]
        last = found[k] = min(tried, key=lambda q: prompts.accuracy(q, ablation))
    return found


def _descend(
    prompts: Prompts, ablation: str, lead: Float[Tensor, "d k"], steps: int, generator: torch.Generator
) -> Float[Tensor, "d k"]:
    """The orthonormal columns after so many steps from ``lead``, or those of ``lead`` where they are worse."""
    leaf = lead.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([leaf], lr=RATE)
    for _ in range(steps):
        rows = torch.randint(len(prompts.acts), (BATCH,), generator=generator)
        optimiser.zero_grad()
        (-prompts.harm(torch.linalg.qr(leaf).Q, ablation, rows)).backward()
        optimiser.step()
    return min((torch.linalg.qr(x.detach()).Q for x in (leaf, lead)), key=lambda q: prompts.accuracy(q, ablation))


def best_drawn(
    prompts: Prompts, ablation: str, draw: Callable[[int, int], Subspace], ks: Iterable[int], n: int = N_DRAWN
) -> dict[int, Float[Tensor, "d k"]]:
    """Return for each rank that of n drawn subspaces whose removal hurts these prompts most; ``draw(k, seed)``."""
    drawn = {k: [draw(k, DRAWS + seed).basis.float() for seed in range(n)] for k in ks}
    return {k: min(bases, key=lambda q: prompts.accuracy(q, ablation)) for k, bases in drawn.items()}


def fixed(one: Operation) -> dict[str, Subspace]:
    """Return the ordered bases of `FIXED`, of the operation's training pairs."""
    acts, values = one.acts[one.last], one.values
    return {
        "contrastive": contrastive(acts, values, "contrastive"),
        "pca": pca(acts).draw(one.last, acts.shape[1], 0),
        "LEACE": find.leace_subspace(acts, values, shrinkage=SHRINKAGE),
        "probe": find.logistic(acts, values),
    }


def attacked(one: Operation, ks: Sequence[int] = KS, steps: int = STEPS) -> dict[str, Any] | None:
    """Return accuracy on held-out pairs after each attack on an operation, as plain JSON; None where it has no basis.

    ``{"last": {ablation: {attack: {"ks", "own", "other"}}}, "every": {ablation: {kind: {"ks", "own"}}}}``: "own" is the
    operation's accuracy, "other" the mean accuracy of all others under the same removal. k = 0 is the clean model.
    "every" removes at every site directions found there (`measures.bases.every_site`).
    """
    if not one.measurable or one.bases is None:
        return None
    acts = one.acts[one.last]
    train = torch.nonzero(one.train).flatten()
    chosen = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:SCORED]]
    seen, held = Prompts.of(one, chosen), Prompts.of(one, one.held)
    others = [Prompts.of(o, o.held) for o in one.subject.operations.values() if o is not one]
    ordered, drawn, blind = fixed(one), covariance(acts), isotropic(acts.shape[1])
    some = [k for k in ks if 0 < k <= min(DEEPEST, ordered["contrastive"].rank)]
    found: dict[str, Any] = {}
    for ablation in ABLATIONS:
        tries: dict[str, list[Bases]] = {name: [_leading(basis, ks)] for name, basis in ordered.items()}
        tries["gradient"] = [descended(seen, ablation, ordered["contrastive"].basis, some, steps)]
        tries["best drawn"] = [best_drawn(seen, ablation, lambda k, seed: drawn.draw(one.last, k, seed), some)]
        for name, control in zip(CHANCE, (drawn, blind)):
            tries[name] = [_leading(control.draw(one.last, max(ks), seed), ks) for seed in range(DRAWS)]
        found[ablation] = {name: _scores(bases, held, others, ablation) for name, bases in tries.items()}
    return {"last": found, "every": _every_site(one)}


def _leading(basis: Subspace, ks: Sequence[int]) -> Bases:
    return {k: basis.basis[:, :k].float() for k in ks if 0 < k <= basis.rank}


def _scores(draws: list[Bases], held: Prompts, others: list[Prompts], ablation: str) -> dict[str, Any]:
    """Means over draws, the clean model first."""
    ks = list(draws[0])
    nothing = held.acts.new_zeros(held.acts.shape[1], 0)

    def mean(prompts: list[Prompts], k: int) -> float:
        scores = [p.accuracy(bases[k] if k else nothing, ablation) for p in prompts for bases in draws]
        return sum(scores) / len(scores)

    own = [mean([held], k) for k in (0, *ks)]
    return {"ks": [0, *ks], "own": own, "other": [mean(others, k) for k in (0, *ks)] if others else None}


def _every_site(one: Operation) -> dict[str, Any]:
    """Curves with directions of its own at each site, of the kinds that need no search."""
    bases: dict[str, dict[str, Subspace]] = {
        "contrastive": dict(one.bases or {}),
        "pca": {name: pca(x).draw(name, x.shape[1], 0) for name, x in one.acts.items()},
        "LEACE": {name: find.leace_subspace(x, one.values, shrinkage=SHRINKAGE) for name, x in one.acts.items()},
    }
    found: dict[str, Any] = {}
    for ablation in ABLATIONS:
        for kind, places in bases.items():
            ks = [k for k in SPARSE if k <= min(basis.rank for basis in places.values())]
            curve = removal_curve(
                one.task.toy.model, one.held_tokens, places, one.metric, ks=ks, ablation=ablation, controls={}
            )
            found.setdefault(ablation, {})[kind] = {"ks": list(curve.ks), "own": curve.values.tolist()}
    return found
