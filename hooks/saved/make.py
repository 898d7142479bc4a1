"""Make the saved interventions of this folder from the shipped add97: python hooks/saved/make.py

Each file loads in one line, ``mi_ablate.load(path, toy.model)``, and its card claims an effect beside its controls; a test
recomputes the claims.
"""

from pathlib import Path

import torch

import mi_ablate as mi

HERE = Path(__file__).parent
FREQUENCIES = 10


def interventions(toy: mi.toys.Toy) -> dict[str, tuple[mi.Intervention, torch.Tensor, dict]]:
    """Return, by file stem: the edit, the answers that it is scored on, and where its subspace comes from."""
    p, name = toy.modulus, mi.last_residual(toy.model)
    acts = mi.collect(toy.model, toy.tokens, name)[name]
    chosen = mi.modular.spectrum(toy.model.embed.W_E.detach()[:p]).top(FREQUENCIES)
    hours = mi.fit(acts, mi.fourier(toy.answers, p, chosen, name="answer"))
    circle = mi.Subspace.span(hours.coef, "answer circle, plane by plane")
    turn = 2 * torch.pi * 5 * torch.tensor(chosen, dtype=torch.float64) / p
    means = mi.fit(acts, mi.classes(toy.answers, name="answer"))
    origin = {"site": name, "inputs": f"all {len(toy.tokens)} prompts", "position": "last"}
    by_hours = {**origin, "design": f"cos, sin of the answer at frequencies {chosen}", "r2": hours.r2}
    by_class = {**origin, "design": "one-hot of the answer, SVD of the class means", "r2": means.r2}
    return {
        "add97_turn_answer_by_5": (mi.Rotate(circle, turn, centre=hours.mean), (toy.answers + 5) % p, by_hours),
        "add97_answer_circle_mean": (mi.Ablate(circle, to=hours.mean), toy.answers, by_hours),
        "add97_contrastive_zero": (mi.Ablate(means.subspace(rank=20, name="contrastive SVD")), toy.answers, by_class),
    }


def measure(toy: mi.toys.Toy, edit: mi.Intervention, answers: torch.Tensor) -> dict:
    """Return the claim of a card: accuracy on the stated answers, edited and under controls of five draws."""
    found = mi.effect(toy.model, toy.tokens, edit.at(mi.last_residual(toy.model), pos=-1), mi.accuracy(answers))
    return {"metric": "accuracy on the stated answers, all prompts", "rows": found.table()}


SCORED_ON = {
    "add97_turn_answer_by_5": "a + b + 5",
    "add97_answer_circle_mean": "a + b",
    "add97_contrastive_zero": "a + b",
}


def main() -> None:
    """Write every file."""
    torch.set_num_threads(1)
    toy = mi.toys.load("add97")
    for stem, (edit, answers, origin) in interventions(toy).items():
        card = mi.Card.of(
            toy.model,
            f"{stem}, on the shipped add97",
            description=f"Scored on {SCORED_ON[stem]} mod 97.",
            claim=measure(toy, edit, answers),
            fit=origin,
            seeds={"model": toy.card["seed"]},
            command="python hooks/saved/make.py",
        )
        path = mi.save(HERE / f"{stem}.safetensors", edit.at(mi.last_residual(toy.model), pos=-1), card)
        print(path.name, *(f"{row['run']} {row['mean']:.3f}" for row in card.claim["rows"]), sep="  ")


if __name__ == "__main__":
    main()
