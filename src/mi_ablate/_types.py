"""The words the other modules share: what a hook is, and what a hooked model must offer."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

Hook = Callable[..., Tensor]
"""``hook(x, hook=hookpoint) -> x'``. TransformerLens passes the hook point by keyword."""

FwdHooks = list[tuple[str, Hook]]
"""TransformerLens's own type for ``fwd_hooks=``; two lists compose with ``+``."""

Metric = Callable[..., Tensor]
"""``metric(logits [b p v], clean [b p v], rows [b]) -> [b]``; see `mi_ablate.metrics`."""


@runtime_checkable
class HookedModel(Protocol):
    """What the package asks of a model: the part that HookedTransformer and TransformerBridge share."""

    cfg: Any

    @property
    def hook_dict(self) -> Mapping[str, Any]:
        """Hook points by name."""
        ...

    def hooks(self, fwd_hooks: Any = ...) -> AbstractContextManager[Any]:
        """TransformerLens's context manager for temporary hooks."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; logits ``[batch pos d_vocab]`` by default."""
        ...


def nearest(asked: str, there: Any, n: int = 3) -> str:
    """Return a sentence that lists the names closest to ``asked``, for error messages."""
    import difflib

    names = [str(name) for name in there]
    close = difflib.get_close_matches(asked, names, n=n, cutoff=0.4) or names[:n]
    return "Nearest names: " + ", ".join(close) + "." if close else "There are no names to choose from."
