"""Choose one direction among many candidates by what removing it and adding it do, on prompts kept for the purpose.

    bypass(r)  mean metric of the positive prompts with r removed; low: the behaviour is gone
    induce(r)  mean metric of the negative prompts with the raw difference of means added at its own site, all positions;
               high: r is enough to bring the behaviour about
    KL(r)      mean KL(clean || r removed) of the negative prompts' next token, in nats, float64; low: little else is changed

(Arditi et al. 2024, arXiv 2406.11717). The candidate with the lowest bypass wins among those that pass three rules: a KL of
at most ``kl_max``; an addition that moves the metric towards the positive prompts, (induce - clean negative) / (clean
positive - clean negative) >= ``induce_min``, a share, so that it means the same for any metric (Arditi's rule is a log-odds
above 0); and not in the last ``drop_last`` of the layers. Whole layers are dropped, rounded down: none of a model with
fewer than 5, by default, while int(0.8 layers), Arditi's code, keeps none of a one-layer model. Where no candidate passes,
the fewest rules that have to go are dropped, in the order drop_last, kl_max, induce_min, and `Choice.relaxed` names them.

    COSMIC(r) = cos(mean of the positive prompts with r removed, mean of the negative prompts)
              + cos(mean of the negative prompts with r added, mean of the positive prompts)

(arXiv 2506.00085) looks at no output: means of the residual stream after each block, at the last real token, put one after
another over the tenth of the layers (at least one) where the clean class means have the lowest cosine. High is good.

When it misleads. The best of many on few prompts looks better there than it is: measure the choice on other prompts, and
report `Choice.tried`. A low bypass may come from a broken model, so look at KL beside it. A bypass that stays high
means that no single candidate is enough, not that the behaviour cannot be removed. COSMIC trusts that the class means
stand for the behaviour: where the classes differ in something else too, it chooses a direction of that; and a score that is
not above that of no edit, ``Choice.clean["cosmic"]``, says nothing for the direction.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mi_ablate._attach import left_padding
from mi_ablate._judging import Listed, Named, Rules, addition, clean_scores, empty_row, listed, removal, row_of
from mi_ablate._names import checked
from mi_ablate._scores import Passes
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.find import Candidates
from mi_ablate.find._inputs import Labels, two_classes, warn_of_padding
from mi_ablate.find.grid import Key
from mi_ablate.model import check_rows, check_tokens, split
from mi_ablate.subspace import Subspace

SCORES = ("bypass", "induce", "kl", "cosmic")


@dataclass(frozen=True, eq=False, repr=False)
class Choice:
    """The chosen direction, and the scores of all candidates that were run."""

    rows: tuple[dict[str, Any], ...]
    best: Key
    subspace: Subspace
    """Its ``source["chosen"]`` says by which score, among how many, on how many prompts, under which rules."""
    hooks: FwdHooks = field(repr=False)
    """The edit of the best candidate, as it was scored."""
    clean: dict[str, Any]
    """Without an edit: "bypass" (positives) and "induce" (negatives), "cosmic" and "cosmic_layers", and the "kl_floor"."""
    by: str
    tried: int
    found: int
    """How many candidates there were; more than ``tried`` with a ``limit``, or where class means are equal."""
    relaxed: str = ""
    """Which rules were dropped because nothing passed them, or why one could not be applied; "" otherwise."""

    def table(self) -> list[dict[str, Any]]:
        """Return one row a candidate, the best first, those that a rule refused last.

        ``kept`` says whether it passed the rules that were applied in the end, ``why`` the first rule that it fails (also
        where that one was dropped): "drop_last", "kl_max", "induce_min", or "equal means", which has no direction at all.
        """
        return [dict(row) for row in self.rows]

    def plot(self) -> Any:
        """Return the heat map of the score, site by position: 0 no edit, 1 all the way; a cross marks what a rule refused.

        Where the clean metric is no higher on the positive prompts there is no way to go, and the change itself is shown.
        """
        from mi_ablate.figures import heat

        flow = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
        places = sorted({_place(row) for row in self.rows}, key=str)
        places.sort(key=lambda place: (place[0], [not place[1].endswith(name) for name in flow]))
        columns = sorted({row["pos"] for row in self.rows}, key=lambda pos: (pos < 0, pos))
        values = torch.full((len(places), len(columns)), float("nan"), dtype=torch.float64)
        refused = []
        for row in self.rows:
            i, j = places.index(_place(row)), columns.index(row["pos"])
            values[i, j] = float("nan") if row[self.by] is None else self._share(row)
            refused += [] if row["kept"] else [(j + 0.4, i - 0.3, f"refused: {row['why']}")]
        names = [site if head is None else f"{site} head {head}" for _, site, head in places]
        label = "share of the behaviour removed" if self._gap > 0 else "metric, below that of no edit"
        label = "share of the way to the other class" if self.by == "cosmic" else label
        best = f"{self.best.site}, position {self.best.pos}"
        title = f"The best of {self.tried} candidates by {self.by}: {best} (crosses: refused)"
        figure = heat(values.nan_to_num()[..., None], names, [str(pos) for pos in columns], label=label, title=title)
        shown, over = figure.data[0].z, figure.data[0].hovertext
        gone = values.isnan().tolist()
        figure.data[0].z = [[None if g else z for z, g in zip(*line, strict=True)] for line in zip(shown, gone)]
        figure.data[0].hovertext = [["not run" if g else t for t, g in zip(*line)] for line in zip(over, gone)]
        x, y, text = zip(*refused) if refused else ((), (), ())
        cross = {"symbol": "x-thin", "size": 8, "line": {"width": 2}}
        figure.update_xaxes(range=[-0.5, len(columns) - 0.5], autorange=False)
        figure.update_yaxes(range=[len(places) - 0.5, -0.5], autorange=False)
        figure.add_scatter(x=x, y=y, text=text, mode="markers", marker=cross, hoverinfo="text", showlegend=False)
        return figure

    def _share(self, row: dict[str, Any]) -> float:
        """The score of a row as a share, 0 no edit and 1 the clean level of the other class; of no behaviour, its change."""
        if self.by == "cosmic":
            return (row["cosmic"] - self.clean["cosmic"]) / (2 - self.clean["cosmic"])
        return (self.clean["bypass"] - row["bypass"]) / (self._gap if self._gap > 0 else 1.0)

    @property
    def _gap(self) -> float:
        """How much higher the clean metric is on the positive prompts; 0 without a metric."""
        return 0.0 if self.clean["bypass"] is None else self.clean["bypass"] - self.clean["induce"]

    def _repr_html_(self) -> str:
        from mi_ablate.figures import html_table

        return html_table(self.table()[:20])

    def __repr__(self) -> str:
        best = self.rows[0]
        scores = ", ".join(f"{what} {best[what]:.3g}" for what in ("bypass", "kl", "cosmic") if best[what] is not None)
        where = f"{self.best.site}[{self.best.pos}]" + ("" if self.best.head is None else f" head {self.best.head}")
        return f"Choice({where[-42:]} of {self.tried}: {scores}{'; rules relaxed' if self.relaxed else ''})"[:119]


def _place(row: dict[str, Any]) -> tuple[int, str, int | None]:
    """Where a row stands in the heat map; the embeddings come before the layers."""
    return -1 if row["layer"] is None else row["layer"], row["site"], row["head"]


def choose(
    model: HookedModel,
    found: Candidates | Mapping[Named, Subspace],
    tokens: Int[Tensor, "n p"],
    labels: Labels,
    metric: Callable[..., Tensor] | None,
    *,
    attention_mask: Int[Tensor, "n p"] | Bool[Tensor, "n p"] | None = None,
    edit: Callable[[Subspace], FwdHooks] | None = None,
    kl_max: int | float | None = 0.1,
    induce_min: int | float | None = 0.0,
    drop_last: int | float = 0.2,
    by: str = "bypass",
    limit: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Choice:
    """Return the candidate whose removal takes the behaviour away and changes little else; see the head of this module.

    Three passes a candidate: both classes with it removed, the negatives with it added. Only sums are kept in memory.

    Args:
        model: a hooked model.
        found: `find.candidates` of other prompts, or subspaces by (site, pos) or (site, pos, head).
        tokens: validation prompts of both classes.
        labels: True where the behaviour is there, one a prompt.
        metric: higher where the behaviour is there, bound to these prompts, such as ``refusal_score(tokens)``. None with
            by="cosmic": bypass and induce are None then, and the rule ``induce_min`` does not apply.
        attention_mask: 1 for real tokens.
        edit: how a direction is removed; None ablates it at all `writers`, the protocol of abliteration. Directions of
            heads, which are none of the stream, need one.
        kl_max: the largest KL; None for no such rule.
        induce_min: the smallest share of the way from the negative to the positive prompts that the addition must go; None
            for no such rule, which subspaces of several directions or of no stated size need.
        drop_last: the share of the layers, from the last, whose candidates are refused.
        by: "bypass" or "cosmic".
        limit: run only this many, those with the highest r2 on the prompts they were found on.
        batch_size: prompts a pass; the scores do not depend on it.
        progress: called with (passes done, passes in all).

    Raises:
        ValueError: one class only, a metric of other prompts or lower where the behaviour is there, candidates of another
            width, of heads without ``edit``, or none, NaN. KeyError: a site that the model lacks.

    """
    rules = Rules(by, drop_last, kl_max, induce_min)
    check_tokens(tokens)
    positive, _ = two_classes(labels, len(tokens), "choose")
    next(split(model, tokens, attention_mask, batch_size))  # refuses masks and batch sizes that do not fit
    if attention_mask is None:
        warn_of_padding(model, tokens, torch.tensor([[-1]]))
        attention_mask = left_padding(model, tokens, False)  # which the model derives itself, but not from a stream
    rules.check_metric(metric, len(tokens))
    passes = Passes(model, tokens, attention_mask, metric, batch_size, progress)
    return _best(passes, positive.cpu(), listed(found, limit), edit, rules)


def _best(
    passes: Passes, positive: Tensor, among: Listed, edit: Callable[[Subspace], FwdHooks] | None, rules: Rules
) -> Choice:
    """Run the candidates, judge their scores, and say how the best was chosen."""
    subspaces, by, n = among.subspaces, rules.by, len(passes.tokens)
    edits = {key: removal(passes.model, key, s, edit) for key, s in subspaces.items()}
    adds = [addition(key, s, rules.needs_addition) for key, s in subspaces.items()]
    points = passes.model.hook_dict
    for key in edits:
        checked(passes.model, key.site, points)
    for hooks in (*edits.values(), *filter(None, adds)):
        check_rows([(checked(passes.model, name, points), hook) for name, hook in hooks], n)
    passes.measure(positive, list(edits.values()), adds)
    clean, layers = clean_scores(passes.tallies, passes.metric is not None)
    rows = [row_of(key, among.r2.get(key), passes.tallies, i, clean, layers) for i, key in enumerate(subspaces)]
    relaxed = rules.judge(rows, clean, passes.model.cfg.n_layers)
    rows += [empty_row(key, among.r2.get(key)) for key in among.equal]
    rows.sort(key=lambda row: (not row["kept"], row[by] is None, (-1 if by == "cosmic" else 1) * (row[by] or 0.0)))
    best = Key(rows[0]["site"], rows[0]["pos"], rows[0]["head"])
    told = {"by": by, "tried": len(subspaces), "found": among.n, "rules": rules.values, "relaxed": relaxed}
    told |= {"prompts": {"positive": int(positive.sum()), "negative": int((~positive).sum())}}
    told |= {what: rows[0][what] for what in SCORES}
    chosen = replace(subspaces[best], source={**subspaces[best].source, "chosen": told})
    return Choice(tuple(rows), best, chosen, edits[best], clean, by, len(subspaces), among.n, relaxed)
