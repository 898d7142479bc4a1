"""``python -m mi_ablate.diaries``: train the diary model, and write its Hugging Face folder and card."""

from pathlib import Path

from mi_ablate.diaries.shipping import save
from mi_ablate.diaries.training import Settings, train


def main(seed: int = Settings.seed, steps: int = Settings.steps, out: Path = Path("runs/diary")) -> None:
    """Train a GPT-2 on diary entries whose mood chooses words; one torch thread."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    torch.set_num_threads(1)
    loss = TextColumn("loss {task.fields[loss]:.3f}")
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), loss)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps, loss=float("nan"))
        trained = train(
            Settings(seed=seed, steps=steps), lambda done, _, loss: bar.update(task, completed=done, loss=loss)
        )
    command = f"python -m mi_ablate.diaries --seed {seed} --steps {steps}"
    model_loss, own = trained.losses["all"]
    print(
        f"{trained.seconds:.0f} s; {model_loss:.4f} nats a word, the generator {own:.4f}: {save(trained, out, command)}"
    )


if __name__ == "__main__":
    import typer

    typer.run(main)
