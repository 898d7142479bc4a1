"""The files of hooks/ are the specification: each against its packaged twin, to 1e-10 in float64."""

import ast
import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mi_ablate import Ablate, Add, Erase, Rotate, Subspace, attached, collect, fit, fourier, helix
from mi_ablate._types import FwdHooks
from mi_ablate.arithmetic.writing.filtering import number_filter
from models import logits_with

FOLDER = Path(__file__).parent.parent / "hooks"
NAMES = [
    "ablate_direction",
    "ablate_subspace",
    "add_direction",
    "affine_edit",
    "erase_concept",
    "filter_number_frequencies",
    "keep_frequencies",
    "patch_from_run",
    "reflect_direction",
    "resample_subspace",
    "rotate_plane",
    "route_directions",
    "set_helix",
    "write_answer_circle",
]
SITE = "blocks.0.hook_resid_post"
B, P, D = 5, 4, 9


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"hooks_folder_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hook_of(name: str, *args: object, **kwargs: object):
    return getattr(loaded(name), name)(*args, **kwargs)


def circle(d: int, n: int = 60, p: int = 12, freqs: tuple[int, ...] = (1, 5), seed: int = 3) -> tuple[Tensor, Tensor]:
    """Activations that lie near a circle of two frequencies, and their numbers."""
    numbers = torch.arange(n) % p
    design = fourier(numbers, p, freqs).matrix
    return design @ draw(design.shape[1], d, seed=seed) + 0.2 * draw(n, d, seed=seed + 1) + 2, numbers


def mixing(d: int, seed: int) -> Tensor:
    """A matrix that correlates coordinates, far from singular."""
    return torch.eye(d, dtype=torch.float64) + 0.2 * draw(d, d, seed=seed)


def leace(acts: Tensor, labels: Tensor) -> Erase:
    """LEACE in other algebra: x - C (Cᵀ S⁻¹ C)⁻¹ Cᵀ S⁻¹ (x - m), with S and C by solves, no root and no SVD."""
    mean = acts.mean(0)
    x, z = acts - mean, labels - labels.mean(0)
    cross = x.T @ z / len(x)
    solved = torch.linalg.solve(x.T @ x / len(x), cross)
    return Erase(cross, solved @ torch.linalg.inv(cross.T @ solved), mean)


def cases(
    name: str, batch: int, d: int, pos: int | None, seed: int = 0, length: int = P
) -> list[tuple[object, FwdHooks]]:
    """Pairs: the folder's hook and the package's list of hooks."""
    pairs = twins(name, batch, d, pos, seed) | twins_of_runs(name, batch, d, pos, seed, length)
    pairs |= twins_of_numbers(name, batch, d, pos, seed)
    where = -1 if pos is None and name == "write_answer_circle" else pos
    edits = [(mine, edit if isinstance(edit, tuple) else (edit,)) for mine, edit in pairs[name]()]
    return [(mine, [hook for edit in parts for hook in edit.at(SITE, pos=where)]) for mine, parts in edits]


def twins_of_runs(name: str, batch: int, d: int, pos: int | None, seed: int, length: int) -> dict:
    """Those that take other prompts' activations, labels or gates."""
    other, rows = draw(batch, length, d, seed=seed + 7), draw(3, d, seed=seed + 2)
    there = other if pos is None else other[:, pos]
    bank, choice = draw(9, d, seed=seed + 8), torch.arange(batch) * 4 % 9
    acts, labels = draw(80, d, seed=seed + 9) @ mixing(d, seed + 10), draw(80, 2, seed=seed + 11)
    labels = labels + acts[:, :2]
    directions, gates = draw(4, d, seed=seed + 12), draw(batch, 4, seed=seed + 13).sigmoid()
    units = (directions / directions.norm(dim=1, keepdim=True)).T
    return {
        "patch_from_run": lambda: [
            (hook_of(name, other, pos=pos), Ablate(None, there)),
            (hook_of(name, other, rows, pos), Ablate(Subspace.span(rows), there)),
        ],
        "resample_subspace": lambda: [
            (hook_of(name, rows, bank, choice, pos), Ablate(Subspace.span(rows), bank[choice])),
        ],
        "erase_concept": lambda: [(hook_of(name, acts, labels, pos), leace(acts, labels))],
        "route_directions": lambda: [
            (hook_of(name, directions, gates, pos), Erase(units, units, gate=gates)),
            (hook_of(name, 3 * directions[:1], gates, pos), Erase(units[:, :1], units[:, :1], gate=gates[:, :1])),
        ],
    }


