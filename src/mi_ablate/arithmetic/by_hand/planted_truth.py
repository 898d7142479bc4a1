"""What a planted adder holds, in closed form: the helix at every site, the role of every part, the logits, the effects.

Number n is z(n), one coordinate for the line, n / 100, and two for each period T, cos(2πn/T + φ_T) and sin(2πn/T + φ_T); one
for T = 2, whose sine is 0 on whole numbers. Sums of angles add phases: the answer's helix has 2 φ_T. In the columns of
`mi.helix` (line, then cos and sin of each period) a vector D z(n) has the coefficients Mᵀ Dᵀ, where M holds the rotation by the
phase; `Truth.coef` returns them for every site and position.

With s = a + b and everything linear behind the sum, the logit of number c is

    logit_c(s) = S Σ_T cos(2π(s - c)/T) + L (2sc - c²) / 100²,

and a part that moves the share α of helix(s) to the space that W_U reads has total and direct effect
α (logit_c(s) - logit_c(s')). The part that builds helix(s) has the whole of it as its total effect and no direct one.

Misleads where: the constructed MLP computes products up to `Truth.mlp_error`, and the final norm is constant up to
`Truth.norm_error`; everything here is exact but for these two.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

SCALE = 20.0
"""S and L: the size of one period's cosine in the logits, and of the line."""
ATTENTION_LAYER, MLP_LAYER = 1, 1
"""Where operands are copied to the last token, and where a + b is built."""
SHARES = {("head", 2): 0.15, ("mlp", 2): 0.45, ("head", 3): 0.1, ("mlp", 3): 0.3}
"""Share of helix(a + b) that each reading part moves to where W_U reads it."""
N_LAYERS, N_HEADS = 4, 4
SPARE = 8
"""Directions that nothing of the algorithm reads: words and neutral parts live there."""


