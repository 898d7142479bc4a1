"""Every intervention against every law: what it declares must hold, and what it does not declare must fail."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mi_ablate import Ablate, Add, Erase, Rotate, Subspace

D, N, P = 8, 5, 3
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 4e-3}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SPAN = Subspace.span(draw(3, D, seed=1), "s")
PLANES = Subspace.random(D, 4, seed=2)
W = draw(D, 2, seed=3)
R = draw(D, 2, seed=4)
R_DUAL = R @ torch.linalg.inv(W.T @ R)  # R_DUALᵀ W = 1
Q = SPAN.basis[:, :2]
MEAN, ROWS, GRID = draw(D, seed=5), draw(N, D, seed=6), draw(N, P, D, seed=7)
HALVES = torch.tensor([0.5, 2.0], dtype=torch.float64)
EACH = draw(N, 1, seed=8).abs() + 0.5
EVERYWHERE = draw(N, P, 1, seed=9).abs() + 0.5


def threshold(x: Tensor) -> Tensor:
    """A gate that depends on x, smooth so that it has a gradient."""
    return torch.sigmoid(x.sum(-1, keepdim=True))


def one(x: Tensor) -> Tensor:
    return torch.ones_like(x[..., :1])


EDITS = {
    "zero": Ablate(SPAN),
    "zero, strength 0": Ablate(SPAN, strength=0),
    "zero, strength 0.5": Ablate(SPAN, strength=0.5),
    "zero, strength 2": Ablate(SPAN, strength=2.0),
    "zero, strength per row": Ablate(SPAN, strength=EACH),
    "zero, strength per position": Ablate(SPAN, strength=EVERYWHERE),
    "zero, strength 0-dim tensor": Ablate(SPAN, strength=torch.tensor(0.7)),
    "mean": Ablate(SPAN, MEAN),
    "mean, strength 0": Ablate(SPAN, MEAN, strength=0.0),
    "mean, strength 0.5": Ablate(SPAN, MEAN, strength=0.5),
    "mean, strength 2": Ablate(SPAN, MEAN, strength=2),
    "rows": Ablate(SPAN, ROWS),
    "rows, keep": Ablate(SPAN, ROWS, keep=True),
    "rows, strength per row": Ablate(SPAN, ROWS, strength=EACH),
    "grid": Ablate(SPAN, GRID),
    "keep": Ablate(SPAN, keep=True),
    "keep, strength 2": Ablate(SPAN, strength=2, keep=True),
    "keep to mean": Ablate(SPAN, MEAN, keep=True),
    "whole": Ablate(None),
    "whole, strength 0.5": Ablate(None, strength=0.5),
    "whole, strength 2": Ablate(None, strength=2),
    "whole to mean": Ablate(None, MEAN),
    "whole to rows": Ablate(None, ROWS),
    "whole to grid": Ablate(None, GRID),
    "gate number": Ablate(SPAN, gate=0.3),
    "gate 1": Ablate(SPAN, gate=1),
    "gate tensor": Ablate(SPAN, gate=EACH),
    "gate function": Ablate(SPAN, gate=threshold),
    "gate function, mean": Ablate(SPAN, MEAN, gate=threshold, strength=0.5),
    "add": Add(MEAN),
    "add, strength 0": Add(MEAN, 0.0),
    "add, strength -2": Add(MEAN, -2),
    "add rows": Add(ROWS),
    "add, strength per row": Add(MEAN, EACH),
    "add rows, strength per position": Add(ROWS, EVERYWHERE),
    "add nothing": Add(torch.zeros(D)),
    "rotate": Rotate(PLANES, 0.7),
    "rotate each plane": Rotate(PLANES, torch.tensor([0.4, -1.1])),
    "rotate, strength 0": Rotate(PLANES, 0.7, strength=0),
    "rotate, strength 0.5": Rotate(PLANES, 0.7, strength=0.5),
    "rotate by half a turn": Rotate(PLANES, torch.pi),
    "rotate about a centre": Rotate(PLANES, 0.7, centre=torch.linspace(1, 2, PLANES.d)),
    "rotate to an angle": Rotate(PLANES, 0.7, absolute=True),
    "rotate each plane to an angle": Rotate(PLANES, torch.tensor([0.4, -1.1]), absolute=True),
    "rotate to an angle about a centre": Rotate(PLANES, 0.7, centre=torch.linspace(1, 2, PLANES.d), absolute=True),
    "rotate to an angle, strength 0": Rotate(PLANES, 0.7, strength=0, absolute=True),
    "rotate to an angle, strength 0.5": Rotate(PLANES, 0.7, strength=0.5, absolute=True),
    "erase, LEACE form": Erase(W, R_DUAL),
    "erase, centred": Erase(W, R_DUAL, MEAN),
    "erase, not biorthogonal": Erase(W, R),
    "erase, strength 0": Erase(W, R_DUAL, MEAN, 0),
    "erase, strength 0.5": Erase(W, R_DUAL, strength=0.5),
    "erase, strength 2": Erase(W, R_DUAL, strength=2),
    "erase, orthogonal, strength 2": Erase(Q, Q, strength=2.0),
    "erase, scaled to a projection": Erase(W, 2 * R_DUAL, strength=0.5),
    "erase, gate 1": Erase(W, R_DUAL, MEAN, gate=1),
    "erase, gate number": Erase(Q, Q, gate=2),
    "erase, gate 0": Erase(W, R_DUAL, MEAN, gate=0.0),
    "erase, gate a direction": Erase(W, W, gate=torch.tensor([0.3, 0.9], dtype=torch.float64)),
    "erase, gate a direction that projects": Erase(W, R_DUAL / HALVES, gate=HALVES),
    "erase, gate a row": Erase(W, W, gate=EACH),
    "erase, gate a row and direction": Erase(W, R_DUAL, MEAN, gate=EACH * HALVES),
    "erase, gate a position": Erase(W, R_DUAL, gate=EVERYWHERE * HALVES, strength=0.5),
    "erase, gate function": Erase(W, W, gate=threshold),
    "erase, gate function, strength 0": Erase(W, W, strength=0, gate=threshold),
}
NAMES = sorted(EDITS)


def example(dtype: torch.dtype = torch.float64, seed: int = 20) -> Tensor:
    return draw(N, P, D, seed=seed).to(dtype)


def edit_of(name: str) -> Callable[..., Tensor]:
    return EDITS[name]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_shape_dtype_device_are_kept_and_the_input_is_never_written_to(name: str, dtype: torch.dtype) -> None:
    x = example(dtype)
    before = x.clone()
    out = EDITS[name](x, hook=None)
    assert (out.shape, out.dtype, out.device) == (x.shape, x.dtype, x.device)
    assert torch.equal(x, before)
    assert torch.isfinite(out).all()
    assert out.data_ptr() != x.data_ptr(), "an output that shares memory with the input lets later hooks write to it"


@pytest.mark.parametrize("name", NAMES)
def test_another_device_is_kept(name: str) -> None:
    """The meta device computes shapes alone, but refuses to be mixed with the CPU, as a GPU does."""
    out = EDITS[name](example(torch.float32).to("meta"))
    assert (out.device.type, out.shape, out.dtype) == ("meta", (N, P, D), torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_float32_and_rounded_once(name: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        x = example(dtype)
        assert torch.equal(EDITS[name](x), EDITS[name](x.float()).to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_with_float64(name: str) -> None:
    x = example(torch.float32)
    assert torch.allclose(EDITS[name](x).double(), EDITS[name](x.double()), atol=2e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if "strength 0" in n and "0.5" not in n and "0-dim" not in n])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strength_0_is_the_identity_to_the_bit(name: str, dtype: torch.dtype) -> None:
    x = example(dtype)
    assert torch.equal(EDITS[name](x), x)


def test_strength_0_of_a_tensor_is_the_identity_in_those_rows_only() -> None:
    strength = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])[:, None]
    for edit in (Ablate(SPAN, strength=strength), Ablate(None, MEAN, strength=strength), Add(MEAN, strength)):
        x = example()
        same = (edit(x) == x).flatten(1).all(1)
        assert same.tolist() == [True, False, True, False, False]


@pytest.mark.parametrize("name", NAMES)
@given(index=st.lists(st.integers(0, N - 1), min_size=1, max_size=7))
def test_a_batch_of_rows_gives_the_rows_of_the_batch(name: str, index: list[int]) -> None:
    edit, x = EDITS[name], example()
    chosen = torch.tensor(index)
    assert torch.allclose(edit.rows(chosen)(x[chosen]), edit(x)[chosen], atol=1e-12, rtol=0)
    assert torch.allclose(edit.rows(slice(1, 3))(x[1:3]), edit(x)[1:3], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_what_is_not_per_example_is_itself(name: str) -> None:
    edit = EDITS[name]
    held = [v for v in vars(edit).values() if isinstance(v, Tensor) and v.ndim > 1 and v.shape[0] == N]
    sliced = [v for v in vars(edit.rows(torch.tensor([0]))).values() if isinstance(v, Tensor) and v.shape[:1] == (1,)]
    if isinstance(edit, (Ablate, Add)) or held:
        assert len(sliced) == len(held)
    else:
        assert edit.rows(torch.tensor([0])) is edit


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_flow(name: str, dtype: torch.dtype) -> None:
    x = example(dtype).requires_grad_()
    weights = draw(D, seed=30).to(dtype)
    (EDITS[name](x) * weights).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    overwrites = name.startswith("whole") and "strength" not in name
    assert bool(x.grad.any()) is not overwrites, "only an edit that overwrites everything has no gradient"


def test_gradients_reach_what_is_written_and_how_strongly() -> None:
    to, strength = MEAN.clone().requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    Ablate(SPAN, to, strength)(example()).pow(2).sum().backward()
    vector = MEAN.clone().requires_grad_()
    Add(vector, 2.0)(example()).pow(2).sum().backward()
    for leaf in (to, strength, vector):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_repr_is_one_short_line_also_when_placed(name: str) -> None:
    edit = EDITS[name]
    (_, placed), *_ = edit.at("blocks.0.attn.hook_z", pos=torch.arange(N), head=[0, 1, 2], unit=list(range(90)))
    for text in (repr(edit), repr(placed)):
        assert "\n" not in text
        assert len(text) < 80
        assert type(edit).__name__ in text


def idempotent(edit: Callable[..., Tensor]) -> bool:
    x = example()
    return torch.allclose(edit(edit(x)), edit(x), atol=1e-9)


def linear(edit: Callable[..., Tensor]) -> bool:
    x, y = example(), example(seed=21)
    homogeneous = torch.allclose(edit(-1.7 * x), -1.7 * edit(x), atol=1e-9)
    return homogeneous and torch.allclose(edit(x + y), edit(x) + edit(y), atol=1e-9)


def norm_preserving(edit: Callable[..., Tensor]) -> bool:
    x = example()
    return torch.allclose(edit(x).norm(dim=-1), x.norm(dim=-1), atol=1e-9)


LAWS = {"idempotent": idempotent, "linear": linear, "norm_preserving": norm_preserving}


@pytest.mark.parametrize("law", sorted(LAWS))
@pytest.mark.parametrize("name", NAMES)
def test_declared_laws_hold_and_undeclared_ones_fail(name: str, law: str) -> None:
    edit = EDITS[name]
    assert LAWS[law](edit) is (law in edit.laws), f"{edit!r} declares {sorted(edit.laws)}"


@pytest.mark.parametrize("name", NAMES)
def test_bakeable_means_one_affine_map_for_all_rows(name: str) -> None:
    """x' = M x + c with the same M and c for every row and position, and only then."""
    edit = EDITS[name]
    x, y = example(), example(seed=22)
    affine = torch.allclose(edit(0.3 * x + 0.7 * y), 0.3 * edit(x) + 0.7 * edit(y), atol=1e-9)
    order = torch.tensor([1, 2, 3, 4, 0])
    same = torch.allclose(edit(x[order]), edit(x)[order], atol=1e-9)
    positions = torch.allclose(edit(x.flip(1)), edit(x).flip(1), atol=1e-9)
    declared = "bakeable" in edit.laws
    if declared:
        assert affine
        assert same
        assert positions
    elif "0-dim" not in name and "gate" not in name:
        assert not (affine and same and positions)


