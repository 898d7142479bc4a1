"""Which positions of a tensor an intervention addresses.

Positions count real tokens: where an attention mask is known, 0 is the first token that is not padding and -1 the last,
in each row. While a sequence is generated with a KV cache a forward pass shows a part of it, a `Window`; positions still
count from the start of the sequence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

Pos = int | slice | Sequence[int] | Tensor | Callable[..., Tensor] | None
Index = int | Tensor | None
"""None: nothing to choose, all positions. int: the same for all rows. Long [m]: the same for all rows.
Long [b] is written [b, 1] plus `squeeze`; Bool [b, n]: a mask."""


@dataclass(frozen=True)
class Window:
    """The part of the sequences that the current forward pass shows."""

    offset: int = 0
    """Tokens of each row that earlier passes showed (0 without a KV cache)."""
    mask: Bool[Tensor, "b total"] | None = None
    """Real tokens of everything shown so far, padding False; None where there is no padding."""
    growing: bool = False
    """Whether a KV cache is in use, so that positions beyond the end may still come."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Positions resolved for one tensor: how to read them and how to write them back."""

    index: Index | slice
    kind: str
    """"all", "none", "one" (int), "same" (Long [m] or slice), "each" (Long [b]), "rows" (Long [b, m]), "mask"."""

    def take(self, x: Shaped[Tensor, "b n *rest"]) -> Shaped[Tensor, "b *more"]:
        """Return the addressed vectors; positions keep their axis unless there is one a row."""
        if self.kind in ("all", "mask"):
            return x
        if self.kind == "one":
            return x[:, self.index]
        if self.kind == "same":
            return x[:, self.index]
        rows = torch.arange(x.shape[0], device=x.device)
        return x[rows, self.index] if self.kind == "each" else x[rows[:, None], self.index]

    def put(self, x: Shaped[Tensor, "b n *rest"], new: Shaped[Tensor, "b *more"]) -> Shaped[Tensor, "b n *rest"]:
        """Return a copy of ``x`` with the addressed vectors replaced."""
        if self.kind == "all":
            return new
        if self.kind == "mask":
            mask = self.index.reshape(*self.index.shape, *[1] * (x.ndim - 2))  # type: ignore[union-attr]
            return torch.where(mask, new, x)
        out = x.clone()
        if self.kind in ("one", "same"):
            out[:, self.index] = new
            return out
        rows = torch.arange(x.shape[0], device=x.device)
        out[rows if self.kind == "each" else rows[:, None], self.index] = new
        return out


ALL, NONE = Chosen(None, "all"), Chosen(None, "none")


def slice_rows(pos: Pos, index: Int[Tensor, " m"] | slice) -> Pos:
    """Return ``pos`` for a batch of examples: what is per example is sliced, the rest stays."""
    return pos[index] if isinstance(pos, Tensor) and pos.ndim > 0 else pos


def plain(pos: Pos) -> Pos:
    """Return ``pos`` with numpy's integers as ints; refuse what no tensor could make sense of, where the user wrote it."""
    if isinstance(pos, Tensor):
        whole = not pos.is_floating_point() and not pos.is_complex()
        if not whole or pos.ndim not in (1, 2) or (pos.ndim == 2) != (pos.dtype == torch.bool):
            raise ValueError(
                f"pos is a tensor of shape {list(pos.shape)} and {pos.dtype}. Integers [n] give one position an example, "
                "a Boolean [n, pos] is a mask; for the same positions in all rows give an int, a slice or a list."
            )
        return pos
    if _is_integer(pos):
        return int(pos)  # type: ignore[arg-type]
    if isinstance(pos, Sequence) and len(pos) > 0 and all(map(_is_integer, pos)):
        return [int(p) for p in pos]
    if pos is None or isinstance(pos, slice) or callable(pos):
        return pos
    raise ValueError(f"pos={pos!r}: give an int, a slice, a list of ints, Int[n], Bool[n, pos], a function or None.")


def resolve(pos: Pos, x: Shaped[Tensor, "b n *rest"], hook: object, window: Window) -> Chosen:
    """Return the positions of ``x`` that ``pos`` addresses within ``window``.

    Raises:
        IndexError: a position that the sequence does not have.
        ValueError: per-example positions or masks whose first axis is not the batch.

    """
    if pos is None:
        return ALL
    b, n = x.shape[:2]
    if callable(pos):
        return Chosen(_mask(pos(x, hook), b, n, "the function given as pos returned"), "mask")
    if isinstance(pos, Tensor) and pos.dtype == torch.bool:
        if window.growing:
            pos = torch.nn.functional.pad(pos, (0, max(0, window.offset + n - pos.shape[1])))[:, window.offset :][:, :n]
        return Chosen(_mask(pos, b, n, "pos has"), "mask")
    if isinstance(pos, Tensor) and len(pos) != b:
        raise ValueError(
            f"pos gives a position for {len(pos)} examples, but the batch has {b}. "
            "Inside effect and collect they are sliced with the batch; elsewhere pass hooks for the same rows."
        )
    if window.mask is None and window.offset == 0 and not window.growing:
        return _plain(pos, x, n)
    if window.mask is None and isinstance(pos, int) and pos < 0 and -pos <= n:
        return Chosen(pos, "one")
    return _counted(pos, x, window)


