"""Training a toy transformer to grokking: one function, one resumable checkpoint file, one model file with a card.

AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization") on the cross-entropy at the last position,
with weight decay on every trained parameter and a linear warm-up whose first step has rate 0 (Nanda et al. 2023,
"Progress measures for grokking via mechanistic interpretability"). Accuracy dips for short spells after grokking, so
the model that is kept is that of the latest stable step (`STABLE_RULE`), and its card says so.

Runs on one machine repeat bit for bit, interrupted or not; other thread counts, devices and torch versions round
differently and may grok at another step.
"""

import argparse
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import _files
from . import tasks
from .config import ToyConfig
from .forward import is_bias, last_logits, parameter_shapes, trained_names
from .recipes import INITS, TrainConfig, load_recipe

MODEL_FORMAT, CHECKPOINT_FORMAT = "mi_ablate toy 1", "mi_ablate training 1"
GROKKED, STABLE, STABLE_STEPS = 0.95, 0.99, 1000
STABLE_RULE = (
    f"held-out accuracy (of the worst operation) >= {STABLE} at an evaluation and at all those of the "
    f"{STABLE_STEPS} steps before it, the latest such step; the last step where there is none"
)
CHUNK = 2048


@dataclass(frozen=True)
class Result:
    """A finished training: the model file, its tensors in HookedTransformer's names, and its card."""

    path: Path
    state: dict[str, Tensor]
    card: dict[str, Any]


def initial_state(config: ToyConfig, init: str, seed: int) -> dict[str, Tensor]:
    """Return float32 initial parameters in HookedTransformer's names: norms 1, biases 0, weights as ``init`` says.

    "log": N(0, (0.5 / sqrt(d_model))^2) everywhere. "nanda": N(0, 1) / sqrt(d_model) everywhere (W_pos, W_in and W_out
    included), W_U N(0, 1) / sqrt(d_vocab). Drawn on the CPU, so every device starts from the same numbers.
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
    """Trained parameters and their AdamW; `step` is one update. Parameters that are not trained are absent."""

    def __init__(self, settings: TrainConfig, state: Mapping[str, Tensor], device: str = "cpu") -> None:
        self.settings, self.taken = settings, 0
        self.params = {
            name: state[name].detach().clone().to(device).requires_grad_() for name in trained_names(settings.config)
        }
        self.optimizer = torch.optim.AdamW(
            self.params.values(), lr=settings.learning_rate, betas=settings.betas,
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip

    def step(self, tokens: Int[Tensor, "batch pos"], answers: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Update the parameters on one batch and return its loss from before the update (on the device)."""
        s = self.settings
        warm = min(1.0, self.taken / s.warmup_steps) if s.warmup_steps else 1.0
        self.optimizer.param_groups[0]["lr"] = s.learning_rate * warm
        self.optimizer.zero_grad()
        loss = F.cross_entropy(last_logits(s.config, self.params, tokens), answers)
        loss.backward()
        self.optimizer.step()
        self.taken += 1
        return loss.detach()

    def state(self) -> dict[str, Tensor]:
        """Return copies of all parameters on the CPU, the untrained ones as zeros."""
        shapes = parameter_shapes(self.settings.config)
        return {n: self.params[n].detach().cpu().clone() if n in self.params else torch.zeros(s) for n, s in shapes.items()}


@dataclass
class _Run:
    """What a checkpoint holds: the step, the optimiser, the generator, the history and the latest stable weights."""

    stepper: Stepper
    generator: torch.Generator
    step: int = 0
    history: list[list[float]] = field(default_factory=list)
    stable_step: int | None = None
    stable_state: dict[str, Tensor] = field(default_factory=dict)
    cpu_seconds: float = 0.0