@pytest.mark.parametrize("name", NAMES)
def test_the_rank_of_the_change_is_bounded_as_declared_and_reached(name: str) -> None:
    edit = EDITS[name]
    if edit.rank is None:
        assert isinstance(edit, Ablate)
        assert edit.subspace is None
        return
    assert 1 <= edit.rank <= D
    x = draw(N, P, D, seed=23)
    change = (edit(x) - x).flatten(0, 1)
    found = int((torch.linalg.svdvals(change) > 1e-9).sum())
    nothing = torch.equal(edit(x), x)
    assert found <= edit.rank
    assert found == edit.rank or nothing, f"{edit!r}: rank {found} of {edit.rank} was reached"


def test_an_unbounded_change_is_not_bounded() -> None:
    x = draw(N, P, D, seed=23)
    assert torch.linalg.matrix_rank((Ablate(None)(x) - x).flatten(0, 1)) == D


def test_writing_a_run_into_itself_changes_nothing() -> None:
    x = example()
    assert torch.equal(Ablate(None, x)(x), x)
    assert torch.allclose(Ablate(SPAN, x)(x), x, atol=1e-14)


def test_whole_vector_patching_writes_exactly_what_was_given() -> None:
    """Also where x is so large that x - (x - to) would round ``to`` away."""
    x = 1e8 * example(torch.float32)
    to = GRID.float()
    assert torch.equal(Ablate(None, to)(x), to)


