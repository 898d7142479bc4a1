"""Take the predictions of one model, and measure a published model's curves by the protocol of `mi_ablate.measures`."""

import os
from pathlib import Path
from typing import Any

import torch

from mi_ablate import controls, toys
from mi_ablate.curves import removal_curve
from mi_ablate.measures.bases import SPARSE, contrastive, every_site
from mi_ablate.measures.geometry import dimensions
from mi_ablate.measures.plain import curves_json
from mi_ablate.measures.subject import DIRECTIONS, DRAWS, HELD_OUT
from mi_ablate.measures.task import Task, task_of
from mi_ablate.metrics import accuracy
from mi_ablate.model import collect, last_residual
from mi_ablate.studies.foretold import ABLATIONS, EVERY, LAST
from mi_ablate.studies.gaussian import ClassGaussian, readout_of, removed_curves
from mi_ablate.subspace import Subspace

SAMPLES = 2000
"""About how many activations are drawn."""
ACTIVATIONS = "activations"
"""What stands for the scored pairs' own activations among the predictions."""
THIRD_PARTY = {"nanda_mod113": 1.0, "zhong_model_a": 2.0, "zhong_model_b": 2.0}
"""Published models and the weight decay that their authors give (Nanda et al. 2023, Zhong et al. 2023)."""


def third_party() -> dict[str, Path]:
    """Return the files of published models that are here, in the folder that MI_ABLATE_DATA names."""
    folder = os.environ.get("MI_ABLATE_DATA")
    if not folder:
        return {}
    paths = {name: Path(folder) / "third_party_models" / f"{name}.safetensors" for name in THIRD_PARTY}
    return {name: path for name, path in paths.items() if path.is_file()}


class Foretelling:
    """One task of a model: what its predictions are made from, and its curves."""

    def __init__(self, task: Task) -> None:
        """Collect the activations of all prompts of the task.

        Args:
            task: one operation of a toy, with pairs that were trained on, or a seeded half.

        """
        self.task, self.model = task, task.toy.model
        self.last, self.train = last_residual(self.model), task.train
        rest = torch.nonzero(~self.train).flatten()
        rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))]
        self.held, self.unseen = rest[:HELD_OUT], rest[HELD_OUT:]
        self.acts = collect(self.model, task.tokens, every_site(self.model))
        known = task.values[self.train]
        self.bases: dict[str, Subspace] = {
            name: contrastive(x[self.train], known, name) for name, x in self.acts.items()
        }

    def predictions(self, weight_decay: float | None) -> dict[str, Any]:
        """Return the predicted curves at the last residual and the scalars, as plain JSON.

        "activations" are the curves of the scored pairs' own activations: no prediction, but what one could reach, and a
        check of the machinery. "unseen" is left out where the held-out pairs that are not scored miss an answer.
        """
        task, x = self.task, self.acts[self.last]
        known = ClassGaussian.of(x[self.train], task.values[self.train], task.period)
        sources = {"means": known.still, "gaussian": known}
        values = task.values[self.unseen]
        if len(values) > task.period and int(torch.bincount(values, minlength=task.period).min()) > 0:
            sources["unseen"] = ClassGaussian.of(x[self.unseen], values, task.period)
        read, basis = readout_of(self.model), self.bases[self.last].basis[:, :DIRECTIONS]
        ks = list(range(basis.shape[1] + 1))
        n = task.period * -(-SAMPLES // task.period)
        drawn = {name: source.draw(n) for name, source in sources.items()}
        drawn[ACTIVATIONS] = x[self.held].double(), task.values[self.held]
        predicted = {
            name: removed_curves(y, task.tokens_of[answers], basis, read, ks) for name, (y, answers) in drawn.items()
        }
        spread = known.means - known.means.mean(0)
        singular = torch.linalg.svdvals(spread)
        size = dimensions(singular)
        return {
            "modulus": task.toy.modulus, "weight_decay": weight_decay, "ks": ks, "predicted": predicted,
            "margin": self._margin(), "participation": size["participation"], "rank99": size["rank99"],
            "singular_values": singular, "between": float((spread**2).sum(1).mean()), "within": float(known.within.trace()),
        }  # fmt: skip

    def measured(self) -> dict[str, Any]:
        """Return the removal curves at both places with their controls, as `mi_ablate.measures` records them."""
        held, train = self.held, self.train
        tokens, metric = self.task.tokens[held], accuracy(self.task.tokens_of[self.task.values[held]])
        seen = {name: x[train] for name, x in self.acts.items()}
        beside = {"covariance": controls.covariance(seen), "pca": controls.pca(seen)}
        basis = self.bases[self.last]
        most = min(one.rank for one in self.bases.values())
        places: dict[str, tuple[dict[str, Subspace], list[int]]] = {
            LAST: ({self.last: basis}, list(range(min(DIRECTIONS, basis.rank) + 1))),
            EVERY: (self.bases, [k for k in SPARSE if k <= most]),
        }
        return {
            place: curves_json({
                a: removal_curve(self.model, tokens, at, metric, ks=ks, ablation=a, draws=DRAWS, controls=beside)
                for a in ABLATIONS
            })
            for place, (at, ks) in places.items()
        }  # fmt: skip

    def _margin(self) -> float:
        """The 25 % quantile of the answer's logit minus the largest other, over the scored pairs."""
        answers = self.task.tokens_of[self.task.values[self.held]][:, None]
        logits = readout_of(self.model)(self.acts[self.last][self.held]).double()
        others = logits.scatter(1, answers, -torch.inf).amax(1, keepdim=True)
        return float(torch.quantile(logits.gather(1, answers) - others, 0.25))


def take_third_party(name: str, path: Path) -> dict[str, Any]:
    """Return predictions and measured curves of a published model."""
    one = Foretelling(task_of(toys.load(path)))
    return one.predictions(THIRD_PARTY[name]) | {"measured": one.measured()}
