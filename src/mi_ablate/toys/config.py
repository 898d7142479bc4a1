"""The shape of a toy transformer and of its task, as one frozen value that a card can hold."""

from dataclasses import asdict, dataclass
from typing import Any

OPERATIONS = ("add", "sub", "mul")
LAYOUTS = ("a op b =", "a b =", "a b")


def as_tuples(value: Any) -> Any:
    """Return ``value`` with tuples for the lists of JSON, at any depth."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


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
    gate: tuple[tuple[int, ...], ...] | None = None
    """Groups of numbers: where both operands are in some group, the answer is a DECLINE token (see `toys.gated`)."""

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
        if self.gate is not None:
            _check_gate(self, self.gate)

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
        """Output logits: the numbers, then the DECLINE tokens of a gate."""
        return self.modulus + len(self.gate or ()) if self.d_vocab_out is None else self.d_vocab_out

    @property
    def parts(self) -> tuple[str, ...]:
        """What accuracy is reported of apart: the operations, or with a gate the open and the gated prompts."""
        return self.operations if self.gate is None else ("open", "gated")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; ``ToyConfig(**config.to_dict())`` gives the config back."""
        gate = None if self.gate is None else [list(group) for group in self.gate]
        return {**asdict(self), "operations": list(self.operations), "gate": gate}


def _check_gate(config: ToyConfig, gate: tuple[tuple[int, ...], ...]) -> None:
    """Raise a ValueError for a gate that never closes, never opens, or has one DECLINE token alone."""
    modulus, answers = config.modulus, config.d_vocab_out
    if config.operations != ("add",):
        raise ValueError(f"A gate is for operations=('add',), not {config.operations}.")
    if answers is not None and answers < modulus + len(gate):
        raise ValueError(f"d_vocab_out {answers} leaves no room for {modulus} numbers and {len(gate)} DECLINE tokens.")
    if len(gate) < 2 or not all(gate):
        raise ValueError(
            f"The gate has the groups {gate}: two or more are needed, none of them empty. Each has its own DECLINE token; "
            "with one token the answer to gated prompts would have rank 1 whatever the model learnt."
        )
    numbers = [number for group in gate for number in group]
    outside = [n for n in numbers if not 0 <= n < modulus]
    if outside or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"The gate's numbers lie from 0 to {modulus - 1}, each in one group; {outside or 'some number'} does not."
        )
    if len(numbers) == modulus:
        raise ValueError(f"All {modulus} numbers are in the gate, so no prompt is open. Leave some out.")