def test_patching_over_minus_infinity_writes_the_new_value() -> None:
    """Attention scores hold -inf behind the causal mask; -inf - (-inf) would be NaN."""
    x = example()
    x[:, 0, 1:] = -torch.inf
    to = example(seed=24)
    assert torch.equal(Ablate(None, to)(x), to)
    assert torch.equal(Ablate(None)(x), torch.zeros_like(x))


def test_keep_and_its_opposite_add_up_to_the_whole() -> None:
    x = example()
    removed, kept = x - Ablate(SPAN)(x), x - Ablate(SPAN, keep=True)(x)
    assert torch.allclose(removed + kept, x, atol=1e-14)
    assert torch.allclose(Ablate(SPAN, keep=True)(x), SPAN.project(x), atol=1e-14)


def test_ablating_to_zero_leaves_nothing_in_the_subspace_and_to_a_mean_leaves_the_mean() -> None:
    x = example()
    assert SPAN.coords(Ablate(SPAN)(x)).abs().max() < 1e-14
    assert torch.allclose(SPAN.coords(Ablate(SPAN, MEAN)(x)), SPAN.coords(MEAN).expand(N, P, 3), atol=1e-14)
    rest = SPAN.complement()
    assert torch.allclose(rest.coords(Ablate(SPAN, MEAN)(x)), rest.coords(x), atol=1e-14)


