"""Low-pass and high-pass filters of what a component adds to the logits of numbers.

A component's output y adds W_U y to the logits of the numbers 0 .. p-1 (their columns of W_U, the final norm left out). In
the Fourier basis over the numbers, with period p - 1 as in Zhou, Fu, Sharan and Jia 2024 (arXiv 2406.03445, Definitions
A.2 to A.6), the filter is the smallest change after which the chosen frequencies are gone:

    y = argmin |x - y|²   such that   B F W_U y = 0        = x - R⁺ R x,   R = B F W_U

an orthogonal projection, so a `Subspace` (the row space of R) to be removed by `Ablate`. "low" keeps the frequencies
k < τ and the constant, "high" keeps k >= τ and the constant, with period (p - 1) / k and τ = 50 of 260 for GPT-2. Of
modular problems the period is the modulus.

The basis as printed is singular and not orthonormal: of an odd p the sine of k = (p - 1) / 2 is zero, and the numbers 0 and
p - 1 have the same row. Here frequencies are counted by k (the paper's A.6 counts rows), the dead sine is no row, and
the constant is never one. A row of R costs a dimension of the stream, whatever the model writes there: with τ = 50 "low"
removes 421 directions of GPT-2's 768. So as many directions drawn from the covariance of what each component writes, and as
many random ones (a sanity check only), removed at the same places, stand beside every filter, each with the share of the
variance that it removes. Where R has as many rows as the stream has dimensions, nothing would be left: an error. The filter
is of the linear readout alone; the final norm, and all that reads the component later, see the loss of the directions too.

It is not selective by itself: the rows of different frequencies are not orthogonal in the stream, and a row that W_U
hardly has costs a whole direction. Of the shipped mod 113 model, which adds with the frequencies 1, 8 and 21, the filter
of the unused 14, 35 and 41 leaves an accuracy of 0.11, and as many random directions one near 1. ``kept_share``, in the
subspace's source and in the table, is the share of the kept frequencies' readout that a filter leaves; compare with the
filter of as many other frequencies.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_ablate._positions import Pos
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.arithmetic._scored import mean_interval, right, scored
from mi_ablate.arithmetic.problem_sets.prompting import Problems
from mi_ablate.arithmetic.problem_sets.single_tokens import Numerals
from mi_ablate.controls import from_moments, isotropic
from mi_ablate.interventions import Ablate
from mi_ablate.metrics import cross_entropy
from mi_ablate.model import sites
from mi_ablate.moments import site_moments, variance_removed
from mi_ablate.replay import replay
from mi_ablate.subspace import Subspace

CONTROLS = ("covariance", "random")
PARTS = {"attn": ("attn_out",), "mlp": ("mlp_out",), "both": ("attn_out", "mlp_out")}
_RANK = 1e-9


def removed_frequencies(period: int, keep: str | int, tau: int = 50) -> list[int]:
    """Return the frequencies k that a filter removes, of 1 .. period // 2; 520 is the period of GPT-2's 521 numbers.

    Raises:
        ValueError: a filter that removes nothing or is unknown, a τ or k that is no frequency.

    """
    last = period // 2
    if isinstance(keep, int):
        if not 1 <= keep <= last:
            raise ValueError(f"keep={keep}: the frequencies of period {period} are 1 to {last}.")
        return [k for k in range(1, last + 1) if k != keep]
    if keep not in ("low", "high"):
        raise ValueError(f"keep={keep!r} is 'low' (k below tau), 'high' (k from tau) or one frequency as an int.")
    if not 1 < tau <= last:
        raise ValueError(f"tau={tau}: 2 to {last} divides the frequencies 1 to {last} into low and high.")
    return list(range(tau, last + 1) if keep == "low" else range(1, tau))


def frequency_rows(p: int, frequencies: Iterable[int], period: int | None = None) -> Float[Tensor, "rows p"]:
    """Return cos and sin of 2πkx / period, x = 0 .. p-1, scaled as in the paper, without the dead sine of 2k = period.

    The period is p - 1 by default.
    """
    period = period or p - 1
    x = torch.arange(p, dtype=torch.float64)
    rows = []
    for k in frequencies:
        angle = 2 * math.pi * ((k * x) % period) / period
        rows += [angle.cos()] if 2 * k == period else [angle.cos(), angle.sin()]
    return torch.stack(rows) * math.sqrt(2 / period)


def number_filter(
    columns: Float[Tensor, "d p"], frequencies: Iterable[int], name: str = "filter", period: int | None = None
) -> Subspace:
    """Return the subspace that writes the chosen frequencies over the numbers 0 .. p-1: remove it to filter them out.

    Args:
        columns: W_U of the numbers ``[d p]``, number by number.
        frequencies: the k to remove, as `removed_frequencies` lists them.
        name: of the result.
        period: of frequency 1; p - 1 by default, the modulus of modular problems.

    Raises:
        ValueError: too few numbers, as many independent rows as the stream has dimensions.

    """
    d, p = columns.shape
    wanted, period = list(frequencies), period or p - 1
    if p < 4 or not wanted or min(wanted) < 1 or max(wanted) > period // 2:
        raise ValueError(
            f"frequencies {wanted[:4]} of {p} numbers: 1 to {period // 2} can be removed, of four numbers or more."
        )
    rows = frequency_rows(p, wanted, period) @ columns.detach().to("cpu", torch.float64).T
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    rank = int((sizes > _RANK * sizes[0]).sum())
    if rank >= d:
        raise ValueError(
            f"The filter removes {len(rows)} rows (cosines and sines of {len(wanted)} frequencies over {p} numbers), and the "
            f"stream has {d} dimensions: no direction would be left. Keep more frequencies, or give fewer numbers."
        )
    source: dict[str, Any] = {"method": "Fourier filter of number logits", "numbers": p, "period": period}
    source |= {
        "frequencies": wanted,
        "rows": len(rows),
        "kept_share": _left(columns, directions[:rank], wanted, period),
    }
    return Subspace(directions[:rank].T.contiguous(), name, source)


def _left(columns: Tensor, removed: Tensor, frequencies: list[int], period: int) -> float:
    """The share of the readout of the frequencies that are not removed (energy of F W_U) which the filter leaves."""
    others = [k for k in range(1, period // 2 + 1) if k not in frequencies]
    if not others:
        return 1.0
    kept = frequency_rows(columns.shape[1], others, period) @ columns.detach().to("cpu", torch.float64).T
    return 1 - float(((kept @ removed.T) ** 2).sum() / (kept**2).sum())


def logit_filter(
    model: Any, numerals: Numerals, keep: str | int = "low", tau: int = 50, period: int | None = None
) -> Subspace:
    """Return the subspace whose removal at a component leaves the kept frequencies of its logits over the numbers.

    Apply it with ``Ablate(s).at(*sites(model, "attn_out"), *sites(model, "mlp_out"), pos=-1)``, or see `filter_effects`.

    Args:
        model: the model, whose W_U is read.
        numerals: the numbers as they are answered; those from 0 on without a gap are used (521 of GPT-2, bare).
        keep: "low", "high", or one frequency k; the constant is kept in all cases.
        tau: where low and high frequencies part.
        period: of frequency 1; p - 1 for p numbers by default, the modulus of modular problems.

    Raises:
        ValueError: no numbers without a gap, or a filter that would leave nothing (see `number_filter`).

    """
    p = numerals.contiguous + 1
    if p < 4:
        raise ValueError(f"A filter needs the numbers from 0 on as single tokens; {numerals.range_text}")
    period = period or p - 1
    removed = removed_frequencies(period, keep, tau)
    columns = model.W_U.detach()[:, numerals.ids[:p].to(model.W_U.device)]
    kept = f"period {period / keep:g}" if isinstance(keep, int) else f"{keep}, tau {tau}"
    return number_filter(columns, removed, f"number logits, keeps {kept}", period)


@dataclass(frozen=True, eq=False, repr=False)
class FilterEffects:
    """Loss (nats, of the answer) and accuracy of every prompt with each filter at each group of components."""

    clean: dict[str, Float[Tensor, " n"]]
    """"loss" and "accuracy" of the whole model."""
    filtered: dict[tuple[str | int, str], dict[str, Float[Tensor, " n"]]]
    """The same by (what is kept, where)."""
    controls: dict[str, dict[tuple[str | int, str], dict[str, Float[Tensor, "draws n"]]]]
    """The same with subspaces of the filter's rank removed at the same places: "covariance" (drawn from that of what is
    written there) and "random"."""
    variance: dict[str, dict[tuple[str | int, str], float]]
    """The share of the variance at these places that is removed, by the "filter" and by each control."""
    subspaces: dict[str | int, Subspace]
    pos: Pos
    numbers: int
    period: int

    def table(self) -> list[dict[str, Any]]:
        """Return Zhou's Table 1: the whole model, then a row a filter and place with 95 % intervals and the controls."""
        rows: list[dict[str, Any]] = [{"kept": "all", "at": "", "rank": 0}]
        for name, values in self.clean.items():
            rows[0] |= dict(zip((name, f"{name} low", f"{name} high"), (float(values.mean()), *mean_interval(values))))
        for (keep, at), found in self.filtered.items():
            row: dict[str, Any] = {"kept": keep, "at": at, "rank": self.subspaces[keep].rank}
            row["kept_share"] = self.subspaces[keep].source["kept_share"]
            if isinstance(keep, int):
                row["period"] = self.period / keep
            row["variance"] = self.variance["filter"][keep, at]
            row |= {f"variance {kind}": found[keep, at] for kind, found in self.variance.items() if kind != "filter"}
            for name, values in found.items():
                row[name] = float(values.mean())
                row[f"{name} low"], row[f"{name} high"] = mean_interval(values)
                for kind, control in self.controls.items():
                    drawn = control[keep, at][name].mean(1)
                    row[f"{name} {kind}"] = {
                        "mean": float(drawn.mean()),
                        "low": float(drawn.min()),
                        "high": float(drawn.max()),
                    }
            rows.append(row)
        return rows

    def __repr__(self) -> str:
        n, clean = len(self.clean["accuracy"]), float(self.clean["accuracy"].mean())
        text = ", ".join(
            f"{keep} at {at} {float(found['accuracy'].mean()):.3f} ("
            + ", ".join(f"{kind} {float(x[keep, at]['accuracy'].mean()):.3f}" for kind, x in self.controls.items())
            + ")"
            for (keep, at), found in self.filtered.items()
        )
        return f"FilterEffects({self.numbers} numbers, n {n}: accuracy {clean:.3f}; keeping {text})"