def twins_of_numbers(name: str, batch: int, d: int, pos: int | None, seed: int) -> dict:
    """Those of numbers: the helix of an operand, and what a component adds to the logits of numbers."""
    values, new = torch.arange(80) * 7 % 100, torch.arange(batch) * 31 % 100
    acts = helix(values).matrix @ draw(9, d, seed=seed + 14) + draw(80, d, seed=seed + 15)
    found, columns = fit(acts, helix(values)), draw(d, 13, seed=seed + 16)
    to = found.predict(helix(new))
    short = fit(acts, helix(values, [10]))
    return {
        "set_helix": lambda: [
            (hook_of(name, acts, values, new, pos=pos), Ablate(None, to)),
            (
                hook_of(name, acts, values, new, [10], False, pos),
                Ablate(short.subspace(), short.predict(helix(new, [10]))),
            ),
        ],
        "filter_number_frequencies": lambda: [
            (hook_of(name, columns, [1, 4], pos), Ablate(number_filter(columns, [1, 4]))),
            (hook_of(name, columns, [6], pos), Ablate(number_filter(columns, [6]))),  # one row: its sine is zero
        ],
    }


def twins(name: str, batch: int, d: int, pos: int | None, seed: int) -> dict:
    """Those that are the same for every prompt, and those of a fit."""
    v, m, rows = draw(d, seed=seed), draw(d, seed=seed + 1), draw(3, d, seed=seed + 2)
    acts, numbers = circle(d, seed=seed + 3)
    new = (torch.arange(batch) * 5 + 1) % 12
    found = fit(acts, fourier(numbers, 12, [1, 5]))
    dependent = torch.cat([rows, rows[:1] - 2 * rows[1:2]])
    per_row = draw(batch, 1, d, seed=seed + 4)
    plane = Subspace.span(torch.stack([v, m]))
    return {
        "affine_edit": lambda: [
            (hook_of(name, v, m, pos=pos), Ablate(Subspace.span(v), m)),
            (hook_of(name, v, m, 1.5, pos), (Ablate(Subspace.span(v), m), Add(v, 1.5))),
        ],
        "reflect_direction": lambda: [
            (hook_of(name, v, pos=pos), Ablate(Subspace.span(v), strength=2)),
            (hook_of(name, 5 * v, m, pos), Ablate(Subspace.span(v), m, 2)),
        ],
        "rotate_plane": lambda: [
            (hook_of(name, v, m, 0.7, pos=pos), Rotate(plane, 0.7, absolute=True)),
            (hook_of(name, 2 * v, m, -2.0, False, pos), Rotate(plane, -2.0)),
        ],
        "ablate_direction": lambda: [
            (hook_of(name, v, pos=pos), Ablate(Subspace.span(v))),
            (hook_of(name, v, m, 0.5, pos), Ablate(Subspace.span(v), m, 0.5)),
            (hook_of(name, 1e-3 * v, m, 2.0, pos), Ablate(Subspace.span(v), m, 2.0)),
        ],
        "ablate_subspace": lambda: [
            (hook_of(name, rows, pos=pos), Ablate(Subspace.span(rows))),
            (hook_of(name, dependent, m, 0.7, pos), Ablate(Subspace.span(dependent), m, 0.7)),
            (hook_of(name, rows, per_row, pos=pos), Ablate(Subspace.span(rows), per_row[:, 0])),
        ],
        "add_direction": lambda: [
            (hook_of(name, v, pos=pos), Add(v)),
            (hook_of(name, per_row[:, 0], -1.5, pos), Add(per_row[:, 0], -1.5)),
        ],
        "keep_frequencies": lambda: [
            (hook_of(name, acts, numbers, 12, [1, 5], pos), Ablate(found.subspace(), acts.mean(0), keep=True)),
            (
                hook_of(name, acts, numbers, 12, [6], pos),
                Ablate(fit(acts, fourier(numbers, 12, [6])).subspace(), acts.mean(0), keep=True),
            ),
        ],
        "write_answer_circle": lambda: [
            (
                hook_of(name, acts, numbers, new, 12, [1, 5], -1 if pos is None else pos),
                Ablate(found.subspace(), found.predict(fourier(new, 12, [1, 5]))),
            )
        ],
    }


