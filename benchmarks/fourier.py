"""How fast the Fourier analysis of a p = 113 model is, and the cos(w(a+b-c)) coefficients against the public notebook's route.

Answer first: both give the same coefficients. The TransformerLens demo builds every cube cos(w_k(a+b-c)), made unit, in one
array of 56 x 113 x 113 x 113 numbers and multiplies it with the logits; `cosine_share` sums the logits over a + b - c and
transforms once. The notebook's route is written anew here, in its float32; 0.32 GB for the cubes and as much for the product.
Peak memory is of the whole process, after one run of each; it is measured in a process of its own.
"""

import math
import re
import subprocess
import sys
from pathlib import Path

import torch
from _timing import arguments, interleaved, record

import mi_ablate as mi
from mi_ablate.fourier_analysis import analyse
from mi_ablate.modular import cosine_share, grid

MODEL = "nanda113"


def cubes(logits: torch.Tensor) -> torch.Tensor:
    """Every unit cube at once, then one product: what the demo does."""
    n = len(logits)
    i = torch.arange(n)
    angle = (i[None, :, None, None] + i[None, None, :, None] - i).float() * (2 * math.pi / n)
    every = torch.cos(angle * torch.arange(1, n // 2 + 1)[:, None, None, None])
    every /= every.pow(2).sum((-3, -2, -1), keepdim=True).sqrt()
    return (every * logits.float()).sum((-3, -2, -1))


def peak(what: str) -> float:
    """Peak memory, in GB, of a process that does one of the two."""
    code = f"import sys; sys.path.insert(0, 'benchmarks'); import fourier; fourier.alone({what!r})"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def alone(what: str) -> None:
    """Do one thing and print the peak memory of this process."""
    torch.set_num_threads(1)
    toy = mi.toys.load(MODEL)
    if what == "analysis":
        analyse(toy)
    else:
        (cubes if what == "cubes" else cosine_share)(grid(toy).logits)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's peak too
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 2**20)


if __name__ == "__main__":
    options = arguments()
    torch.set_num_threads(1)
    toy = mi.toys.load(MODEL)
    logits = grid(toy).logits
    worst = float((cosine_share(logits).coefficients - cubes(logits)).abs().max() / logits.norm())
    assert worst < 1e-5, f"other coefficients than the notebook's route: {worst}"
    runs = {"cosine_share": lambda: cosine_share(logits), "all cubes": lambda: cubes(logits)}
    table = interleaved(runs, options.rounds or 5, "cosine_share")
    memory = {name: peak(name) for name in ("cosine_share", "cubes", "analysis")}
    record(
        "fourier",
        {"what": "coefficients", "largest_difference": worst, "peak_gb": memory, "table": table},
        options.write,
    )
    analysis = interleaved({"analyse": lambda: analyse(toy)}, options.rounds or 3, "analyse")
    record("fourier", {"what": "full analysis", "model": MODEL, "table": analysis}, options.write)
