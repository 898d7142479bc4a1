"""How fast helices are fitted at every layer of a model of GPT-J's size: 28 sites, 500 numbers, width 4096, one thread.

Answer first: on a small problem with uneven counts the fits, their R² and leave-one-number-out errors equal the slow
definition, one least squares on all prompts a site and one more for each number left out. Beside it stands one `mi.fit` a
site on the same means, which gives coefficients and R² only. The second line is of streaming: 200 prompts into per-number
means of 28 x 100 x 4096 in float32, and the memory that these take.
"""

import torch
from _timing import arguments, interleaved, record

import mi_ablate as mi
from mi_ablate.arithmetic.representation.helices import PERIODS, helix_fits
from mi_ablate.arithmetic.representation.states import NumberMeans, NumberSums, means_of

SITES, NUMBERS, WIDTH = 28, 500, 4096


def check() -> float:
    """Largest difference from the slow definition."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 30, (400,), generator=generator)
    acts = {f"{i}": torch.randn(400, 24, generator=generator, dtype=torch.float64) + values[:, None] for i in range(3)}
    means = means_of(acts, values)
    fits = helix_fits(means)
    worst = 0.0
    for i, x in enumerate(acts.values()):
        slow = mi.fit(x, mi.helix(values))
        press = torch.zeros(())
        for j, v in enumerate(means.values):
            rest = values != v
            error = means.at(i)[j] - mi.fit(x[rest], mi.helix(values[rest])).predict(mi.helix(v[None]))[0]
            press = press + means.counts[j] * error.square().sum()
        spread = (means.counts * means.centred(i).square().sum(1)).sum()
        differences = (
            (fits.coef[i] - slow.coef).abs().max(),
            fits.r2[i] - slow.r2,
            fits.loo[i] - (1 - press / spread),
        )
        worst = max(worst, *(float(abs(x)) for x in differences))
    return worst


def stacked(means: NumberMeans) -> None:
    design = mi.helix(means.values)
    for i in range(len(means.sites)):
        mi.fit(means.at(i), design)


if __name__ == "__main__":
    options = arguments()
    torch.set_num_threads(1)
    worst = check()
    assert worst < 1e-8, f"not the slow definition: {worst}"
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(SITES, NUMBERS, WIDTH, generator=generator, dtype=torch.float64)
    numbers, names = torch.arange(NUMBERS), tuple(f"blocks.{i}.hook_resid_pre" for i in range(SITES))
    ones = torch.ones(NUMBERS, dtype=torch.int64)
    means = NumberMeans("a", names, numbers, ones, data, torch.zeros(SITES, NUMBERS, dtype=torch.float64))
    single = NumberMeans("a", names, numbers, ones, data.float(), means.within)
    runs = {
        "helix_fits": lambda: helix_fits(means),
        "helix_fits, float32 means": lambda: helix_fits(single),
        "a fit a site": lambda: stacked(means),
    }
    table = interleaved(runs, options.rounds or 7, "helix_fits")
    result = {"sites": SITES, "numbers": NUMBERS, "width": WIDTH, "columns": 2 * len(PERIODS) + 1}
    record("helix", {"what": "all sites", **result, "largest_difference": worst, "table": table}, options.write)
    sums = NumberSums(torch.arange(100), dtype=torch.float32)
    batch = {name: torch.randn(200, WIDTH, generator=generator) for name in names}
    some = torch.arange(100).repeat(2)
    streaming = interleaved({"200 prompts": lambda: sums.update(batch, some)}, options.rounds or 5, "200 prompts")
    size = sums.means.numel() * sums.means.element_size() / 1e6
    record("helix", {"what": "streaming", "megabytes": size, "table": streaming}, options.write)