@pytest.mark.parametrize("pos", [None, -1, 2])
@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 1000))
def test_each_file_equals_the_package_on_tensors(name: str, pos: int | None, seed: int) -> None:
    x = draw(B, P, D, seed=seed + 50)
    before = x.clone()
    for mine, hooks in cases(name, B, D, pos, seed):
        got, packaged = mine(x, hook=None), x
        assert torch.equal(x, before)
        for _, hook in hooks:
            packaged = hook(packaged)
        assert (got - packaged).abs().max() < 1e-10
        assert (got - x).abs().max() > 1e-3


@pytest.mark.compat
@pytest.mark.parametrize("pos", [None, -1])
@pytest.mark.parametrize("name", NAMES)
def test_each_file_equals_the_package_on_a_model(model, tokens, name: str, pos: int | None) -> None:
    clean = logits_with(model, tokens)
    for mine, hooks in cases(name, len(tokens), 16, pos, length=tokens.shape[1]):
        bare = logits_with(model, tokens, [(SITE, mine)])
        with attached(model, [(SITE, mine)]), torch.no_grad():
            inside = model(tokens)
        assert torch.equal(bare, inside)
        assert (bare - logits_with(model, tokens, hooks)).abs().max() < 1e-10
        assert (bare - clean).abs().max() > 1e-3


def test_routed_directions_of_one_head(model, tokens) -> None:
    directions, gates = draw(3, 8), draw(len(tokens), 3).sigmoid()
    mine = [("blocks.0.attn.hook_z", hook_of("route_directions", directions, gates, head=1))]
    units = (directions / directions.norm(dim=1, keepdim=True)).T
    packaged = Erase(units, units, gate=gates).at("blocks.0.attn.hook_z", head=1)
    assert (logits_with(model, tokens, mine) - logits_with(model, tokens, packaged)).abs().max() < 1e-10


def test_the_erased_concept_is_linear_nowhere_and_the_change_is_the_least() -> None:
    """No covariance with the label is left; the orthogonal removal of the same covariance changes more."""
    acts, labels = draw(200, D, seed=5) @ mixing(D, 6), draw(200, 1, seed=7)
    labels = labels + acts[:, :1]
    out = hook_of("erase_concept", acts, labels)(acts[:, None])[:, 0]

    def covariance(x: Tensor) -> Tensor:
        return (x - x.mean(0)).T @ (labels - labels.mean(0)) / len(x)

    assert covariance(out).norm() < 1e-10 * covariance(acts).norm()
    flat = Ablate(Subspace.span(covariance(acts).T), acts.mean(0))(acts)
    assert covariance(flat).norm() < 1e-10 * covariance(acts).norm()
    assert (out - acts).norm() < 0.99 * (flat - acts).norm()


def test_turning_to_an_angle_twice_is_turning_once_and_by_an_angle_is_not() -> None:
    x, v, m = draw(B, P, D), draw(D, seed=1), draw(D, seed=2)
    to, by = (hook_of("rotate_plane", v, m, 0.7, absolute) for absolute in (True, False))
    assert torch.allclose(to(to(x)), to(x), atol=1e-12)
    assert (by(by(x)) - by(x)).abs().max() > 0.1
    for turned in (to(x), by(x)):
        assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-12)


