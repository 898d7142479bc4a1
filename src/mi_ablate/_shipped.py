"""What models trained by the project share: their Hugging Face folder, what each card says, the bar of a training."""

import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any


def write_folder(model: Any, tokenizer: Any, folder: str | Path, card: str) -> Path:
    """Write config.json, model.safetensors, the tokenizer and README.md to ``folder`` and return it."""
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8"))
    said["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 5 writes a name that 4 does not know
    settings.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def facts(model: Any, command: str, seconds: float) -> dict[str, Any]:
    """Return what every card says of a model of `transformers`, for its template."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "context": model.config.n_positions,
        "words": model.config.vocab_size,
        "command": command,
        "seconds": seconds,
        "versions": f"python {platform.python_version()}, {packages}",
    }


@contextmanager
def training_bar(steps: int) -> Iterator[Callable[[int, int, float], None]]:
    """Show a bar on stderr, and yield what is called with (steps done, steps in all, loss); one torch thread."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    torch.set_num_threads(1)
    loss = TextColumn("loss {task.fields[loss]:.3f}")
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), loss)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps, loss=float("nan"))
        yield lambda done, _, loss: bar.update(task, completed=done, loss=loss)
