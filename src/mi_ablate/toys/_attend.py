"""Softmax attention over a handful of positions whose rows are looked up, with the backward pass written out.

Tables are ``[rows *rest]`` or, for a stack of models, ``[model rows *rest]``. Rows are named by a slice, by one index for
all models, or by an index ``[model taken]`` that counts through the rows of the models one after the other.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Where = Int[Tensor, "..."] | slice


def rows(table: Float[Tensor, "*table"], where: Where, rest: int) -> Float[Tensor, "*taken"]:
    """Return the rows of ``table``, whose last ``rest`` axes belong to one row, at ``where``."""
    axis = table.ndim - rest - 1
    if isinstance(where, slice):
        return table[(slice(None),) * axis + (where,)]
    if axis == 0:
        return F.embedding(where, table.flatten(1)).unflatten(-1, table.shape[1:])
    if where.ndim == 1:
        return table.index_select(1, where)
    taken = table.flatten(0, 1).flatten(1).index_select(0, where.flatten())  # embedding's gradient may wait for a GPU
    return taken.view(*where.shape, *table.shape[2:])


def add(table: Float[Tensor, "*table"], where: Where, update: Float[Tensor, "*taken"], rest: int) -> None:
    """Add the rows of ``update`` to those of the contiguous ``table`` that they came from."""
    axis = table.ndim - rest - 1
    if not isinstance(where, slice):
        if where.ndim == 1:
            table.index_add_(axis, where, update)
        else:
            table.view(-1, *table.shape[2:]).index_add_(0, where.flatten(), update.flatten(0, 1))
        return
    there = rows(table, where, rest)
    there += update if there.shape[axis] == update.shape[axis] else update.sum(axis, keepdim=True)


class Attend(torch.autograd.Function):
    """Attention of the rows ``query`` over the rows ``kv`` (keys, then values) that ``links`` names.

    ``links`` says, for each position that asks, where its queries are and where the keys and values that it sees.
    Written out, the gradients of keys and values add up in place in one buffer, position by position, within the cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "*model rows_q head d_head"],
        kv: Float[Tensor, "*model rows 2 head d_head"],
        links: list[tuple[Where, list[Where]]],
    ) -> Float[Tensor, "*model asking head d_head"]:
        """Return the mixed values of every asking position, one after the other."""
        ctx.links, ctx.shapes, ctx.saved, out = links, (query.shape, kv.shape), [], []
        for asked, seen in links:
            q, near = rows(query, asked, 2), [rows(kv, where, 3) for where in seen]
            scores = torch.broadcast_tensors(*[(q * each[..., 0, :, :]).sum(-1) for each in near])
            pattern = (torch.stack(scores) / math.sqrt(q.shape[-1])).softmax(0)[..., None]
            z = pattern[0] * near[0][..., 1, :, :]
            for weight, each in zip(pattern[1:], near[1:]):
                z.addcmul_(weight, each[..., 1, :, :])
            ctx.saved.append((q, near, pattern))
            out.append(z)
        return torch.cat(out, -3)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad: Float[Tensor, "*model asking head d_head"]
    ) -> tuple[Float[Tensor, "*model rows_q head d_head"], Float[Tensor, "*model rows 2 head d_head"], None]:
        """Return the gradients of queries, keys and values."""
        grad_query, grad_kv = (grad.new_zeros(shape) for shape in ctx.shapes)
        done = 0
        for (asked, seen), (q, near, pattern) in zip(ctx.links, ctx.saved):
            count = pattern.shape[-3]
            g = grad[..., done : done + count, :, :]
            done += count
            weighted = pattern * torch.stack([(each[..., 1, :, :] * g).sum(-1, keepdim=True) for each in near])
            scores = (weighted - pattern * weighted.sum(0)) / math.sqrt(q.shape[-1])
            grad_q = scores[0] * near[0][..., 0, :, :]
            for score, each in zip(scores[1:], near[1:]):
                grad_q.addcmul_(score, each[..., 0, :, :])
            add(grad_query, asked, grad_q, 2)
            for score, weight, where in zip(scores, pattern, seen):
                there = rows(grad_kv, where, 3) if isinstance(where, slice) else None
                if there is not None and there.shape[-4] == count:
                    there[..., 0, :, :].addcmul_(score, q)
                    there[..., 1, :, :].addcmul_(weight, g)
                else:
                    add(grad_kv, where, torch.stack((score * q, weight * g), -3), 3)
        return grad_query, grad_kv, None