def filter_effects(
    model: HookedModel,
    problems: Problems,
    *,
    keep: Sequence[str | int] = ("low", "high"),
    parts: Sequence[str] = ("both", "attn", "mlp"),
    tau: int = 50,
    layers: int | Iterable[int] | None = None,
    pos: Pos = -1,
    controls: Sequence[str] = CONTROLS,
    draws: int = 3,
    batch_size: int | None = None,
) -> FilterEffects:
    """Return loss and accuracy with the filter at all attention outputs, all MLP outputs, or both.

    Args:
        model: the model.
        problems: prompts; the numbers are those of ``problems.numerals``.
        keep: filters as `logit_filter` takes them; a frequency as an int keeps one component alone.
        parts: "attn", "mlp" and "both".
        tau: where low and high part.
        layers: the blocks; None for all.
        pos: positions filtered: the last one, where the logits of the answer are made; None for all.
        controls: "covariance" (a matrix [d, d] for each component in memory) and "random"; or one of them.
        draws: of each control.
        batch_size: prompts a pass.

    Raises:
        ValueError: an unknown part, a filter that leaves nothing.

    """
    _check(parts, keep, controls, draws)
    blocks = None if layers is None else [layers] if isinstance(layers, int) else list(layers)
    numbers = problems.numerals.contiguous + 1
    period = problems.modulus or numbers - 1
    subspaces = {kind: logit_filter(model, problems.numerals, kind, tau, period) for kind in keep}
    measures = {"loss": cross_entropy(problems.answers), "accuracy": right(problems)}
    clean: dict[str, Tensor] = {}
    filtered: dict[tuple[str | int, str], dict[str, Tensor]] = {}
    removed: dict[str, dict[tuple[str | int, str], float]] = {"filter": {}, **{kind: {} for kind in controls}}
    drawn: dict[str, Any] = {kind: {} for kind in controls}
    for part in parts:
        names = [name for short in PARTS[part] for name in sites(model, short, blocks)]
        first = _removed(subspaces[keep[0]], names, pos)
        runs = replay(model, problems.tokens, first, measures["loss"], batch_size=batch_size)
        clean = clean or scored(runs, [], measures)
        moments = site_moments(model, problems.tokens, first, None, batch_size, runs.acts)
        known = {"covariance": from_moments("covariance", moments), "random": isotropic(subspaces[keep[0]].d)}
        for kind, subspace in subspaces.items():
            hooks, at = _removed(subspace, names, pos), (kind, part)
            filtered[at], removed["filter"][at] = scored(runs, hooks, measures), variance_removed(hooks, moments)
            for name in controls:
                others = [known[name](hooks, seed) for seed in range(draws)]
                drawn[name][at] = _stacked([scored(runs, other, measures) for other in others])
                removed[name][at] = sum(variance_removed(other, moments) for other in others) / draws
    return FilterEffects(clean, filtered, drawn, removed, subspaces, pos, numbers, period)


def _check(parts: Sequence[str], keep: Sequence[str | int], controls: Sequence[str], draws: int) -> None:
    wrong = [part for part in parts if part not in PARTS] + [kind for kind in controls if kind not in CONTROLS]
    if wrong or not parts or not keep or draws < 1:
        raise ValueError(
            f"parts={list(parts)}, keep={list(keep)}, controls={list(controls)}: some of {', '.join(PARTS)}, one filter or "
            f"more, some of {', '.join(CONTROLS)}, draws >= 1."
        )


def _stacked(draws: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in draws]) for name in draws[0]}


def _removed(subspace: Subspace, names: list[str], pos: Pos) -> FwdHooks:
    return Ablate(subspace).at(*names, pos=pos)
