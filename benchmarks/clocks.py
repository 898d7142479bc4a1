"""What `mi-ablate helix` and `mi-ablate clock` find on the models that can be run here: a line a model.

    python benchmarks/clocks.py --write

"planted" is the transformer written by hand, whose algorithm is the Clock; "shuffled" the same with its numbers dealt anew,
which holds no helix and answers nothing; "adder" the GPT-2 trained by the project, with base-10 periods and with its own,
those of most power in its number logits; "nanda113" and "add97" modular addition with the periods of their key frequencies.
The planted model's roles are checked against what was planted before anything is written.
"""

import argparse
import time
import warnings

import torch
from _timing import record

import mi_ablate as mi
from mi_ablate import arithmetic, modular
from mi_ablate.clock_analysis import analyse_clock
from mi_ablate.helix_analysis import analyse_helix

LIMIT, PAIRS, FREE = 3000, 100, 6
"""Problems, pairs of the causal tests, periods searched."""


def subjects():
    """Yield name, model, problems, and the arguments of the Clock's periods."""
    for name, shuffled in (("planted", False), ("planted, shuffled", True)):
        made = arithmetic.planted(shuffled=shuffled)
        sums = arithmetic.problems(made.model, "add", template=made.template, limit=LIMIT)
        yield name, made.model, sums, {}
        if not shuffled:
            check(made, sums)
    adder = mi.load_model("adder")
    sums = arithmetic.problems(adder, "add", template="{a}+{b}=", limit=LIMIT)
    yield "adder, base 10", adder, sums, {}
    yield "adder, own periods", adder, sums, {"free": FREE}
    for name in ("nanda113", "add97"):
        toy = mi.toys.load(name)
        keys = modular.key_frequencies(modular.grid(toy))["energy"].frequencies
        rows = torch.randperm(len(toy.tokens), generator=torch.Generator().manual_seed(0))[:LIMIT]
        yield name, toy.model, arithmetic.problems_of(toy)[rows], {"periods": [toy.modulus / k for k in keys]}


def check(made, sums) -> None:
    """Refuse to write anything if the planted heads are not found."""
    roles = arithmetic.head_roles(made.model, sums, arithmetic.pairs(sums, PAIRS))
    planted = {"a,b": {made.truth.heads["a"], made.truth.heads["b"]}}
    planted["a+b"] = {place for name, place in made.truth.heads.items() if name.startswith("a+b")}
    for label, places in planted.items():
        found = {(head.layer, head.head) for head in roles.of(label)}
        if found != places:
            raise SystemExit(f"The planted {label} heads are {places}; {found} were found.")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", help="a part of a model's name")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, model, sums, periods in subjects():
        if given.only and given.only not in name:
            continue
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a model that answers nothing is one of the subjects
            clock = analyse_clock(model, sums, name=name, pairs=PAIRS, **periods).to_json()
            used = clock["settings"]["periods"]
            helix = analyse_helix(model, sums, name=name, pairs=PAIRS, periods=used).to_json()
        line = {"model": name, "helix": helix, "clock": clock, "seconds": time.process_time() - start}
        print(name, clock["accuracy"], clock["evidence"]["verdict"], f"{line['seconds']:.0f} s")
        record("clocks", short(line), given.write)


def short(line: dict) -> dict:
    """The numbers of the table; the whole is what the commands print with --json."""
    helix, clock = line["helix"], line["clock"]
    said = clock["evidence"]
    keep = {"accuracy": clock["accuracy"], "chance": clock["chance"], "verdict": said["verdict"]}
    keep["evidence"] = {row["what"]: [row["value"], row["beside"], row["for"]] for row in said["lines"]}
    keep |= {"periods": clock["settings"]["periods"], "seconds": line["seconds"], "problems": clock["n"]}
    keep["roles"] = clock["heads"]["roles"] if clock["heads"] else None
    keep["swaps"] = {at: x["max"] for at, x in helix["swaps"].items()} if helix.get("swaps") else None
    keep["last_token"] = clock["last_token"]["swaps"]["max"] if clock["last_token"].get("swaps") else None
    return {"model": line["model"], **keep}


if __name__ == "__main__":
    main()
