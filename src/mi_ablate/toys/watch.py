"""Fourier progress of a run: live in the trainer, or along the weights that it kept.

`Watch` is what ``train(..., watch=...)`` calls at evaluations: it takes the logits of all pairs by the trainer's own forward
pass and appends a row of `modular.progress_row`. `along` gives the same rows for the states in a run's folder
(``keep_steps``), with the key frequencies of the final model, which a live run cannot know.

Misleads where: a live row's restricted and excluded losses are of that step's own largest frequencies of W_E, which wander
until the circuit has formed. Read them live, and `along` afterwards.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._files import read
from ..modular.gradients import gradient_symmetricity
from ..modular.grids import Grid, grid
from ..modular.progress import LIVE_KEYS, progress_row
from ..modular.spectra import spectrum
from . import tasks
from .checkpoints import Toy
from .config import ToyConfig
from .evaluation import CHUNK, train_mask
from .forward import Params, last_logits, trained_names
from .kept import KEPT_FORMAT
from .recipes import TrainConfig
from .stepper import initial_state
from .transformer import build

LIVE = "progress.jsonl"
"""The file of live rows in a run's folder."""
TRIPLES = 500
"""Of the gradient symmetricity along a run: a standard error of about 0.02."""


class Watch:
    """Measures progress live; pass it to ``train`` and read `rows`, or the file that they are appended to."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        out: Path | str | None = None,
        every: int = 500,
        operation: str | None = None,
        frequencies: Sequence[int] | None = None,
    ) -> None:
        """Prepare the grid of one operation.

        Args:
            config: what is trained.
            out: the run's folder, where rows go to `LIVE`; rows that are there are kept as far as a resumed run does not
                measure their steps again.
            every: steps between rows (rounded up to evaluations).
            operation: the first by default.
            frequencies: key frequencies, where they are known; the top five of each step's W_E otherwise.

        Raises:
            ValueError: an operation that the toy has not, ``every`` below 1, frequencies outside the group.

        """
        if every < 1:
            raise ValueError(f"every={every} must be at least one step.")
        self.every, self.frequencies = every, frequencies
        self.config, self.grid = config, _grid(config, operation)
        self.path = None if out is None else Path(out) / LIVE
        there = self.path is not None and self.path.is_file()
        self.rows: list[dict[str, Any]] = read_rows(self.path) if there and self.path else []

    def __call__(self, step: int, params: Params) -> None:
        """Append the row of this step, if one is due."""
        before = [row for row in self.rows if row["step"] < step]
        if before and step // self.every == before[-1]["step"] // self.every:
            return
        self.rows = [*before, measure(self.grid, self.config.config, step, params, self.frequencies)]
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def __repr__(self) -> str:
        return f"Watch({self.grid!r}, every {self.every} steps, {len(self.rows)} rows)"


def measure(
    grid: Grid, config: ToyConfig, step: int, params: Params, frequencies: Sequence[int] | None
) -> dict[str, Any]:
    """Return the progress row of weights in HookedTransformer's names, by the trainer's forward pass."""
    if grid.train is None:
        raise ValueError(f"Nobody knows which pairs {grid!r} was trained on, so there is no progress to measure.")
    device = params["embed.W_E"].device
    with torch.no_grad():
        parts = [last_logits(config, params, part.to(device)).cpu() for part in grid.tokens.split(CHUNK)]
    logits = torch.cat(parts).double()[:, grid.c].unflatten(0, (grid.n, grid.n))
    embedding = params["embed.W_E"].detach().cpu().double()[grid.a]
    weights = sum(float(p.detach().double().square().sum()) for p in params.values())
    return progress_row(step, logits, embedding, grid.train, frequencies, weights)


def states(folder: Path | str) -> Iterator[tuple[int, TrainConfig, dict[str, Float[Tensor, "..."]]]]:
    """Yield step, configuration and weights of every kept state of a run, in the order of steps, the initial ones first.

    Files of another configuration than the newest model's are left out: the folder may hold what an earlier run kept.

    Raises:
        ArtefactError: (a ValueError) a kept file that cannot be read.

    """
    folder, found = Path(folder), dict[int, dict[str, Tensor]]()
    cards = {
        path: read(path) for path in sorted(folder.glob("*.safetensors")) if path.name.startswith(("kept-", "model"))
    }
    of_model = next((card for path, (_, card) in cards.items() if path.name.startswith("model")), None)
    if of_model is None or "training" not in of_model or len(cards) < 2:
        return
    config = TrainConfig.from_dict(of_model["training"])
    for tensors, card in cards.values():
        same = TrainConfig.from_dict(card["training"]) == config
        if same and (card.get("format") == KEPT_FORMAT or card is of_model):
            found[int(card["step"] if "step" in card else card["checkpoint_step"])] = tensors
    found[0] = initial_state(config.config, config.init, config.seed)
    for step in sorted(found):
        yield step, config, found[step]


def along(
    folder: Path | str, frequencies: Sequence[int] | None = None, operation: str | None = None
) -> list[dict[str, Any]]:
    """Return the progress rows of a run's kept weights; none where the folder holds no ``kept-STEP.safetensors``.

    They have the gradient symmetricity over 500 random triples as well, which live rows leave out.

    Args:
        folder: of the run, with its model.safetensors.
        frequencies: the key frequencies; the top five of the last state's W_E by default.
        operation: the first by default.

    """
    there = list(states(folder))
    if not there:
        return []
    config = there[0][1]
    pairs, keep = _grid(config, operation), trained_names(config.config)
    if frequencies is None:
        last = spectrum(there[-1][2]["embed.W_E"].double()[pairs.a])
        frequencies = last.top(min(LIVE_KEYS, pairs.n // 2))
    rows = []
    for step, _, state in there:
        row = measure(pairs, config.config, step, {name: state[name] for name in keep}, frequencies)
        trained = replace(pairs, model=build(config.config, state))
        rows.append(row | {"gradient_symmetricity": gradient_symmetricity(trained, TRIPLES).value})
    return rows


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """Return the rows of a file of live rows."""
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]


def _grid(config: TrainConfig, operation: str | None) -> Grid:
    """The bookkeeping of all pairs of a task; its model is untrained and never runs."""
    shape, card = config.config, {"config": config.config.to_dict()}
    toy = Toy(
        model=build(shape),
        tokens=tasks.all_tokens(shape),
        answers=tasks.answers(shape),
        modulus=shape.modulus,
        inputs=tasks.inputs(shape),
        train=train_mask(config),
        card=card,
    )
    return grid(toy, operation)
