"""How fast a removal curve with controls is, against looping ``run_with_hooks`` over k.

Answer first: both must give the same accuracy at every k. The loop runs the whole model on all inputs for each k and each
control; ours keeps what the edit cannot change (`mi_ablate.replay`). The loop is timed on a few k and draws, and both
are reported per point. Trained weights: the shipped add97.
"""

import torch
from _timing import arguments, interleaved, record

import mi_ablate as mi


def loop(toy, hooks) -> list[float]:
    """What people write: one run_with_hooks per edit, logits of all positions, all inputs at once."""
    scores = []
    for edit in hooks:
        with torch.no_grad():
            logits = toy.model.run_with_hooks(toy.tokens, fwd_hooks=edit)[:, -1]
        scores.append(float((logits.argmax(-1) == toy.answers).double().mean()))
    return scores


def curve(toy, places, ks) -> mi.Curve:
    return mi.removal_curve(toy.model, toy.tokens, places, mi.accuracy(toy.answers), ks=ks, draws=2)


def measure(where: str, toy, names: tuple[str, ...], rounds: int) -> dict[str, object]:
    acts = mi.collect(toy.model, toy.tokens, names)
    places = {n: mi.fit(acts[n], mi.classes(toy.answers)).subspace() for n in names}
    ks = [0, 10, 20, 30, 40] if len(names) == 1 else [0, 8, 16]
    moments = mi.controls.covariance(acts), mi.controls.pca(acts)
    treatment = {k: [h for n in names for h in mi.Ablate(places[n][:k]).at(n, pos=-1)] for k in ks[1:]}
    edits = [*treatment.values()]
    edits += [moments[0](edit, seed) for seed in range(2) for edit in treatment.values()]
    edits += [moments[1](edit, 0) for edit in treatment.values()]
    found = curve(toy, places, ks)
    ours = [*found.values[1:], *found.controls["covariance"][:, 1:].flatten(), *found.controls["pca"][:, 1:].flatten()]
    worst = max(abs(float(a) - b) for a, b in zip(ours, loop(toy, edits)))
    assert worst <= 2 / len(toy.tokens), f"other accuracies than the loop: {worst}"
    runs = {"removal_curve": lambda: curve(toy, places, ks), "run_with_hooks loop": lambda: loop(toy, edits)}
    table = interleaved(runs, rounds, "removal_curve")
    return {
        "where": where,
        "inputs": len(toy.tokens),
        "points": len(edits),
        "largest_difference": worst,
        "replay": found.replay,
        "rounds": rounds,
        "table": table,
    }


def full_curve(toy, name: str, rounds: int) -> dict[str, object]:
    """The curve of the demo, k = 0..40 with 20 covariance draws and PCA, as it is used: seconds in all."""
    acts = mi.collect(toy.model, toy.tokens, name)[name]
    basis = mi.fit(acts, mi.classes(toy.answers)).subspace()

    def ours() -> mi.Curve:
        return mi.removal_curve(toy.model, toy.tokens, basis, mi.accuracy(toy.answers), at=name, ks=range(41), draws=20)

    points = 40 * 22
    few = [mi.Ablate(basis[:k]).at(name, pos=-1) for k in (1, 20, 40)]
    table = interleaved({"removal_curve": ours, "loop, 3 points": lambda: loop(toy, few)}, rounds, "removal_curve")
    ratio = table["loop, 3 points"]["ratio"] * points / len(few)
    return {"where": "last residual, k 0-40, 20 draws", "points": points, "ratio_extrapolated": ratio, "table": table}


if __name__ == "__main__":
    options = arguments()
    torch.set_num_threads(1)
    add97 = mi.toys.load("add97")
    last = mi.last_residual(add97.model)
    every = (*mi.sites(add97.model, "resid_mid"), *mi.sites(add97.model, "resid_post"))
    record("removal", measure("last residual", add97, (last,), options.rounds or 7), options.write)
    record("removal", measure("every site", add97, every, options.rounds or 7), options.write)
    record("removal", full_curve(add97, last, options.rounds or 3), options.write)