@pytest.mark.compat
def test_a_direction_at_all_writers(model, tokens) -> None:
    from mi_ablate import writers

    direction = draw(16)
    mine = [(name, hook_of("ablate_direction", direction)) for name in writers(model)]
    packaged = Ablate(Subspace.span(direction)).at(*writers(model))
    assert (logits_with(model, tokens, mine) - logits_with(model, tokens, packaged)).abs().max() < 1e-10


def test_the_circle_writes_what_the_fit_has_never_seen() -> None:
    """Fitted on two thirds of the answers, the hand of the others lies where their own activations are."""
    numbers = torch.arange(60) % 12
    acts = fourier(numbers, 12, [1, 5]).matrix @ draw(4, D) + 2
    seen = numbers % 3 > 0
    mine = hook_of("write_answer_circle", acts[seen], numbers[seen], numbers[~seen], 12, [1, 5])
    out = mine(acts[seen][: int((~seen).sum()), None].clone())[:, 0]
    assert torch.allclose(out, acts[~seen], atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_comes_back_in_its_own_dtype(name: str) -> None:
    x = draw(B, P, D).bfloat16()
    for mine, _ in cases(name, B, D, -1):
        assert mine(x, hook=None).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_is_a_card_and_the_file_needs_torch_alone(name: str) -> None:
    path = FOLDER / f"{name}.py"
    fields = loaded("_table").card(path)
    for field in ("Title", *loaded("_table").FIELDS):
        assert len(fields.get(field, "")) > 5, field
    assert fields["In the package"].endswith(".at(...)")
    tree = ast.parse(path.read_text())
    imported = {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert imported <= {"torch", "math", "collections"}
    assert len(path.read_text().splitlines()) <= 60


def test_the_readme_is_up_to_date() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert readme.splitlines()[0] == "These are **forward hooks** for transformers, not git hooks."
    assert loaded("_table").updated(readme) == readme, "run: python hooks/_table.py"
    for name in NAMES:
        assert f"[`{name}.py`]({name}.py)" in readme


def test_every_file_of_the_folder_is_tested() -> None:
    assert [path.stem for path in loaded("_table").files()] == NAMES


def test_the_example_of_the_readme_runs(model, tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    block = readme.split("```python\n")[1].split("```")[0]
    monkeypatch.syspath_prepend(str(FOLDER))
    scope = {"model": model, "tokens": tokens, "direction": draw(16)}
    exec(block, scope)
    assert torch.equal(scope["logits"], logits_with(model, tokens, [(SITE, scope["hook"])]))


def test_keeping_all_frequencies_keeps_everything_that_the_number_determines() -> None:
    numbers = torch.arange(24) % 12
    acts = draw(12, 11)[numbers] + 1  # eleven dimensions: what twelve class means can span
    out = hook_of("keep_frequencies", acts, numbers, 12, range(1, 7))(acts[:, None].clone())[:, 0]
    assert torch.allclose(out, acts, atol=1e-9)
    some = hook_of("keep_frequencies", acts, numbers, 12, [1])(acts[:, None].clone())[:, 0]
    assert not torch.allclose(some, acts, atol=0.1)
    centred = some - acts.mean(0)
    assert int((torch.linalg.svdvals(centred) > 1e-9).sum()) == 2


def test_the_collected_circle_of_a_model(model, tokens) -> None:
    """The whole path on one model: collect, fit, write, with the folder's code and with the package's."""
    numbers = torch.arange(6)
    acts = collect(model, tokens, SITE)[SITE]
    new = (numbers + 1) % 6
    mine = hook_of("write_answer_circle", acts, numbers, new, 6, [1])
    found = fit(acts, fourier(numbers, 6, [1]))
    hooks = Ablate(found.subspace(), found.predict(fourier(new, 6, [1]))).at(SITE, pos=-1)
    assert (logits_with(model, tokens, [(SITE, mine)]) - logits_with(model, tokens, hooks)).abs().max() < 1e-10
    assert math.isfinite(found.r2)