class _Data:
    """All prompts of a task on one device, and which of them are trained on."""

    def __init__(self, settings: TrainConfig, device: str) -> None:
        config = settings.config
        self.config = config
        self.mask: Bool[Tensor, " n"] = tasks.split(config, settings.train_fraction, settings.split_seed)
        self.tokens, self.answers = tasks.all_tokens(config).to(device), tasks.answers(config).to(device)
        chosen = self.mask.nonzero()[:, 0].to(device)
        self.train_tokens, self.train_answers = self.tokens[chosen], self.answers[chosen]
        operation = torch.arange(len(self.mask)) // config.modulus**2
        groups = 2 * operation + self.mask
        self.members = F.one_hot(groups, 2 * len(config.operations)).T.to(device, torch.float64)
        self.sizes = self.members.sum(1).cpu().reshape(-1, 2)

    def evaluate(self, params: Mapping[str, Tensor]) -> tuple[Float[Tensor, "op set"], Float[Tensor, "op set"]]:
        """Sums of the loss and of correct answers, held-out (0) and train (1), per operation, on the CPU."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(self.tokens), CHUNK):
                logits = last_logits(self.config, params, self.tokens[start : start + CHUNK])
                answers = self.answers[start : start + CHUNK]
                loss = F.cross_entropy(logits, answers, reduction="none")
                parts.append(torch.stack((loss, (logits.argmax(-1) == answers).to(loss.dtype)), 1))
        sums = (self.members @ torch.cat(parts).double()).cpu().reshape(-1, 2, 2)
        return sums[..., 0], sums[..., 1]

    def row(self, step: int, params: Mapping[str, Tensor]) -> list[float]:
        """Step, train loss and accuracy, held-out loss and accuracy, then held-out accuracy per operation."""
        loss, right = self.evaluate(params)
        mean = [float(x.sum(0)[i] / self.sizes.sum(0)[i]) for i in (1, 0) for x in (loss, right)]
        return [step, *mean, *(right / self.sizes)[:, 0].tolist()]


def train(
    config: TrainConfig,
    *,
    out: Path | str,
    device: str = "cpu",
    resume: bool = True,
    progress: bool = True,
    checkpoint_every: int = 1000,
    command: str = "mi_ablate.toys.train.train",
) -> Result:
    """Train a toy and write ``out/model.safetensors``; continue from ``out/checkpoint.safetensors`` where there is one.

    Every ``config.evaluate_every`` steps loss and accuracy are taken on all prompts; nothing else waits for the
    device. Checkpoints are written at the first evaluation after every ``checkpoint_every`` steps. ``command`` is
    recorded in the card.

    Raises:
        ValueError: a device that is not there, or a checkpoint of another configuration.
        FloatingPointError: the loss stopped being finite; the last checkpoint is kept.
    """
    _check_device(device)
    out = Path(out)
    data = _Data(config, device)
    run = _start(config, out / "checkpoint.safetensors", device, resume)
    clock = time.process_time() - run.cpu_seconds
    with _flushed(device), _Bar(config, run, progress) as bar:
        while run.step < config.steps and not _finished(config, run.history):
            if not run.history:
                run.history.append(data.row(0, run.stepper.params))
            before = run.step
            _block(config, run, data, out)
            run.history.append(data.row(run.step, run.stepper.params))
            if _stable(config, run.history):
                run.stable_step, run.stable_state = run.step, run.stepper.state()
            run.cpu_seconds = time.process_time() - clock
            if run.step // checkpoint_every > before // checkpoint_every or run.step >= config.steps:
                _write_checkpoint(out / "checkpoint.safetensors", config, run)
            bar.update(run)
    stable = run.stable_step is not None
    state = run.stable_state if stable else run.stepper.state()
    card = _card(config, run, data, state, device, command)
    return Result(_files.write(out / "model.safetensors", state, card), state, card)


def _check_device(device: str) -> None:
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} was asked for, but torch {torch.__version__} finds no CUDA device; use device='cpu' "
            f"(--device cpu), or install a CUDA build of torch on a machine with a GPU."
        )


class _flushed:
    """Denormal numbers count as zero on the CPU: the moments of dead units would otherwise slow AdamW down."""

    def __init__(self, device: str) -> None:
        self.wanted = torch.device(device).type == "cpu"

    def __enter__(self) -> None:
        tiny = torch.tensor(1e-40)
        self.changed = self.wanted and bool(tiny * 1.0 != 0) and torch.set_flush_denormal(True)

    def __exit__(self, *error: object) -> None:
        if self.changed:
            torch.set_flush_denormal(False)


def _block(config: TrainConfig, run: _Run, data: _Data, out: Path) -> None:
    """Take the steps up to the next evaluation, with the indices of all batches drawn at once."""
    count = min(config.evaluate_every, config.steps - run.step)
    n, device = len(data.train_answers), data.tokens.device
    losses = []
    if config.batch_size is not None:
        shape = (count, config.batch_size)
        batches = torch.randint(n, shape, generator=run.generator, device=device)
    for i in range(count):
        if config.batch_size is None:
            losses.append(run.stepper.step(data.train_tokens, data.train_answers))
        else:
            chosen = batches[i]
            losses.append(run.stepper.step(data.train_tokens[chosen], data.train_answers[chosen]))
    bad = (~torch.stack(losses).isfinite()).nonzero()
    if len(bad):
        kept = f"The checkpoint in {out} is from before it." if (out / "checkpoint.safetensors").is_file() else ""
        raise FloatingPointError(
            f"The loss was not finite at step {run.step + int(bad[0, 0])}: lower learning_rate "
            f"({config.learning_rate}) or take more warmup_steps ({config.warmup_steps}). {kept}".rstrip()
        )
    run.step += count


def _stable(config: TrainConfig, history: list[list[float]], steps: int = STABLE_STEPS) -> bool:
    """Whether the worst operation's held-out accuracy was high enough over the last ``steps`` steps."""
    window = [row for row in history if row[0] > history[-1][0] - steps]
    return history[-1][0] >= steps and all(min(row[5:]) >= STABLE for row in window)


def _finished(config: TrainConfig, history: list[list[float]]) -> bool:
    wanted = config.stop_when_stable_for
    return wanted is not None and bool(history) and _stable(config, history, wanted)