def test_strength_2_reflects() -> None:
    x = example()
    twice = Ablate(SPAN, strength=2)
    assert torch.allclose(twice(twice(x)), x, atol=1e-13)
    assert torch.allclose(SPAN.coords(twice(x)), -SPAN.coords(x), atol=1e-13)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("rotate") and "to an angle" not in n])
def test_rotations_undo_each_other(name: str) -> None:
    edit, x = EDITS[name], example()
    back = Rotate(edit.subspace, -edit.angle, edit.strength, edit.centre)
    assert torch.allclose(back(edit(x)), x, atol=1e-12)


def test_rotate_turns_the_hand_by_the_angle() -> None:
    plane = Subspace(torch.eye(D, dtype=torch.float64)[:, :2])
    x = torch.zeros(1, D, dtype=torch.float64)
    x[0, 0], x[0, 5] = 2.0, 3.0
    out = Rotate(plane, torch.pi / 2)(x)
    assert torch.allclose(out, torch.tensor([[0.0, 2, 0, 0, 0, 3, 0, 0]], dtype=torch.float64), atol=1e-15)


def test_rotate_to_an_angle_leaves_the_length_and_points_there() -> None:
    """Angular steering: x - P x + |P x| (cos t b1 + sin t b2), in the plane of b1 and b2."""
    plane = PLANES[:2]
    b1, b2 = plane.basis.T
    x = example()
    length = plane.coords(x).norm(dim=-1, keepdim=True)
    expected = x - plane.project(x) + length * (math.cos(0.7) * b1 + math.sin(0.7) * b2)
    assert torch.allclose(Rotate(plane, 0.7, absolute=True)(x), expected, atol=1e-13)


@given(strength=st.floats(0, 1), angle=st.floats(-7, 7))
def test_rotate_part_of_the_way_takes_the_shorter_way(strength: float, angle: float) -> None:
    plane, x = PLANES[:2], example()

    def left(y: Tensor) -> Tensor:
        u, v = plane.coords(y).unbind(-1)
        return (torch.remainder(angle - torch.atan2(v, u) + torch.pi, 2 * torch.pi) - torch.pi).abs()

    after = left(Rotate(plane, angle, strength, absolute=True)(x))
    assert torch.allclose(after, (1 - strength) * left(x), atol=1e-7)


