"""Neuron fits and direct effects at GPT-J's size against what the published notebook does, on one thread.

Answer first. The fit: the same predictions as an ordinary least squares of every neuron by itself (40 of them), and at
least as good as the notebook's gradient descent (Adam, 2,500 full-batch epochs, lr 0.1 with a cosine schedule; here 4
neurons and 250 epochs, times scaled up to 4,587 neurons and 2,500 epochs). Direct effects: equal to two passes through
the final norm and a column of W_U a neuron, 20 of them; the notebook runs the whole model twice for each of 4,587.
"""

import math

import torch
from _timing import arguments, interleaved, record

from mi_ablate.arithmetic.neuron_level._final_norm import FinalNorm, gains
from mi_ablate.arithmetic.neuron_level.neurons import fit_neurons, neuron_design

NEURONS, WIDTH, PAIRS, PERIODS = 4587, 4096, 100, (2, 5, 10, 100)
FEW, EPOCHS = 4, 250


def pairs_of_numbers() -> dict[str, torch.Tensor]:
    """All (a, b) below 100."""
    a, b = (x.flatten() for x in torch.meshgrid(torch.arange(100), torch.arange(100), indexing="ij"))
    return {"a": a, "b": b, "answer": a + b}


def by_descent(acts: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The notebook's route, each neuron by itself, in its amplitudes and phases; returns predictions."""
    predicted = []
    for y in acts.T:
        c = torch.ones(3, 4, requires_grad=True)
        d = torch.zeros(3, 4, requires_grad=True)
        line = torch.zeros(4, requires_grad=True)
        optimiser = torch.optim.Adam([c, d, line], lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
        terms = torch.stack([inputs[t].float() for t in ("a", "b", "answer")])
        scaled = torch.stack([inputs["a"] / 49.5 - 1, inputs["b"] / 49.5 - 1, inputs["answer"] / 99 - 1])
        periods = torch.tensor(PERIODS).float()
        for _ in range(EPOCHS):
            waves = torch.cos(2 * math.pi * (terms[:, None] - d[..., None]) / periods[:, None])
            out = (c[..., None] * waves).sum((0, 1)) + line[:3] @ scaled + line[3]
            optimiser.zero_grad()
            ((out - y) ** 2).mean().backward()
            optimiser.step()
            schedule.step()
        predicted.append(out.detach())
    return torch.stack(predicted, dim=1)


def each_by_itself(
    norm: FinalNorm, x: torch.Tensor, changes: torch.Tensor, rows: torch.Tensor, answers: torch.Tensor
) -> torch.Tensor:
    """The live-norm definition: the readout with and without each neuron's change."""
    picked = torch.arange(len(x))
    before = norm.logits(x, answers)[picked, picked]
    after = [norm.logits(x + changes[:, j : j + 1] * rows[j], answers)[picked, picked] for j in range(len(rows))]
    return torch.stack(after, dim=1) - before[:, None]


if __name__ == "__main__":
    options = arguments()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    inputs = pairs_of_numbers()
    design = neuron_design(inputs).matrix
    acts = (design @ torch.randn(design.shape[1], NEURONS, generator=generator, dtype=torch.float64)).float()
    acts += torch.randn(acts.shape, generator=generator)
    found = fit_neurons(acts, inputs)
    with_constant = torch.cat([design, torch.ones(len(design), 1).double()], dim=1)
    alone = (
        with_constant @ torch.linalg.lstsq(with_constant, acts[:, :40].double(), driver="gelsd", rcond=1e-6).solution
    )
    worst = float((alone - found.predict(inputs)[:, :40]).abs().max())
    assert worst < 1e-6, f"other predictions than least squares a neuron: {worst}"
    descent = ((by_descent(acts[:, :FEW], inputs) - acts[:, :FEW]) ** 2).mean(0)
    exact = found.variance[:FEW] * (1 - found.r2[:FEW])
    assert (exact <= descent + 1e-6).all(), "descent fits better than least squares"
    runs = {
        "exact, 4,587 neurons with control": lambda: fit_neurons(acts, inputs),
        "descent, 4 neurons, 250 epochs": lambda: by_descent(acts[:, :FEW], inputs),
    }
    table = interleaved(runs, options.rounds or 3, "exact, 4,587 neurons with control")
    whole = table["descent, 4 neurons, 250 epochs"]["median_s"] * NEURONS / FEW * 2500 / EPOCHS
    record(
        "neurons", {"what": "fits", "largest_difference": worst, "table": table, "descent_all_s": whole}, options.write
    )

    x, rows = (torch.randn(n, WIDTH, generator=generator) for n in (PAIRS, NEURONS))
    changes, answers = torch.randn(PAIRS, NEURONS, generator=generator), torch.arange(PAIRS)
    columns = torch.randn(WIDTH, 400, generator=generator)
    weight, zero = torch.rand(WIDTH, generator=generator).double() + 0.5, torch.zeros(WIDTH).double()
    norm = FinalNorm("LN", 1e-5, weight, zero, columns, None)
    some = slice(0, 20)
    slow = each_by_itself(norm, x.double(), changes[:, some].double(), rows[some].double(), answers)
    worst = float((gains(norm, x, changes[:, some], rows[some], answers, "live") - slow).abs().max())
    assert worst < 1e-9, f"other direct effects than the definition: {worst}"
    effects = {
        "batched, 4,587 neurons": lambda: gains(norm, x, changes, rows, answers, "live"),
        "readout alone, 20 neurons": lambda: each_by_itself(
            norm, x.double(), changes[:, some].double(), rows[some].double(), answers
        ),
    }
    table = interleaved(effects, options.rounds or 3, "batched, 4,587 neurons")
    record(
        "neurons",
        {"what": "direct effects", "largest_difference": worst, "pairs": PAIRS, "table": table},
        options.write,
    )
