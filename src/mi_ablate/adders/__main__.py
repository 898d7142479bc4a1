"""``python -m mi_ablate.adders``: train the adder, and write its Hugging Face folder and card."""

from pathlib import Path

from mi_ablate._shipped import training_bar
from mi_ablate.adders.shipping import save
from mi_ablate.adders.training import Settings, train


def main(seed: int = Settings.seed, steps: int = Settings.steps, out: Path = Path("runs/adder")) -> None:
    """Train a GPT-2 on sums of two numbers below 100; one torch thread."""
    with training_bar(steps) as progress:
        trained = train(Settings(seed=seed, steps=steps), progress)
    command = f"python -m mi_ablate.adders --seed {seed} --steps {steps}"
    right = trained.scores["held out"].accuracy
    print(f"{trained.seconds:.0f} s; {right:.4f} of the held-out sums right: {save(trained, out, command)}")


if __name__ == "__main__":
    import typer

    typer.run(main)
