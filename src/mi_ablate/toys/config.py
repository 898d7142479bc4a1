"""The shape of a toy transformer and of its task, as one frozen value that a card can hold."""

from dataclasses import asdict, dataclass
from typing import Any

OPERATIONS = ("add", "sub", "mul")
LAYOUTS = ("a op b =", "a b =", "a b")


@dataclass(frozen=True)
class ToyConfig:
    """A transformer on (a op b) mod p.

    Tokens 0 .. p-1 are the numbers, then one token an operation (layout ``a op b =`` only), then ``=`` (where the
    layout has it). Logits are read at the last position, over ``d_vocab_out`` answers (the modulus, unless a
    published model has more).
    """

    modulus: int
    operations: tuple[str, ...] = ("add",)
    layout: str = "a op b ="
    n_layers: int = 2
    d_model: int = 128
    n_heads: int = 4
    d_mlp: int = 512
    act_fn: str = "gelu"
    normalization: str | None = "LN"
    """TransformerLens's ``normalization_type``: "LN", "RMS" or None."""
    biases: str = "all"
    """Which biases are trained: "all", "mlp" (Nanda et al.) or "none"; the others stay zero."""
    attention: str = "causal"
    """"causal" or "bidirectional"."""
    d_vocab_out: int | None = None
    attention_coefficient: float = 1.0
    """c of Zhong et al.: pattern = c softmax + (1 - c) 1. Anything but 1 is set by a permanent hook on the pattern."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))
        unknown = [op for op in self.operations if op not in OPERATIONS]
        if unknown or not self.operations:
            raise ValueError(f"operations {self.operations} must be among {OPERATIONS}.")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout {self.layout!r} must be one of {LAYOUTS}.")
        if len(self.operations) > 1 and self.layout != "a op b =":
            raise ValueError(f"{len(self.operations)} operations need the layout 'a op b =', not {self.layout!r}.")
        if self.modulus < 2:
            raise ValueError(f"modulus {self.modulus} must be at least 2.")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} must be a multiple of n_heads {self.n_heads}.")
        if self.normalization not in ("LN", "RMS", None):
            raise ValueError(f"normalization {self.normalization!r} must be 'LN', 'RMS' or None.")
        if self.biases not in ("all", "mlp", "none"):
            raise ValueError(f"biases {self.biases!r} must be 'all', 'mlp' or 'none'.")
        if self.attention not in ("causal", "bidirectional"):
            raise ValueError(f"attention {self.attention!r} must be 'causal' or 'bidirectional'.")

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    @property
    def n_ctx(self) -> int:
        """Tokens of one prompt."""
        return len(self.layout.split())

    @property
    def d_vocab(self) -> int:
        """Input tokens: numbers, operation tokens, ``=``."""
        return self.modulus + (len(self.operations) if "op" in self.layout else 0) + ("=" in self.layout)

    @property
    def n_answers(self) -> int:
        """Output logits."""
        return self.modulus if self.d_vocab_out is None else self.d_vocab_out

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; ``ToyConfig(**config.to_dict())`` gives the config back."""
        return {**asdict(self), "operations": list(self.operations)}