def _plain(pos: int | slice | Sequence[int] | Tensor, x: Tensor, n: int) -> Chosen:
    """Without padding and cache: ordinary indices into the tensor."""
    if isinstance(pos, int):
        _in_range(pos, pos, n)
        return Chosen(pos, "one")
    if isinstance(pos, slice):
        if len(range(n)[pos]) == 0:
            raise IndexError(f"pos={pos} chooses none of the {n} positions.")
        return Chosen(pos, "same")
    index = torch.as_tensor(pos, device=x.device)
    _in_range(int(index.min()), int(index.max()), n)
    return Chosen(torch.where(index < 0, index + n, index), "each" if isinstance(pos, Tensor) else "same")


def _counted(pos: int | slice | Sequence[int] | Tensor, x: Tensor, window: Window) -> Chosen:
    """With padding or a cache: count real tokens of each row from the start of the sequence."""
    b, n = x.shape[:2]
    total = window.offset + n
    mask = window.mask if window.mask is not None else torch.ones(b, total, dtype=torch.bool)
    if mask.shape != (b, total):
        raise ValueError(f"The attention mask has shape {list(mask.shape)}; the tokens so far are [{b}, {total}].")
    mask = mask.to(x.device)
    lengths = mask.sum(1)
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if isinstance(pos, slice):
        wanted = torch.zeros_like(mask)
        for row, length in enumerate(lengths.tolist()):
            wanted[row, order[row, :length][pos]] = True
        if not wanted.any() and not window.growing:
            raise IndexError(f"pos={pos} chooses no position of rows with {shortest} to {longest} tokens.")
        return _visible_mask(wanted[:, window.offset :])
    ranks = (pos if isinstance(pos, Tensor) else torch.as_tensor(pos)).to(x.device)
    ranks = ranks.reshape(-1, 1) if isinstance(pos, Tensor) else ranks.reshape(1, -1).expand(b, -1)
    beyond = ranks >= lengths[:, None]
    if bool((ranks < -lengths[:, None]).any()) or (bool(beyond.any()) and not window.growing):
        raise IndexError(f"pos={_short(pos)} is out of range: the rows have {shortest} to {longest} tokens.")
    ranks = torch.where(ranks < 0, ranks + lengths[:, None], ranks)
    local = order.gather(1, ranks.clamp(max=total - 1)) - window.offset
    hidden = beyond | (local < 0)
    if hidden.any():
        shown = torch.zeros(b, n, dtype=torch.int64, device=x.device)
        shown.scatter_add_(1, local.clamp(0, n - 1), (~hidden).long())  # several may be clamped to one index
        return _visible_mask(shown > 0)
    one = isinstance(pos, (int, Tensor))
    return Chosen(local[:, 0], "each") if one else Chosen(local, "rows")


def _visible_mask(mask: Bool[Tensor, "b n"]) -> Chosen:
    return Chosen(mask, "mask") if mask.any() else NONE


def _in_range(low: int, high: int, n: int) -> None:
    if low < -n or high >= n:
        wrong = low if low < -n else high
        raise IndexError(f"pos={wrong} is out of range: the sequence has {n} positions, so {-n} to {n - 1}.")


def _mask(mask: object, b: int, n: int, who: str) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (b, n):
        found = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{who} {found}; a mask is Bool[batch, pos] = [{b}, {n}] here.")
    return mask


def _is_integer(pos: object) -> bool:
    return isinstance(pos, Integral) and not isinstance(pos, bool)


def _short(pos: object) -> str:
    return f"Int[{len(pos)}]" if isinstance(pos, Tensor) else repr(pos)


def grown(window: Window, chunk: int, mask: Tensor | None) -> Window:
    """Return the window of the next pass: ``chunk`` new tokens after those of ``window``, with their mask."""
    before = window.mask
    if mask is None:
        if before is None:
            return window
        mask = torch.ones(before.shape[0], chunk, dtype=torch.bool, device=before.device)
    mask = mask.to(torch.bool)
    if mask.shape[1] == window.offset + chunk:
        return replace(window, mask=mask)
    if before is None:
        before = torch.ones(mask.shape[0], window.offset, dtype=torch.bool, device=mask.device)
    return replace(window, mask=torch.cat([before[:, : window.offset], mask], dim=1))