@dataclass(frozen=True, eq=False, repr=False)
class Truth:
    """Everything that was planted. Directions ``[d k]`` are orthonormal columns, one for each coordinate of z.

    ``radii`` and ``phases`` are by period; the radius of a period is that of the number's circle in the embedding (copies, sums
    and readouts have radius 1), and ``linear`` is the length of the embedding's step of 100 (0: no line).
    """

    periods: tuple[int | float, ...]
    radii: dict[int | float, float]
    phases: dict[int | float, float]
    linear: float
    directions: dict[str, Float[Tensor, "d _"]]
    """By use: "number" in the embedding, "copy a", "copy b", "decoy", "sum" (built), "answer" (read by W_U), and others."""
    heads: dict[str, tuple[int, int]]
    """(layer, head) of "a", "b" (copy the operand), "decoy" (copies a where nothing reads it), "a+b 2", "a+b 3" (read out)."""
    neurons: list[dict[str, object]]
    """Each living neuron of the adding and reading MLPs: layer, neuron, reads, period, and its pre-activation's terms."""
    first: bool
    """Whether {a} is the first token of the template."""
    mlp_error: float
    """Largest error of a coordinate of helix(a + b) that the MLP builds of exact operands, over all pairs of 0 to 99."""
    norm_error: float
    """Bound on the relative deviation of the norms' scale from its constant, operands below 100."""

    @property
    def terms(self) -> tuple[tuple[str, int | float], ...]:
        """The coordinates of z in their order: ("linear", 0), ("cos", T), ("sin", T) ..."""
        return coordinates(self.periods, self.linear)

    @property
    def labels(self) -> tuple[str, ...]:
        """Columns of the coefficients, as in ``mi.helix(values, periods, name="a")`` without the name."""
        return ("linear", *(f"{word} {T:g}" for T in self.periods for word in ("cos", "sin")))

    def coordinates(self, values: Int[Tensor, " n"], of: str = "a") -> Float[Tensor, "n k"]:
        """Return z of each number; ``of="answer"`` with the sum's phases."""
        return circles(values, self.terms, self._phases(of))

    def coef(self, site: str, of: str, at: str | None = None, *, bos: bool = False) -> Float[Tensor, "columns d"]:
        """Return the coefficients of helix(``of``) in the columns of `mi.helix`, at a residual, attention or MLP output site.

        Args:
            site: "hook_embed", or "blocks.1.hook_resid_pre" or another block's, also hook_resid_mid, hook_resid_post,
                hook_attn_out and hook_mlp_out.
            of: "a", "b" or "answer".
            at: the position: "a", "b" or "answer" (the last token); where None, that of ``of``.
            bos: Whether a token stands before the prompt. Without it a first operand attends to itself, so that it carries the
                copies that the last token should have.

        Raises:
            ValueError: a site of another kind.

        """
        at = of if at is None else at
        total = torch.zeros(len(self.labels), len(self.directions["number"]), dtype=torch.float64)
        for part in self._written(site):
            for where, what, use in self._writes(part, bos):
                if (where, what) == (at, of):
                    total += self._coef(part, what, use)
        return total

    def logits(self, sums: Int[Tensor, " n"], values: Int[Tensor, " v"]) -> Float[Tensor, "n v"]:
        """Return the logit of each number for each sum."""
        s, c = sums.double()[:, None], values.double()
        total = (2 * s * c - c**2) * (SCALE * (self.linear > 0) / 100**2)
        return total + SCALE * sum(torch.cos(2 * math.pi * (s - c) / T) for T in self.periods)

    def gain(self, clean: Int[Tensor, " n"], corrupted: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return what the clean answer's logit gains when the corrupted sum becomes the clean one: the effect of everything."""
        rows = torch.arange(len(clean))
        return (self.logits(clean, clean) - self.logits(corrupted, clean))[rows, rows]

    def effects(
        self, part: tuple[int, int] | int, clean: dict[str, Int[Tensor, " n"]], corrupted: dict[str, Int[Tensor, " n"]]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return total and direct effect on the clean answer's logit of one head (layer, head) or MLP (layer) taken from clean.

        ``clean`` and ``corrupted`` hold "a" and "b". The part's output at the last token of the corrupted run is replaced.
        """
        answer, sums = clean["a"] + clean["b"], corrupted["a"] + corrupted["b"]
        role = self.role(part)
        share = (
            SHARES.get(("mlp", part) if isinstance(part, int) else ("head", part[0]), 0.0) if "read" in role else 0.0
        )
        direct = share * self.gain(answer, sums)
        new = {"copies a": clean["a"] + corrupted["b"], "copies b": corrupted["a"] + clean["b"], "builds a+b": answer}
        if role not in new:
            return direct, direct
        rows = torch.arange(len(sums))
        moved = self.logits(new[role], answer) - self.logits(sums, answer)
        return moved[rows, rows], torch.zeros_like(direct)

    def role(self, part: tuple[int, int] | int) -> str:
        """Return what a head (layer, head) or an MLP (layer) does: "copies a", "builds a+b", "reads a+b", "neutral" ..."""
        if isinstance(part, int):
            return "builds a+b" if part == MLP_LAYER else "reads a+b" if ("mlp", part) in SHARES else "neutral"
        named = {place: name for name, place in self.heads.items()}
        roles = {"a": "copies a", "b": "copies b", "decoy": "decoy", "a+b 2": "reads a+b", "a+b 3": "reads a+b"}
        return roles.get(named.get(part, ""), "neutral")

    def _phases(self, of: str) -> dict[int | float, float]:
        return {T: (2 if of == "answer" else 1) * phase for T, phase in self.phases.items()}

    def rotation(self, of: str) -> Float[Tensor, "k columns"]:
        """Return M: z in the columns of `mi.helix`, with the phases of an operand or (``of="answer"``) of a sum."""
        return rotation(self.periods, self.terms, self._phases(of))

    def _coef(self, part: tuple[str, int], of: str, use: str) -> Float[Tensor, "columns d"]:
        sizes = (
            embedded(self.terms, self.radii, self.linear) if use == "number" else torch.ones(len(self.terms)).double()
        )
        if use == "answer":
            sizes = sizes * SHARES[part]
        return (self.directions[use] * sizes @ self.rotation(of)).T

    def _written(self, site: str) -> list[tuple[str, int]]:
        """Parts whose output is in a site."""
        if site == "hook_embed":
            return [("embed", 0)]
        _, layer, kind = [*site.split("."), "", ""][:3]
        ends = {"hook_resid_pre": 0, "hook_resid_mid": 1, "hook_resid_post": 2}
        if layer.isdigit() and kind in ends:
            parts = [(part, i) for i in range(N_LAYERS) for part in ("head", "mlp")]
            return [("embed", 0), *parts[: 2 * int(layer) + ends[kind]]]
        if layer.isdigit() and kind in ("hook_attn_out", "hook_mlp_out"):
            return [("head" if "attn" in kind else "mlp", int(layer))]
        raise ValueError(
            f"{site!r} is no site with a planted helix; take hook_embed, or hook_resid_pre, hook_resid_mid, hook_resid_post, "
            "hook_attn_out or hook_mlp_out of a block."
        )

    def _writes(self, part: tuple[str, int], bos: bool) -> list[tuple[str, str, str]]:
        """Return (position, what, use) of each helix that a part writes."""
        if part == ("embed", 0):
            return [("a", "a", "number"), ("b", "b", "number")]
        if part == ("head", ATTENTION_LAYER):
            copies = [("answer", "a", "copy a"), ("answer", "b", "copy b"), ("answer", "a", "decoy")]
            alone = [("a", "a", use) for use in ("copy a", "copy b", "decoy")] if self.first and not bos else []
            return copies + alone
        if part == ("mlp", MLP_LAYER):
            return [("answer", "answer", "sum")]
        return [("answer", "answer", "answer")] if part in SHARES else []

    def __repr__(self) -> str:
        return f"Truth(periods {', '.join(f'{T:g}' for T in self.periods)}, MLP error {self.mlp_error:.0e})"


def coordinates(periods: tuple[int | float, ...], linear: float) -> tuple[tuple[str, int | float], ...]:
    """Return the coordinates of z: the line where there is one, cos and sin of each period, cos alone for period 2."""
    line: list[tuple[str, int | float]] = [("linear", 0)] if linear else []
    return (*line, *((word, T) for T in periods for word in ("cos", "sin") if T != 2 or word == "cos"))


def circles(
    values: Int[Tensor, " n"], terms: tuple[tuple[str, int | float], ...], phases: dict[int | float, float]
) -> Float[Tensor, "n k"]:
    """Return the coordinates z of each number."""
    x = values.double()
    columns = []
    for word, T in terms:
        if word == "linear":
            columns.append(x / 100)
            continue
        angle = 2 * math.pi * torch.remainder(x, T) / T + phases[T]
        columns.append(angle.cos() if word == "cos" else angle.sin())
    return torch.stack(columns, dim=1)


def embedded(
    terms: tuple[tuple[str, int | float], ...], radii: dict[int | float, float], linear: float
) -> Float[Tensor, " k"]:
    """Return the length of each coordinate in the embedding."""
    return torch.tensor([linear if word == "linear" else radii[T] for word, T in terms], dtype=torch.float64)


def rotation(
    periods: tuple[int | float, ...], terms: tuple[tuple[str, int | float], ...], phases: dict[int | float, float]
) -> Float[Tensor, "k columns"]:
    """Return z(n) = M B(n) with B the columns of `mi.helix`: the line, cos and sin of each period."""
    matrix = torch.zeros(len(terms), 1 + 2 * len(periods), dtype=torch.float64)
    for row, (word, T) in enumerate(terms):
        if word == "linear":
            matrix[row, 0] = 0.01
            continue
        cos, sin = math.cos(phases[T]), math.sin(phases[T])
        at = 1 + 2 * periods.index(T)
        matrix[row, at] = cos if word == "cos" else sin
        if T != 2:
            matrix[row, at + 1] = -sin if word == "cos" else cos
    return matrix
