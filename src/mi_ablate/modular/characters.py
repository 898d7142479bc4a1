"""The discrete logarithm: multiplication mod a prime is addition of exponents mod p - 1.

With g a primitive root, a = g^e gives a b = g^(e_a + e_b), so Fourier analysis of multiplication runs over e in
Z_(p-1). Another root permutes the frequencies; only the order of a character, (p-1) / gcd(k, p-1), does not depend on it.
Zero has no logarithm and stands apart.
"""

import torch
from jaxtyping import Int
from torch import Tensor


def primitive_root(p: int) -> int:
    """Return the smallest primitive root of the prime p (97: 5, 113: 3)."""
    if p < 3 or any(p % q == 0 for q in range(2, int(p**0.5) + 1)):
        raise ValueError(f"{p} is not an odd prime, so the non-zero residues have no logarithm to one root.")
    factors = [q for q in range(2, p) if (p - 1) % q == 0 and all(q % r for r in range(2, int(q**0.5) + 1))]
    return next(g for g in range(2, p) if all(pow(g, (p - 1) // q, p) != 1 for q in factors)) if p > 3 else 2


def discrete_log(p: int, root: int | None = None) -> Int[Tensor, " p"]:
    """Return e with root^e = a mod p for a = 0 .. p-1, and -1 for a = 0."""
    g = primitive_root(p) if root is None else root
    table = torch.full((p,), -1, dtype=torch.int64)
    value = 1
    for exponent in range(p - 1):
        if table[value] >= 0:
            raise ValueError(f"{g} is not a primitive root of {p}: its powers repeat after {exponent} steps.")
        table[value], value = exponent, value * g % p
    return table
