"""Run every measure of `mi_ablate.modular` on one operation of a model and hold the results.

A model that has not generalised gets its accuracy, losses, spectra and the Clock and Pizza measures, and no key frequencies:
what depends on them is left out, with the reason.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from mi_ablate import modular
from mi_ablate.modular.grids import Grid
from mi_ablate.modular.progress import phases
from mi_ablate.modular.ranks import random_baseline, rank_measures
from mi_ablate.toys import watch
from mi_ablate.toys.checkpoints import Toy

Report = Callable[[str], None]
SETS = ("energy", "nanda_text")
"""Rules whose key frequencies the losses are taken for: by energy of W_E, and the one that the paper names."""
NEURON_DRAWS, CIRCLES = 3, 2
T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class FourierAnalysis:
    """Every result; a part that could not be measured is None, and `reasons` says why."""

    grid: Grid
    keys: dict[str, modular.Keys]
    spectra: dict[str, modular.Spectrum]
    pairs: dict[str, modular.Spectrum2]
    """Spectra over pairs: "neurons" and "logits"."""
    neurons: dict[str, modular.Neurons]
    """By variant; empty for a model without neurons."""
    attention: list[modular.Periodicity]
    """Of each layer."""
    cyclic: dict[str, modular.CyclicGeometry]
    """Of W_E, W_U and the answers' class means."""
    trig_ratio: dict[str, float]
    """Share of variance in cos, sin of w_k(i + j) of the key frequencies, mean over units: "neurons", "logits" (arena)."""
    representations: dict[str, dict[str, Any]]
    """Chughtai et al.'s shares by irrep of the group: "embedding", "unembedding", and "hidden" (of a, b and the product)."""
    cosines: modular.CosineShare
    full: dict[str, modular.Loss]
    """The loss of the model as it is, by split."""
    losses: dict[str, dict[str, modular.Loss]]
    """Restricted and excluded losses by their names, for the frequencies of each of `SETS`."""
    each: dict[int, modular.Loss]
    """The excluded loss of each key frequency alone (nanda_colab, arena)."""
    symmetricity: dict[str, modular.Symmetricity]
    """By draw: "published", and "all" where every triple was asked for."""
    distance_irrelevance: float | None
    circularity: modular.Circularity | None
    verdict: modular.Verdict | None
    circles: list[modular.QShare]
    ranks: dict[str, dict[str, Any]]
    """Of W_E (numbers only, uncentred), W_U and class means: every rank measure; "random" holds those of W_E's shape."""
    baselines: dict[str, float]
    """What random matrices of W_E's shape have: "top_5_share", "top_10_share"."""
    causal: dict[str, modular.CausalTable]
    """By level."""
    progress: list[dict[str, Any]]
    phases: dict[str, Any]
    reasons: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def frequencies(self) -> list[int]:
        """The key frequencies by energy of W_E; none of a model that has not generalised."""
        return list(self.keys["energy"].frequencies)

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and words, for ``--json``."""
        from mi_ablate.fourier_analysis.plain import to_json

        return to_json(self)

    def __repr__(self) -> str:
        said = "no verdict" if self.verdict is None else self.verdict.label
        what = f"{self.settings['model']}, {self.grid.operation} mod {self.grid.modulus}"
        return f"FourierAnalysis({what}: {len(self.frequencies)} key frequencies, {said})"


class _Tries:
    """Runs measures that may not apply, and keeps the reason where one does not."""

    def __init__(self, report: Report) -> None:
        self.report, self.reasons = report, dict[str, str]()

    def __call__(self, name: str, measure: Callable[[], T]) -> T | None:
        self.report(name.replace("_", " "))
        try:
            return measure()
        except ValueError as error:
            self.reasons[name] = str(error)
            return None


def analyse(
    toy: Toy,
    operation: str | None = None,
    *,
    count: int = 5,
    folder: Path | str | None = None,
    full: bool = False,
    report: Report = lambda text: None,
) -> FourierAnalysis:
    """Return every measure of one operation of a toy.

    Args:
        toy: from ``toys.load``.
        operation: "add", "sub" or "mul"; the toy's first by default.
        count: how many key frequencies the rule "energy" takes.
        folder: of the run that the toy is from; progress is measured where it holds ``kept-STEP.safetensors``.
        full: gradient symmetricity over every triple as well (10 s at p = 59, minutes at p = 113).
        report: called with a line before each step.

    Raises:
        ValueError: an operation that the toy has not, inputs that are not a full grid, a modulus that is no prime for
            multiplication (see `modular.grid`).

    """
    start = time.perf_counter()
    grid = modular.grid(toy, operation)
    parts = _parts(grid, count, folder, full, report)
    what = {"model": toy.card.get("name") or repr(toy), "operation": grid.operation, "count": count, "full": full}
    return FourierAnalysis(grid=grid, **parts, settings=what, seconds=time.perf_counter() - start)


def _parts(grid: Grid, count: int, folder: Path | str | None, full: bool, report: Report) -> dict[str, Any]:
    tries = _Tries(report)
    report("accuracy and key frequencies")
    with _remembered(grid):
        keys = modular.key_frequencies(grid, count=min(count, grid.n // 2))
        spectra, causal = _spectra(grid, keys, tries), _causal(grid, keys, report)
    chosen = list(keys["energy"].frequencies)
    if keys["energy"].reason:
        tries.reasons["key_frequencies"] = keys["energy"].reason
    splits = ("all",) if grid.train is None else ("all", "train", "test")
    rows = _progress(folder, chosen, grid, tries)
    return {
        "keys": keys,
        **spectra,
        "attention": [modular.attention_periodicity(grid, layer) for layer in range(grid.model.cfg.n_layers)],
        "cyclic": tries("cyclic_geometry", lambda: modular.cyclic_scores(grid)) or {},
        "causal": causal,
        "cosines": modular.cosine_share(grid.logits),
        "full": {split: modular.full_loss(grid, split) for split in splits if bool(grid.split_mask(split).any())},
        "losses": _losses(grid, keys, report),
        "each": modular.excluded_each(grid, chosen, which=None if grid.train is not None else "all"),
        **_clock_pizza(grid, tries, full),
        **_ranks(grid, tries),
        "progress": rows,
        "phases": phases(rows) if rows else {},
        "reasons": tries.reasons,
    }


@contextmanager
def _remembered(grid: Grid) -> Iterator[None]:
    """Keep the activations that were asked for last: several measures in a row are of the same neurons."""
    grid.__dict__["acts"] = lru_cache(maxsize=1)(grid.acts)
    try:
        yield
    finally:
        del grid.__dict__["acts"]


def _spectra(grid: Grid, keys: dict[str, modular.Keys], tries: _Tries) -> dict[str, Any]:
    tries.report("spectra")
    spectra = {"W_E": modular.embedding_spectrum(grid), "W_U": modular.unembedding_spectrum(grid)}
    pairs = {"logits": modular.logit_spectrum(grid)}
    neurons: dict[str, modular.Neurons] = {}
    units, chosen = {"logits": grid.logits}, list(keys["energy"].frequencies)
    group = modular.cyclic_group(grid.n)
    shares: dict[str, dict[str, Any]] = {
        "embedding": modular.embedding_shares(grid.embedding, group.irreps),
        "unembedding": modular.embedding_shares(grid.unembedding.T, group.irreps),
    }
    if not getattr(grid.model.cfg, "attn_only", False):
        spectra["W_out W_U"] = modular.neuron_logit_spectrum(grid)
        pairs["neurons"] = modular.neuron_spectrum(grid)
        acts = grid.acts(f"blocks.{grid.model.cfg.n_layers - 1}.mlp.hook_post")
        units["neurons"] = acts
        hidden = tries("hidden_shares", lambda: modular.hidden_shares(acts, group.table, group.irreps)) or {}
        shares["hidden"] = {name: asdict(x) for name, x in hidden.items()}
        for variant in ("nanda_text", "nanda_colab"):
            found = tries(f"neurons_{variant}", partial(modular.neuron_frequencies, acts, variant))
            neurons |= {} if found is None else {variant: found}
    ratios = {n: float(modular.trig_ratio(x, chosen).nanmean()) for n, x in units.items()} if chosen else {}
    parts = {"spectra": spectra, "pairs": pairs, "neurons": neurons}
    return {**parts, "trig_ratio": ratios, "representations": shares}


def _losses(grid: Grid, keys: dict[str, modular.Keys], report: Report) -> dict[str, dict[str, modular.Loss]]:
    found: dict[str, dict[str, modular.Loss]] = {}
    for rule in SETS:
        same = next((x for x in found if set(keys[x].frequencies) == set(keys[rule].frequencies)), None)
        if same is not None:
            found[rule] = found[same]
        elif keys[rule].frequencies:
            report(f"restricted and excluded losses of the frequencies by {rule}")
            which = None if grid.train is not None else "all"
            found[rule] = modular.progress_losses(grid, keys[rule].frequencies, which=which)
    return found


def _clock_pizza(grid: Grid, tries: _Tries, full: bool) -> dict[str, Any]:
    symmetricity: dict[str, modular.Symmetricity] = {}
    for draw in ("published", "all") if full else ("published",):
        found = tries(f"gradient_symmetricity_{draw}", partial(modular.gradient_symmetricity, grid, draw))
        symmetricity |= {} if found is None else {draw: found}
    count = min(CIRCLES, grid.n // 2, grid.embedding.shape[1] // 2)
    return {
        "symmetricity": symmetricity,
        "distance_irrelevance": tries("distance_irrelevance", lambda: modular.distance_irrelevance(grid.logits)),
        "circularity": tries("circularity", lambda: modular.circularity(grid.embedding)),
        "verdict": tries("verdict", lambda: modular.verdict(grid)),
        "circles": tries("isolated_circles", lambda: modular.isolated_circles(grid, count)) or [],
    }


def _ranks(grid: Grid, tries: _Tries) -> dict[str, Any]:
    tries.report("ranks and random baselines")
    logits = grid.logits
    means = modular.FourierBasis(grid.n).diagonals(logits, 1) / grid.n
    shape = (len(grid.embedding), grid.embedding.shape[1])
    matrices = {
        "W_E": grid.embedding,
        "W_U": grid.unembedding.T,
        "logits by answer": means - means.mean(1, keepdim=True),
    }
    ranks: dict[str, Any] = {}
    for name, matrix in matrices.items():
        measured = tries(f"rank of {name}", partial(rank_measures, matrix))
        ranks |= {} if measured is None else {name: measured}
    random = {name: {"mean": mean, "sd": sd} for name, (mean, sd) in random_baseline(shape).items()}
    counts = [k for k in (5, 10) if k <= grid.n // 2]
    shares = {f"top_{k}_share": modular.random_top_share(shape, k, draws=5) for k in counts}
    return {"ranks": ranks | {"random": random}, "baselines": shares}


def _causal(grid: Grid, keys: dict[str, modular.Keys], report: Report) -> dict[str, modular.CausalTable]:
    by_energy, by_readout = keys["energy"].frequencies, keys["nanda_text"].frequencies[:5]
    chosen = tuple(dict.fromkeys((*by_energy, *by_readout)))
    found = {}
    for level, draws in (("logits", 5), ("neurons", NEURON_DRAWS)):
        if chosen and (level == "logits" or not getattr(grid.model.cfg, "attn_only", False)):
            report(f"necessity and sufficiency of each frequency at the {level}")
            found[level] = modular.causal_table(grid, chosen, level, draws=draws)
    return found


def _progress(folder: Path | str | None, chosen: list[int], grid: Grid, tries: _Tries) -> list[dict[str, Any]]:
    if folder is None:
        return []
    return tries("progress", lambda: watch.along(folder, chosen or None, grid.operation)) or []
