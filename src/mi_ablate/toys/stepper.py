"""One update of a toy transformer, where its weights start, and the checkpoint from which a run continues."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .. import _files
from .config import ToyConfig
from .evaluation import train_mask
from .forward import is_bias, last_residual, parameter_shapes, readout, trained_names
from .penalty import Adversary
from .recipes import INITS, TrainConfig

CHECKPOINT_FORMAT = "mi_ablate training 1"


def initial_state(config: ToyConfig, init: str, seed: int) -> dict[str, Float[Tensor, "..."]]:
    """Return float32 initial parameters in HookedTransformer's names: norms 1, biases 0, random weights.

    "log": N(0, (0.5 / sqrt(d_model))^2) everywhere. "nanda": N(0, 1) / sqrt(d_model) everywhere (W_pos, W_in
    and W_out included), W_U N(0, 1) / sqrt(d_vocab). Drawn on the CPU, so every device starts from the same
    numbers.
    """
    if init not in INITS:
        raise ValueError(f"init {init!r} must be one of {INITS}.")
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in parameter_shapes(config).items():
        if is_bias(name):
            state[name] = torch.zeros(shape)
        elif name.endswith(".w"):
            state[name] = torch.ones(shape)
        else:
            width = config.d_vocab if init == "nanda" and name == "unembed.W_U" else config.d_model
            scale = (0.5 if init == "log" else 1.0) / width**0.5
            state[name] = torch.randn(shape, generator=generator) * scale
    return state


class Stepper:
    """Trained parameters and their AdamW; `step` is one update. What is not trained is absent."""

    def __init__(self, settings: TrainConfig, state: Mapping[str, Float[Tensor, "..."]], device: str = "cpu") -> None:
        self.settings, self.taken = settings, 0
        self.params = {
            name: state[name].detach().clone().to(device).requires_grad_() for name in trained_names(settings.config)
        }
        self.optimizer = torch.optim.AdamW(
            self.params.values(), lr=settings.learning_rate, betas=settings.betas,
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
        self.adversary = None
        if settings.penalty is not None:
            train = train_mask(settings)
            self.adversary = Adversary(settings.penalty, settings.config, train, settings.seed, device)

    def step(self, tokens: Int[Tensor, "batch pos"], answers: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Update the parameters on one batch and return its loss, penalty included, from before (on the device)."""
        self.optimizer.param_groups[0]["lr"] = self.rate(self.taken)
        self.optimizer.zero_grad()
        residual = last_residual(self.settings.config, self.params, tokens)
        loss = F.cross_entropy(readout(self.settings.config, self.params, residual), answers)
        if self.adversary is not None and self.adversary.due(self.taken):
            loss = loss + self.adversary.loss(self.params, residual, tokens, answers, self.taken)
        loss.backward()
        self.optimizer.step()
        self.taken += 1
        return loss.detach()

    def rate(self, taken: int) -> float:
        """Return the learning rate of the step after ``taken`` steps."""
        warmup = self.settings.warmup_steps
        return self.settings.learning_rate * (min(1.0, taken / warmup) if warmup else 1.0)

    def state(self) -> dict[str, Float[Tensor, "..."]]:
        """Return copies of all parameters on the CPU, the untrained ones as zeros; they leave the device in one piece."""
        sizes = [p.numel() for p in self.params.values()]
        flat = torch.cat([p.detach().flatten() for p in self.params.values()]).cpu()
        trained = dict(zip(self.params, flat.split(sizes)))
        shapes = parameter_shapes(self.settings.config)
        return {n: trained[n].view(s).clone() if n in trained else torch.zeros(s) for n, s in shapes.items()}


@dataclass
class Run:
    """What a checkpoint holds: step, optimiser, generator, history and the latest stable weights."""

    stepper: Stepper
    generator: torch.Generator
    step: int = 0
    history: list[list[int | float]] = field(default_factory=list)
    stable_step: int | None = None
    stable_state: dict[str, Float[Tensor, "..."]] = field(default_factory=dict)
    cpu_seconds: float = 0.0


def start(
    config: TrainConfig,
    path: Path,
    device: str,
    resume: bool,
    weights: Mapping[str, Float[Tensor, "..."]] | None = None,
) -> Run:
    """Return a run at its first step (with the initial weights, or these), or at the checkpoint's."""
    weights = initial_state(config.config, config.init, config.seed) if weights is None else weights
    stepper = Stepper(config, weights, device)
    generator = torch.Generator(device=device).manual_seed(2**32 + config.seed)
    run = Run(stepper, generator)
    if not resume or not path.is_file():
        return run
    tensors, card = _files.read(path)
    if card.get("format") != CHECKPOINT_FORMAT:
        raise _files.ArtefactError(f"{path} is no training checkpoint (format {card.get('format')!r}); move it away.")
    now, then = config.to_dict(), TrainConfig.from_dict(card["training"]).to_dict()
    for key in now:
        if now[key] != then[key]:
            raise ValueError(
                f"{path} was made with {key} = {then[key]!r}, not {now[key]!r}; use another folder, or "
                f"resume=False to start again in this one."
            )
    for name, p in stepper.params.items():
        p.data.copy_(tensors[f"params/{name}"])
        stepper.optimizer.state[p] = {
            "step": torch.tensor(float(card["step"]), device=device),
            **{key: tensors[f"{key}/{name}"].to(device) for key in ("exp_avg", "exp_avg_sq")},
        }
    generator.set_state(tensors["generator"])
    run.step = stepper.taken = card["step"]
    run.history = tensors["history"].tolist()
    run.stable_step, run.cpu_seconds = card["stable_step"], card["cpu_seconds"]
    run.stable_state = {k.removeprefix("stable/"): v for k, v in tensors.items() if k.startswith("stable/")}
    return run


def write_checkpoint(path: Path, config: TrainConfig, run: Run) -> None:
    """Write everything that `start` needs to go on exactly, atomically."""
    tensors = {f"stable/{name}": t for name, t in run.stable_state.items()}
    for name, p in run.stepper.params.items():
        moments = run.stepper.optimizer.state[p]
        tensors |= {
            f"params/{name}": p,
            **{f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")},
        }
    tensors |= {
        "generator": run.generator.get_state(),
        "history": torch.tensor(run.history, dtype=torch.float64),
    }
    card = {
        "format": CHECKPOINT_FORMAT, "training": config.to_dict(), "step": run.step,
        "stable_step": run.stable_step, "cpu_seconds": run.cpu_seconds,
    }  # fmt: skip
    _files.write(path, tensors, card)