def test_erase_in_its_leace_form_leaves_nothing_to_the_reader() -> None:
    x = example()
    assert (Erase(W, R_DUAL)(x) @ R).abs().max() < 1e-12
    assert ((Erase(W, R_DUAL, MEAN)(x) - MEAN) @ R).abs().max() < 1e-12


@given(seed=st.integers(0, 10_000), rank=st.integers(1, D), factor=st.floats(-3, 3))
def test_ablation_is_the_projector_in_other_algebra(seed: int, rank: int, factor: float) -> None:
    s = Subspace.random(D, rank, seed)
    projector = s.basis @ s.basis.T
    x, to = draw(N, P, D, seed=seed), draw(N, D, seed=seed + 1)
    expected = x + factor * (to[:, None] - x) @ projector
    assert torch.allclose(Ablate(s, to, factor)(x), expected, atol=1e-12)


@given(seed=st.integers(0, 10_000), rank=st.integers(1, D))
def test_ablation_commutes_with_orthogonal_maps(seed: int, rank: int) -> None:
    turn = torch.linalg.qr(draw(D, D, seed=seed)).Q
    s, x = Subspace.random(D, rank, seed), draw(N, D, seed=seed + 1)
    turned = Subspace(turn @ s.basis)
    assert torch.allclose(Ablate(turned)(x @ turn.T), Ablate(s)(x) @ turn.T, atol=1e-12)


def test_values_are_frozen() -> None:
    for edit in EDITS.values():
        field = next(iter(vars(edit)))
        with pytest.raises(AttributeError):
            setattr(edit, field, None)


def test_per_example_values_align_with_heads_after_positions() -> None:
    """At hook_z a row's [d] goes to every position and head of that row; the first axis always counts examples."""
    x = draw(N, P, 2, D, seed=25)
    out = Ablate(None, ROWS)(x)
    assert torch.equal(out, ROWS[:, None, None].expand_as(x))


def test_two_examples_are_per_example_and_one_is_the_same_for_all() -> None:
    x = draw(2, P, D, seed=27)
    pair, single = Ablate(None, ROWS[:2]), Ablate(None, ROWS[:1])
    for index in (torch.tensor([1]), torch.tensor([1, 0])):
        assert torch.equal(pair.rows(index)(x[index]), pair(x)[index])
        assert torch.equal(single.rows(index)(x[index]), ROWS[:1, None].expand(len(index), P, D))


def test_examples_align_on_the_left_even_when_positions_are_as_many() -> None:
    x = draw(N, N, D, seed=26)
    assert torch.equal(Ablate(None, ROWS)(x), ROWS[:, None].expand_as(x))
    assert torch.allclose(Add(MEAN, EACH)(x) - x, (EACH * MEAN)[:, None].expand_as(x), atol=1e-12)


NAN, INFINITE = torch.tensor([float("nan")] + [0.0] * (D - 1)), torch.tensor([float("inf")] + [0.0] * (D - 1))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Ablate(SPAN, NAN), "Ablate: to holds 1 values"),
        (lambda: Ablate(SPAN, INFINITE), "Ablate: to holds 1 values"),
        (lambda: Ablate(None, NAN), "Ablate: to holds 1 values"),
        (lambda: Ablate(SPAN, strength=float("nan")), "Ablate: strength holds 1 values"),
        (lambda: Ablate(SPAN, gate=torch.tensor([float("inf")])), "Ablate: gate holds 1 values"),
        (lambda: Add(INFINITE), "Add: vector holds 1 values"),
        (lambda: Rotate(PLANES, float("nan")), "Rotate: angle holds 1 values"),
        (lambda: Rotate(PLANES, 0.3, centre=NAN), "Rotate: centre holds 1 values"),
        (lambda: Erase(W, R * float("nan")), "Erase: reader holds 16 values"),
    ],
)
def test_an_edit_that_is_not_finite_is_refused_where_it_is_made(make: Callable[[], object], what: str) -> None:
    with pytest.raises(ValueError, match=f"{what} that are NaN or infinite; every activation would be"):
        make()


def test_masked_scores_of_another_run_may_be_infinite() -> None:
    x = example()
    assert torch.equal(Ablate(None, -INFINITE.double())(x)[0, 0], -INFINITE.double())
