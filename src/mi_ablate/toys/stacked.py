"""Many toys of one shape trained together: one batched forward and backward pass, one AdamW over all of their weights.

Each model sees the batches that `train` would give it and ends where `train` would end, to rounding (float64: 1e-10 after
tens of steps; late training amplifies rounding, so a model may grok some evaluations earlier or later than alone). Its
folder holds the same files, and either engine continues the other's checkpoint. Seeds, splits, initial weights, learning
rate, weight decay, betas, warm-up, steps and keep_steps may differ; the shape, batch_size and evaluate_every may not.

Meant for GPUs, where one small model leaves most of the machine idle: within the steps between two evaluations nothing
waits for the device. Its speed on a GPU is not measured. On a CPU the models' working set no longer fits the cache, so
`train` one by one is the better choice there (benchmarks/stacked_step.py).
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from ._bar import Bar
from .evaluation import scores
from .job import Flushed, Job, Result, check_device
from .recipes import TrainConfig
from .stack import Stack

_ALONE = "mi_ablate.toys.train.train runs them one by one."


def train_stacked(
    configs: Sequence[TrainConfig],
    *,
    outs: Sequence[Path | str],
    device: str = "cpu",
    resume: bool = True,
    progress: bool = True,
    checkpoint_every: int = 1000,
    command: str = "mi_ablate.toys.stacked.train_stacked",
) -> list[Result]:
    """Train toys of one shape together, each into its own folder of ``outs``, and return their results in order.

    Folders, resumption and checkpoints are those of `train`, for each model by itself: a model that has taken its steps or
    may stop early leaves the stack, and models may be resumed at different steps. ``cpu_seconds`` of a card is the model's
    equal share of the process's. A model whose loss is not finite leaves the stack too and the others go on.

    Raises:
        ValueError: models of different shapes, batch sizes or evaluate_every, or with a penalty, two equal folders, another
            number of folders than of models, a device that is not there, or a checkpoint of another configuration.
        FloatingPointError: the loss of some models stopped being finite (raised when all others are trained and written).
        OSError: a file could not be written; every model can be resumed from its last checkpoint.

    """
    check_device(device)
    folders = _folders(configs, outs)
    _check_alike(configs)
    jobs = [Job(config, out, device, resume, checkpoint_every) for config, out in zip(configs, folders)]
    failed: dict[Path, FloatingPointError] = {}
    results = {job.out: job.result(command) for job in jobs if job.done}
    stack = None
    with Flushed(device), Bar(jobs, progress) as bar:
        while active := [job for job in jobs if job.out not in failed and not job.done]:
            for count in sorted({job.count for job in active}):  # a last block may be shorter
                group = [job for job in active if job.count == count]
                stack = _stacked(stack, group)
                failed |= _block(group, stack)
                bar.update()
                results |= {job.out: job.result(command) for job in group if job.done and job.out not in failed}
    if failed:
        texts = "; ".join(f"{out}: {error}" for out, error in failed.items())
        raise FloatingPointError(f"{len(failed)} of {len(jobs)} models failed, the others are trained. {texts}")
    return [results[out] for out in folders]


def _stacked(stack: Stack | None, jobs: Sequence[Job]) -> Stack:
    """Return a stack of the jobs' steppers: ``stack`` where it is theirs, or else a new one in its place."""
    steppers = [job.run.stepper for job in jobs]
    if stack is not None:
        if stack.steppers == steppers:
            return stack
        stack.release()
    for job in jobs:
        job.begin()
    return Stack(steppers)


def _block(jobs: Sequence[Job], stack: Stack) -> dict[Path, FloatingPointError]:
    """Take the jobs to their next evaluation and record it; return the errors of those that are not finite."""
    clock = time.process_time()
    failed = {}
    data = jobs[0].data
    losses = stack.block(data.tokens, data.answers, _prompts(jobs)).cpu()
    scored = scores(data.config, stack.params, data.tokens, data.answers)
    sums = torch.stack([job.data.sums(each) for job, each in zip(jobs, scored)]).cpu()
    seconds = (time.process_time() - clock) / len(jobs)
    for job, loss, total in zip(jobs, losses.T, sums):
        try:
            job.advance(loss)
            job.record(job.data.row_of(job.run.step, total[..., 0], total[..., 1]), seconds)
        except FloatingPointError as error:
            failed[job.out] = error
    return failed


def _prompts(jobs: Sequence[Job]) -> Int[Tensor, "count model batch"]:
    """The prompts of every step up to the next evaluation, drawn by each model's own generator."""
    drawn = []
    for job in jobs:
        batches = job.draw()
        chosen = job.data.chosen
        drawn.append(chosen.expand(job.count, -1) if batches is None else chosen[batches])
    return torch.stack(drawn, 1)


def _folders(configs: Sequence[TrainConfig], outs: Sequence[Path | str]) -> list[Path]:
    """Return the folders, one a model and no two the same."""
    if len(configs) != len(outs):
        raise ValueError(f"{len(configs)} models need as many folders in outs, not {len(outs)}.")
    folders: dict[Path, Path] = {}
    for out in map(Path, outs):
        if out.resolve() in folders:
            raise ValueError(f"Two models would write to the same folder {out}; give each its own.")
        folders[out.resolve()] = out
    return list(folders.values())


def _check_alike(configs: Sequence[TrainConfig]) -> None:
    """Raise a ValueError that names what differs among models that would have to be stacked."""
    for config in configs:
        if config.penalty is not None:
            raise ValueError(f"A penalty takes its directions from one model, and a stack has several: {_ALONE}")
        first, this = ({**c.to_dict(), **c.config.to_dict()} for c in (configs[0], config))
        for name in (*config.config.to_dict(), "batch_size", "evaluate_every"):
            if this[name] != first[name]:
                raise ValueError(f"{name} is {first[name]!r} and {this[name]!r}, but a stack has one: {_ALONE}")
        if config.batch_size is None and config.train_fraction != configs[0].train_fraction:
            raise ValueError(
                f"train_fraction is {configs[0].train_fraction} and {config.train_fraction}, but with batch_size None the "
                f"batches of a stack must have one size: {_ALONE}"
            )
