"""The passes behind `choose`: each candidate removed and added, over batches of prompts, with sums alone kept.

What a pass cannot change is not computed again, where the model allows it: the logits at other positions than those that
the metric and the KL read, and, for an addition, the blocks below its site, from whose clean output the pass starts. Both
ways are checked against an ordinary pass first.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_ablate._attach import Reader
from mi_ablate._names import layer_of
from mi_ablate._positions import Window, resolve
from mi_ablate._types import FwdHooks
from mi_ablate.metrics import PositionMetric, kl, noise_floor
from mi_ablate.model import attached, default_batch_size, rows_of, run
from mi_ablate.replay import agree, where_read

_KL = kl()


@dataclass
class Tally:
    """What is kept of one edit over one class of prompts: sums over the prompts."""

    n: int = 0
    metric: float = 0.0
    kl: float = 0.0
    floor: float = 0.0
    acts: Float[Tensor, "layers d"] | int = 0

    def mean(self, what: str) -> Any:
        """Return the mean over the prompts of "metric", "kl", "floor" or "acts"."""
        return getattr(self, what) / self.n


@dataclass
class Passes:
    """A model and its prompts of both classes, run under one edit after another."""

    model: Any
    tokens: Int[Tensor, "n p"]
    mask: Tensor | None
    metric: Callable[..., Tensor] | None
    batch_size: int | None
    progress: Callable[[int, int], None] | None = None
    tallies: dict[tuple[str, int | None], Tally] = field(default_factory=lambda: defaultdict(Tally))
    done: int = 0
    total: int = 0
    _short: bool = False
    _below: dict[int, Float[Tensor, "b p d"]] = field(default_factory=dict)
    """The clean stream of the current batch before each block that an addition starts from."""
    _clean: Float[Tensor, "layers d"] | int = 0

    def measure(self, positive: Tensor, removals: list[FwdHooks], additions: list[FwdHooks | None]) -> None:
        """Fill ``tallies``: (what, candidate) for "positive" and "negative" (clean, candidate None), "bypass", "kl", "induce".

        Args:
            positive: which prompts show the behaviour, ``[n]``.
            removals: the edit of each candidate.
            additions: the addition of each candidate; None where it has none.

        """
        up, down = ([*self._batches(torch.nonzero(chosen).flatten())] for chosen in (positive, ~positive))
        added = sum(hooks is not None for hooks in additions)
        self.total = len(up) * (1 + len(removals)) + len(down) * (1 + len(removals) + added)
        every = [hook for edit in [*removals, *additions] if edit is not None for hook in edit]
        self._short = self._readable(up[0], every)
        starts = tuple(sorted({layer for edit in additions if edit and (layer := layer_of(edit[0][0]))}))
        for rows in up:
            clean = self._add(("positive", None), rows, [])
            for i, hooks in enumerate(removals):
                self._add(("bypass", i), rows, hooks, clean)
        for rows in down:
            clean = self._add(("negative", None), rows, [], keep=starts if self._short else ())
            self.tallies[("negative", None)].floor += noise_floor(clean[1][:, None]) * len(rows)
            if rows is down[0] and not self._resumable(rows, clean[1]):
                starts, self._below = (), {}
            for i, hooks in enumerate(removals):
                self._add(("kl", i), rows, hooks, clean)
            for i, addition in enumerate(additions):
                if addition is not None:
                    self._add(("induce", i), rows, addition, clean)

    def _add(
        self,
        key: tuple[str, int | None],
        rows: Tensor,
        hooks: FwdHooks,
        clean: tuple[Tensor, Tensor] | None = None,
        keep: tuple[int, ...] = (),
    ) -> tuple[Tensor, Tensor]:
        """Run one batch, add its sums to the tally, and return the logits where the metric and the KL read them."""
        start = (layer_of(hooks[0][0]) or 0) if key[0] == "induce" else 0
        start = start if start in self._below else 0
        tally, (logits, last, acts) = self.tallies[key], self._run(rows, hooks, key[0] != "kl", start, keep)
        tally.n += len(rows)
        if key[0] == "kl":
            before = (clean or (logits, last))[1]
            tally.kl += float(_KL(last[:, None], before[:, None], rows).sum())
        elif self.metric is not None:
            scores = self.metric(logits, (clean or (logits, last))[0], rows).detach().to("cpu", torch.float64)
            if scores.shape != rows.shape or not bool(torch.isfinite(scores).all()):
                raise ValueError(
                    f"The metric returned {list(scores.shape)} for a batch of {len(rows)} prompts, "
                    f"{int((~torch.isfinite(scores)).sum())} of them NaN or infinite: one finite number a prompt is needed."
                )
            tally.metric += float(scores.sum())
        if acts is not None:
            if not bool(torch.isfinite(acts).all()):
                raise ValueError(
                    f"NaN or infinite activations in prompts {rows[:5].tolist()} under {hooks or 'no edit'}."
                )
            tally.acts = tally.acts + acts
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
        return logits, last

    def _run(
        self, rows: Tensor, hooks: FwdHooks, reads: bool, start: int = 0, keep: tuple[int, ...] = ()
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits ``[b p v]`` as the metric reads them, those of the last token ``[b v]``, the sums ``[layers d]``.

        The pass begins at block ``start``; the streams before the blocks ``keep`` are kept for passes that begin there.
        """
        n, mask = self.model.cfg.n_layers, None if self.mask is None else self.mask[rows]
        readers = [Reader(f"blocks.{layer}.hook_resid_post", -1) for layer in (range(start, n) if reads else ())]
        keepers = {layer: Reader(f"blocks.{layer}.hook_resid_pre", None) for layer in keep}
        there: FwdHooks = [(reader.name, reader) for reader in (*readers, *keepers.values())]  # type: ignore[misc]
        given = {"start_at_layer": start or None, "stop_at_layer": n if self._short else None}
        with torch.no_grad(), attached(self.model, rows_of(hooks, rows) + there):
            out = run(self.model, self._below[start] if start else self.tokens[rows], mask, **given)
        acts = torch.stack([reader.value for reader in readers], 1).to("cpu", torch.float64).sum(0) if reads else None
        if keep:
            self._below, self._clean = {layer: reader.value for layer, reader in keepers.items()}, acts  # type: ignore[assignment]
        if start and acts is not None:
            acts = torch.cat([self._clean[:start], acts])  # type: ignore[index]
        if self._short:
            return (*self._unembedded(out, mask), acts)
        return out if self.metric is None else where_read(out, mask, self.metric), _at(out, -1, mask), acts

    def _resumable(self, rows: Tensor, clean: Float[Tensor, "b v"]) -> bool:
        """Whether passes that begin at a block, any of those kept, end as the whole one did."""
        return all(agree(self._run(rows, [], reads=False, start=layer)[1], clean) for layer in self._below)

    def _unembedded(self, stream: Float[Tensor, "b p d"], mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The logits at the metric's position, wherever it will look, and at the last real token."""
        own = self.metric.pos if isinstance(self.metric, PositionMetric) else -1
        norm = self.model.ln_final if self.model.cfg.normalization_type is not None else torch.nn.Identity()
        with torch.no_grad():
            x = torch.stack([_at(stream, pos, mask) for pos in dict.fromkeys((-1, own))], 1)
            logits = self.model.unembed(norm(x))
        return logits[:, -1:].expand(-1, stream.shape[1], -1), logits[:, 0]

    def _readable(self, rows: Tensor, hooks: FwdHooks) -> bool:
        """Whether the final norm and the unembedding may be run at single positions, and give what an ordinary pass gives."""
        model, probe = self.model, rows[:2]
        inside = all(layer_of(name) is not None or name in ("hook_embed", "hook_pos_embed") for name, _ in hooks)
        capped = getattr(model.cfg, "output_logits_soft_cap", None) not in (None, 0, -1)
        known = self.metric is None or isinstance(self.metric, PositionMetric)
        if hasattr(model, "original_model") or capped or not inside or not known:
            return False
        mask = None if self.mask is None else self.mask[probe]
        with torch.no_grad():
            stream = run(model, self.tokens[probe], mask, stop_at_layer=model.cfg.n_layers)
            whole = run(model, self.tokens[probe], mask)
        return agree(self._unembedded(stream, mask)[1], _at(whole, -1, mask))

    def _batches(self, index: Int[Tensor, " m"]) -> Iterator[Int[Tensor, " b"]]:
        yield from index.split(self.batch_size or default_batch_size(self.model, self.tokens.shape[1]))


def _at(x: Float[Tensor, "b p w"], pos: int, mask: Tensor | None) -> Float[Tensor, "b w"]:
    """The vectors at one position of real tokens."""
    return resolve(pos, x, None, Window(0, None if mask is None else mask.bool())).take(x)
