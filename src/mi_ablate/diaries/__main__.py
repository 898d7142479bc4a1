"""``python -m mi_ablate.diaries``: train the diary model, and write its Hugging Face folder and card."""

from pathlib import Path

from mi_ablate._shipped import training_bar
from mi_ablate.diaries.shipping import save
from mi_ablate.diaries.training import Settings, train


def main(seed: int = Settings.seed, steps: int = Settings.steps, out: Path = Path("runs/diary")) -> None:
    """Train a GPT-2 on diary entries whose mood chooses words; one torch thread."""
    with training_bar(steps) as progress:
        trained = train(Settings(seed=seed, steps=steps), progress)
    command = f"python -m mi_ablate.diaries --seed {seed} --steps {steps}"
    model_loss, own = trained.losses["all"]
    print(
        f"{trained.seconds:.0f} s; {model_loss:.4f} nats a word, the generator {own:.4f}: {save(trained, out, command)}"
    )


if __name__ == "__main__":
    import typer

    typer.run(main)
