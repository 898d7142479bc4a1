"""The README's part on the research log: the headline figure, and its numbers from the records."""

from _tables import HERE

from mi_ablate.studies import Cells, Spread
from mi_ablate.sweep import GRIDS

WHERE = "last_residual.directions.live"
DECAYS = (0.01, 0.1, 1.0)


def resistance() -> str:
    """The figure of weight decay against resistance, two sentences on it, and how to get it."""
    cells = Cells.load([GRIDS["weight-decay"]], HERE / "results" / "studies")
    groups = [cells.where(weight_decay=decay) for decay in DECAYS]
    best, told = {}, {}
    for ablation in ("zero", "mean"):
        spreads = [Spread.of(cell.mean_k("add", WHERE, ablation) for cell in group.done) for group in groups]
        best[ablation] = max(zip(DECAYS, spreads), key=lambda pair: pair[1].median)[0]
        told[ablation] = ", ".join(f"{decay:g}: {spread.centre.text('.0f')}" for decay, spread in zip(DECAYS, spreads))
    return (
        "![Resistance curves by weight decay under zero- and mean-ablation](docs/research_log/weight-decay-1.png)\n\n"
        "Addition mod 97 at several weight decays: accuracy as contrastive directions are removed at the last residual, "
        "medians over seeds with their range (dotted: covariance-drawn subspaces). Models trained at weight decay "
        f"{best['zero']:g} survive the most directions set to zero ({told['zero']}, medians at 95 % of the clean accuracy), "
        f"and those at {best['mean']:g} the most set to their mean ({told['mean']}).\n\n"
        "[docs/research_log.md](docs/research_log.md): every table, claim and open question of the research log that this "
        "project began with, measured again with several seeds and controls. `mi-ablate study weight-decay --show` prints "
        "this part; without `--show` it trains what is not recorded."
    )
