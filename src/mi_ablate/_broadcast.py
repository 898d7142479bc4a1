"""How values meet activations: dtypes, strengths and gates, and values given one an example."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Strength = int | float | Tensor
Gate = int | float | Tensor | Callable[[Tensor], Tensor] | None
_HALF = (torch.float16, torch.bfloat16)


def working(x: Tensor) -> Tensor:
    """Return x in the dtype to compute in: float32 for half precision."""
    return x.float() if x.dtype in _HALF else x


def finished(y: Tensor, x: Tensor) -> Tensor:
    """Return the result in the dtype of x, rounded once."""
    return y if y.dtype == x.dtype else y.to(x.dtype)


def aligned(value: Tensor, x: Tensor, what: str) -> Tensor:
    """Return ``value`` [d] or [n, ..., d] brought against ``x``: examples align on the left, the vector axes on the right."""
    value = value.to(x)
    if value.ndim > 1 and value.ndim < x.ndim:
        value = value.reshape(value.shape[0], *[1] * (x.ndim - value.ndim), *value.shape[1:])
    try:
        torch.broadcast_shapes(value.shape, x.shape)
        fits = value.ndim <= x.ndim and all(v in (1, s) for v, s in zip(reversed(value.shape), reversed(x.shape)))
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{what} of shape {list(value.shape)} does not fit activations {list(x.shape)}: [d] is the same for all, "
            "and the first axis of anything larger counts the examples of the batch."
        )
    return value


def scaled(change: Tensor, strength: Strength, gate: Gate, x: Tensor) -> Tensor:
    """Return the change times strength and gate."""
    if callable(gate):
        gate = gate(x)
    for factor, what in ((strength, "strength"), (gate, "gate")):
        if isinstance(factor, Tensor) and factor.ndim:
            change = change * aligned(factor, x[..., :1], what)
        elif factor is not None and not (isinstance(factor, (int, float)) and factor == 1):
            change = change * factor
    return change


def refuse_non_finite(edit: str, infinite: bool = False, **values: Any) -> None:
    """Raise for values of an edit that are NaN, or infinite unless these are allowed (masked attention scores)."""
    for what, value in values.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.device.type != "meta":
            bad = int((value.isnan() if infinite else ~value.isfinite()).sum())
        else:
            bad = int(isinstance(value, float) and not math.isfinite(value))
        if bad:
            raise ValueError(f"{edit}: {what} holds {bad} values that are NaN or infinite; every activation would be.")


def per_example(value: Any) -> bool:
    """Return whether the first axis of a value counts examples."""
    return isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] > 1


def sliced(value: Any, index: Tensor | slice) -> Any:
    """Return a value for a batch of examples."""
    return value[index] if per_example(value) else value


def shape_text(x: Tensor) -> str:
    """Return the shape for a `repr`: "[4 16]"."""
    return "[" + " ".join(str(s) for s in x.shape) + "]"


def strength_text(strength: Strength) -> str:
    """Return the strength for a `repr`, nothing where it is 1."""
    if isinstance(strength, Tensor):
        return f", strength {shape_text(strength)}"
    return "" if strength == 1 else f", strength {strength:g}"