def _start(config: TrainConfig, path: Path, device: str, resume: bool) -> _Run:
    """Return a run at its first step, or at the checkpoint's."""
    stepper = Stepper(config, initial_state(config.config, config.init, config.seed), device)
    generator = torch.Generator(device=device).manual_seed(2**32 + config.seed)
    run = _Run(stepper, generator)
    if not resume or not path.is_file():
        return run
    tensors, card = _files.read(path)
    if card.get("format") != CHECKPOINT_FORMAT:
        raise _files.ArtefactError(f"{path} is no training checkpoint (format {card.get('format')!r}); move it away.")
    now, then = config.to_dict(), card["training"]
    for key in now:
        if now[key] != then.get(key):
            raise ValueError(
                f"{path} was made with {key} = {then.get(key)!r}, not {now[key]!r}; use another folder, or "
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


def _write_checkpoint(path: Path, config: TrainConfig, run: _Run) -> None:
    tensors = {f"stable/{name}": t for name, t in run.stable_state.items()}
    for name, p in run.stepper.params.items():
        moments = run.stepper.optimizer.state[p]
        tensors |= {f"params/{name}": p, **{f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}}
    tensors |= {"generator": run.generator.get_state(), "history": torch.tensor(run.history, dtype=torch.float64)}
    card = {
        "format": CHECKPOINT_FORMAT, "training": config.to_dict(), "step": run.step,
        "stable_step": run.stable_step, "cpu_seconds": run.cpu_seconds,
    }  # fmt: skip
    _files.write(path, tensors, card)


def _card(
    config: TrainConfig, run: _Run, data: _Data, state: dict[str, Tensor], device: str, command: str
) -> dict[str, Any]:
    """The model file's card; accuracy and loss are those of the weights in it."""
    names = config.config.operations
    params = {name: state[name].to(device) for name in trained_names(config.config)}
    sums = dict(zip(("loss", "accuracy"), data.evaluate(params)))
    n = data.sizes
    sets = lambda x, m: {"train": float(x[1] / m[1]), "held_out": float(x[0] / m[0]), "all": float(x.sum() / m.sum())}  # noqa: E731
    card: dict[str, Any] = {key: sets(x.sum(0), n.sum(0)) for key, x in sums.items()}
    if len(names) > 1:
        card["per_operation"] = {
            name: {key: sets(x[i], n[i]) for key, x in sums.items()} for i, name in enumerate(names)
        }
        card["grok_step_per_operation"] = {
            name: next((int(r[0]) for r in run.history if r[5 + i] >= GROKKED), None) for i, name in enumerate(names)
        }
    thin = max(1, -(-len(run.history) // 199))
    rows = run.history[::thin] + ([run.history[-1]] if (len(run.history) - 1) % thin else [])
    return card | {
        "format": MODEL_FORMAT, "config": config.config.to_dict(), "training": config.to_dict(),
        "train_mask": tasks.pack_mask(data.mask), "seed": config.seed, "steps": run.step,
        "stable": run.stable_step is not None,
        "checkpoint_step": run.step if run.stable_step is None else run.stable_step,
        "stable_rule": STABLE_RULE,
        "grok_step": next((int(row[0]) for row in run.history if row[4] >= GROKKED), None),
        "grok_rule": f"first evaluation with held-out accuracy >= {GROKKED}",
        "history": [[int(row[0]), *(round(x, 6) for x in row[1:5])] for row in rows],
        "versions": _versions(), "device": torch.device(device).type, "command": command,
        "cpu_seconds": round(run.cpu_seconds, 1),
    }  # fmt: skip


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("mi_ablate")
    except PackageNotFoundError:
        own = "not installed"
    return {"python": platform.python_version(), "torch": torch.__version__, "mi_ablate": own}


class _Bar:
    """A rich progress bar with held-out accuracy and time left; silent where progress is False."""

    def __init__(self, config: TrainConfig, run: _Run, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(),
            TextColumn("held-out accuracy {task.fields[accuracy]:.3f}, loss {task.fields[loss]:.2e}"),
            console=Console(stderr=True), disable=not shown,
        )  # fmt: skip
        last = run.history[-1] if run.history else [0, 0, 0, 0.0, 0.0]
        self.task = self.progress.add_task("", total=config.steps, completed=run.step, loss=last[3], accuracy=last[4])

    def __enter__(self) -> "_Bar":
        self.progress.start()
        return self

    def update(self, run: _Run) -> None:
        last = run.history[-1]
        self.progress.update(self.task, completed=run.step, loss=last[3], accuracy=last[4])

    def __exit__(self, *error: object) -> None:
        self.progress.stop()


def main(argv: list[str] | None = None) -> None:
    """Train the recipe or file that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m mi_ablate.toys.train", description="Train a toy transformer.")
    parser.add_argument("name", help="a recipe, or a JSON or TOML file of one")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--restart", action="store_true", help="ignore a checkpoint in the folder")
    args = parser.parse_args(argv)
    settings = load_recipe(args.name)
    result = train(
        settings, out=args.out, device=args.device, resume=not args.restart, command=f"mi-ablate train {args.name}"
    )
    print(f"{result.path}: held-out accuracy {result.card['accuracy']['held_out']:.4f}")


if __name__ == "__main__":
    main()
