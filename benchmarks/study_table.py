"""The README's part on the research log: the headline figure, and what it shows from the records."""

from _tables import HERE

from mi_ablate.studies import load_study


def resistance() -> str:
    """The figure of weight decay against resistance, two sentences on it, and how to get it."""
    [note, *_] = load_study("weight-decay").findings(HERE / "results" / "studies").notes
    return (
        "![Resistance curves by weight decay under zero- and mean-ablation](docs/research_log/weight-decay-1.png)\n\n"
        "Addition mod 97 at several weight decays: held-out accuracy as contrastive directions are removed at the last "
        f"residual, medians over seeds with their range (dotted: covariance-drawn subspaces). {note}\n\n"
        "[docs/research_log.md](docs/research_log.md): every table, claim and open question of the research log that this "
        "project began with, measured again with several seeds and controls. `mi-ablate study weight-decay --show` prints "
        "this part; without `--show` it trains what is not recorded."
    )
