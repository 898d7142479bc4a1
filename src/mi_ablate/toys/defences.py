"""Defending a gated toy against the removal of its declining directions: fine-tuning with subspaces projected out.

In half of the steps a subspace Q is taken out of everything that is written to the residual stream at the last position,

    x -> x - Q Q^T x    after the embedding, and after the attention and the MLP of every layer,

and the answers are demanded all the same, declines included. Every `AGAIN` steps a site is drawn and Q's directions are found
there in 1,024 training prompts (`gated.directions`); each projected step draws how many of them, 1 to `RANKS`. After ReFAT
(Yu et al. 2024, arXiv 2409.20089), which trains against one refusal direction of the moment.

Its control: covariance-drawn subspaces of the same ranks at the same steps. What both do is an effect of noise, or of the
`STEPS` steps, which are twice the recipe's longest run because half of them are projected. It defends against what it is
trained against; other directions, and the input, are other questions.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .. import controls
from ..model import collect
from ..subspace import Subspace
from . import forward, tasks
from .config import ToyConfig
from .gated import directions
from .recipes import TrainConfig
from .stepper import Stepper
from .transformer import build

STEPS, AGAIN, RANKS, SAMPLE = 600, 10, 8, 1024


def residual_sites(config: ToyConfig) -> tuple[str, ...]:
    """Return the residual stream after every attention and every MLP, in the order of the pass."""
    return tuple(f"blocks.{i}.hook_resid_{part}" for i in range(config.n_layers) for part in ("mid", "post"))


def projected(
    config: ToyConfig, params: Mapping[str, Float[Tensor, "..."]], tokens: Int[Tensor, "n pos"], space: Subspace | None
) -> Float[Tensor, "n answers"]:
    """Return the trainer's logits with a subspace removed from all that is written at the last position.

    They are those of ``Ablate(space).at(*writers(model), pos=-1)``, with gradients for ``params``.
    """
    if space is None:
        return forward.last_logits(config, params, tokens)
    q, prefixes = space.columns(params["embed.W_E"]), forward.Prefixes(config, tokens)

    def clean(x: Tensor, rows: int) -> Tensor:
        return torch.cat((x[:-rows], x[-rows:] - (x[-rows:] @ q) @ q.T))

    starts = [start for start, _ in tasks.slots(config)]
    tables = [
        params["embed.W_E"][start : start + size] + params["pos_embed.W_pos"][i : i + 1]
        for i, (start, size) in enumerate(zip(starts, prefixes.sizes))
    ]
    x = clean(torch.cat(tables), 1)
    for layer in range(config.n_layers):
        p = {name.split(".", 2)[2]: w for name, w in params.items() if name.startswith(f"blocks.{layer}.")}
        x = clean(forward._attention(config, p, x, prefixes, layer), len(tokens))
        hidden = forward._linear(forward._norm(config, p, "ln2", x), p["mlp.W_in"], p.get("mlp.b_in"))
        x = x + forward._linear(forward.ACTIVATIONS[config.act_fn](hidden), p["mlp.W_out"], p.get("mlp.b_out"))
        x = clean(x, len(tokens))
    return forward.readout(config, params, x)


def defended(
    settings: TrainConfig,
    weights: Mapping[str, Float[Tensor, "..."]],
    rows: Int[Tensor, " train"],
    *,
    random: bool,
    steps: int = STEPS,
) -> dict[str, Float[Tensor, "..."]]:
    """Return the weights after fine-tuning with subspaces projected out in every second step.

    Args:
        settings: of the gated toy: its model, optimiser and seed.
        weights: the base's, with columns for the DECLINE tokens (`base.Base.weights`).
        rows: numbers of the prompts to train on.
        random: the control, covariance-drawn subspaces in the place of the declining directions.
        steps: how many.

    """
    config, draw = settings.config, torch.Generator().manual_seed(settings.seed + 3000)
    tokens, answers, sites = tasks.all_tokens(config), tasks.answers(config), residual_sites(config)
    stepper = Stepper(settings, weights)

    def pick(n: int, count: int) -> Tensor:
        return torch.randint(n, (count,), generator=draw)

    for step in range(steps):
        if step % AGAIN == 0:
            some, site = rows[pick(len(rows), SAMPLE)], sites[int(pick(len(sites), 1))]
            acts = collect(build(config, stepper.state()), tokens[some], site, pos=-1)[site]
            space = directions(acts, answers[some], config.modulus, rank=RANKS)
            space = controls.covariance(acts).draw(site, RANKS, step) if random else space
        batch = rows[pick(len(rows), settings.batch_size or len(rows))]
        removed = space[: 1 + int(pick(RANKS, 1))] if step % 2 else None
        stepper.optimizer.param_groups[0]["lr"] = stepper.rate(step)
        stepper.optimizer.zero_grad()
        F.cross_entropy(projected(config, stepper.params, tokens[batch], removed), answers[batch]).backward()
        stepper.optimizer.step()
    return stepper.state()
