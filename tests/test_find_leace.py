"""LEACE: its theorems, their converses, and equality with the `concept-erasure` package."""

import json
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mi_ablate as mi
from mi_ablate import Ablate, Fitter, Subspace, find


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(n: int = 300, d: int = 12, k: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated activations of very different scales with class means planted, and labels."""
    labels = torch.arange(n) % k
    mixing = draw(d, d, seed=seed + 1) * torch.logspace(-1, 1, d, dtype=torch.float64)
    return (draw(n, d, seed=seed) + 2 * draw(k, d, seed=seed + 2)[labels]) @ mixing + 5, labels


def covariance_with(x: Tensor, z: Tensor) -> float:
    """The largest correlation-like covariance: of x in units of its spread with the columns of z."""
    x, z = x - x.mean(0), z - z.mean(0)
    return float((x.T @ z / len(x)).abs().max() / x.std(0).max())


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels).double()


def change(x: Tensor, edited: Tensor) -> float:
    return float(((x - edited) ** 2).sum(1).mean())


def probe_gain(x: Tensor, labels: Tensor) -> float:
    """How much a least-squares probe explains of the labels, in sample."""
    return mi.fit(one_hot(labels), mi.Design(x, tuple(map(str, range(x.shape[1]))))).r2


@pytest.mark.compat
@given(seed=st.integers(0, 300), k=st.integers(2, 5))
def test_after_erasure_no_linear_probe_beats_a_constant_and_the_rank_is_classes_minus_one(seed: int, k: int) -> None:
    x, labels = data(seed=seed, k=k)
    eraser = find.leace(x, labels)
    edited = eraser.erase()(x)
    assert eraser.rank == k - 1
    assert covariance_with(x, one_hot(labels)) > 1e-2
    assert covariance_with(edited, one_hot(labels)) < 1e-12
    assert probe_gain(x, labels) > 0.05
    assert probe_gain(edited, labels) < 1e-12
    assert torch.allclose(edited.mean(0), x.mean(0), atol=1e-9)
    assert torch.allclose(eraser.erase()(edited), edited, atol=1e-8)
    assert "idempotent" in eraser.erase().laws
    half = eraser.erase(0.5)(x)
    assert torch.allclose(half, (x + edited) / 2, atol=1e-9)
    assert covariance_with(half, one_hot(labels)) > 1e-3


def test_a_logistic_probe_is_at_chance_afterwards() -> None:
    from sklearn.linear_model import LogisticRegression

    x, labels = data(k=2)
    edited = find.leace(x, labels).erase()(x)
    before, after = (
        LogisticRegression(C=1e6, max_iter=5000).fit(v.numpy(), labels.numpy()).score(v.numpy(), labels.numpy())
        for v in ((x - x.mean(0)) / x.std(0), (edited - x.mean(0)) / x.std(0))
    )
    assert before > 0.9
    assert after < 0.55


@given(seed=st.integers(0, 300))
def test_leace_moves_less_than_the_orthogonal_variant_and_the_oracle_less_than_leace(seed: int) -> None:
    x, labels = data(seed=seed)
    eraser = find.leace(x, labels)
    q = eraser.subspace("orthogonal")
    edits = {
        "oracle": eraser.oracle(labels)(x),
        "leace": eraser.erase()(x),
        "orthogonal": Ablate(q, to=x.mean(0))(x),
        "zero": Ablate(q)(x),
    }
    for edited in edits.values():
        assert covariance_with(edited, one_hot(labels)) < 1e-12
    moved = [change(x, edited) for edited in edits.values()]
    assert moved[0] < moved[1] < moved[2] < moved[3]
    writer = Ablate(eraser.subspace("writer"), to=x.mean(0))(
        x
    )  # orthogonal to the writers' span: not LEACE, but it erases
    assert not torch.allclose(writer, edits["leace"], atol=1e-3)
    reader = Ablate(eraser.subspace("reader"), to=x.mean(0))(x)
    assert covariance_with(reader, one_hot(labels)) > 1e-4


def test_no_erasing_projection_moves_less() -> None:
    x, labels = data(d=4, k=2)
    eraser = find.leace(x, labels)
    best, w = change(x, eraser.erase()(x)), eraser.orthogonal[:, 0]  # any eraser takes out w, along w
    for seed in range(50):
        r = draw(4, seed=seed)
        other = mi.Erase(w[:, None], (r / (r @ w))[:, None], x.mean(0))(x)
        assert covariance_with(other, one_hot(labels)) < 1e-9
        assert change(x, other) >= best * (1 - 1e-12)


@given(seed=st.integers(0, 300))
def test_of_two_classes_mean_ablation_of_the_difference_of_means_guards_too(seed: int) -> None:
    x, labels = data(seed=seed, k=2)
    s = find.difference_of_means(x, labels)
    assert torch.allclose(find.leace(x, labels).subspace("orthogonal").basis, s.basis, atol=1e-8)
    assert torch.allclose(find.leace(x, labels).subspace("writer").basis, s.basis, atol=1e-6)
    assert covariance_with(Ablate(s, to=x.mean(0))(x), one_hot(labels)) < 1e-12
    assert covariance_with(Ablate(find.logistic(x, labels), to=x.mean(0))(x), one_hot(labels)) > 1e-3


def test_the_oracle_is_what_the_fit_predicts_and_works_on_batches() -> None:
    x, labels = data()
    eraser = find.leace(x, labels + 10)
    z = one_hot(labels)
    xc, zc = x - x.mean(0), z - z.mean(0)
    wanted = x - zc @ torch.linalg.pinv(zc.T @ zc, rtol=1e-9) @ (zc.T @ xc)
    edit = eraser.oracle(labels + 10)
    assert torch.allclose(edit(x), wanted, atol=1e-9)
    rows = torch.arange(0, 300, 3)  # one class only
    assert torch.allclose(edit.rows(rows)(x[rows]), wanted[rows], atol=1e-9)
    assert torch.allclose(eraser.oracle((labels + 10)[rows])(x[rows]), wanted[rows], atol=1e-9)
    with pytest.raises(
        ValueError, match=r"labels of shape \[2\] with \[13\]: one an example, of the classes \[10, 11, 12\]"
    ):
        eraser.oracle([10, 13])


def test_it_streams_and_takes_labels_that_are_numbers() -> None:
    x, labels = data()
    values = x[:, 0] * 0.1 + draw(300, seed=8)
    design = mi.linear(values) | mi.fourier(labels, 3, [1])
    fitter = Fitter(covariance=True)
    for start in range(0, 300, 37):
        fitter.update(x[start : start + 37], design[start : start + 37])
    streamed, whole = find.leace_of(fitter.result()), find.leace(x, design)
    assert streamed.rank == 3
    assert torch.allclose(streamed.erase()(x), whole.erase()(x), atol=1e-9)
    assert covariance_with(streamed.erase()(x), design.matrix) < 1e-11
    assert torch.allclose(whole.oracle(design)(x), streamed.oracle(design)(x), atol=1e-9)
    scaled = mi.Design(design.matrix * torch.tensor([1e6, 1, 1e-6]), design.labels)
    assert torch.allclose(find.leace(x, scaled).erase()(x), whole.erase()(x), atol=1e-7)
    assert json.loads(json.dumps(whole.subspace().source)) == whole.subspace().source


def test_fewer_examples_than_dimensions_and_shrinkage() -> None:
    x, labels = data(n=30, d=60, k=2)
    for shrinkage in (0.0, 0.3, 1.0):
        eraser = find.leace(x, labels, shrinkage=shrinkage)
        assert eraser.rank == 1
        assert covariance_with(eraser.erase()(x), one_hot(labels)) < 1e-10
    flat = find.leace(x, labels, shrinkage=1.0)  # an isotropic covariance: LEACE is the orthogonal variant then
    assert flat.subspace("reader").overlap(flat.subspace("orthogonal")) > 1 - 1e-12
    assert find.leace(x, labels).subspace("reader").overlap(flat.subspace("orthogonal")) < 0.9
    x, labels = data(n=3000, d=60, k=2)
    few = torch.arange(70)
    left = [
        covariance_with(find.leace(x[few], labels[few], shrinkage=rho).erase()(x), one_hot(labels))
        for rho in (0.0, 0.1)
    ]
    assert covariance_with(x, one_hot(labels)) > left[0] > left[1] > 1e-3  # on others it is not exact


def test_the_subspaces_are_ordered_signed_and_say_which_form() -> None:
    x, labels = data(k=4)
    eraser = find.leace(x, labels)
    assert (eraser.correlations.diff() <= 0).all()
    assert float(eraser.correlations.max()) <= 1
    for form in ("writer", "reader", "orthogonal"):
        s = eraser.subspace(form)
        assert (s.rank, s.source["form"], s.name) == (3, form, f"LEACE, {form}")
        assert torch.allclose(eraser.subspace(form, rank=1).basis, s.basis[:, :1])
    two = find.leace(x, labels % 2)
    for form in ("writer", "reader", "orthogonal"):
        scores = two.subspace(form).coords(x)[:, 0]
        assert scores[labels % 2 == 1].mean() > scores[labels % 2 == 0].mean()
    assert find.leace_subspace(x, labels, form="reader", rank=2, name="n").name == "n"
    assert repr(eraser) == "Leace(rank 3 of 12, n 300)"
    assert eraser.source["n"] == {"0": 75, "1": 75, "2": 75, "3": 75}


@pytest.mark.parametrize("k", [2, 4])
def test_it_equals_the_concept_erasure_package(k: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses torch.jit.script, which warns
        package = pytest.importorskip("concept_erasure")
    x, labels = data(n=500, d=16, k=k, seed=3)
    x = x / 10
    ours = find.leace(x, labels)
    fitter = package.LeaceFitter(16, k, dtype=torch.float64, shrinkage=False).update(x, one_hot(labels))
    theirs, projector = fitter.eraser(x), ours.writer @ ours.reader.T
    scale = float(theirs.abs().max())
    assert float((ours.erase()(x) - theirs).abs().max()) < 1e-8 * scale
    eye = torch.eye(16).double()
    assert float((projector - (eye - fitter.eraser.P)).abs().max()) < 1e-8 * float(projector.abs().max())
    flat = package.LeaceFitter(16, k, "orth", dtype=torch.float64).update(x, one_hot(labels))
    q = ours.subspace("orthogonal")
    assert float((Ablate(q, to=x.mean(0))(x) - flat.eraser(x)).abs().max()) < 1e-8 * scale
    oracle = package.OracleFitter(16, k, dtype=torch.float64).update(x, one_hot(labels))
    assert float((ours.oracle(labels)(x) - oracle.eraser(x, one_hot(labels))).abs().max()) < 1e-8 * scale
    assert float((theirs - x).abs().max()) > 1e-2 * scale


def test_it_is_a_hook(model) -> None:
    from models import logits_with, tokens_for

    prompts, site = tokens_for(model, 40), "blocks.0.hook_resid_post"
    labels = prompts[:, -1] % 2
    acts = mi.collect(model, prompts, site)[site]
    hooks = find.leace(acts, labels).erase().at(site, pos=-1)
    edited = mi.collect(model, prompts, site, hooks=hooks)[site]
    assert covariance_with(acts, one_hot(labels)) > 1e-2
    assert covariance_with(edited, one_hot(labels)) < 1e-12
    assert (logits_with(model, prompts, hooks) - logits_with(model, prompts)).abs().max() > 1e-3


X, Y = data(n=20, d=4, k=2)
FIT = mi.fit(X, mi.contrast(Y == 1))
BAD = {
    "no covariance": (lambda: find.leace_of(FIT), r"LEACE needs the covariance of the activations: fit with Fitter"),
    "shrinkage": (lambda: find.leace(X, Y, shrinkage=2.0), "shrinkage=2.0: 0 .none. to 1"),
    "form": (lambda: find.leace(X, Y).subspace("both"), "form='both' is one of"),
    "rank": (
        lambda: find.leace(X, Y).subspace(rank=2),
        "rank 2 was asked for; the labels are erased with 1 directions",
    ),
    "nothing": (
        lambda: find.leace(torch.cat([X, X]), torch.arange(40) >= 20),
        "The labels have no covariance with these activations",
    ),
    "constant": (lambda: find.leace(torch.ones(20, 4), Y), "The labels have no covariance with these activations"),
    "one class": (lambda: find.leace(X, Y * 0), r"All 20 labels are \[0\]"),
    "a design's labels": (lambda: find.leace(X, mi.linear(Y)).oracle([0, 1]), "a fit of a design takes a design"),
    "labels between": (lambda: find.leace(X, Y).oracle(torch.full((20,), 0.9)), "labels hold torch.float32: Booleans"),
    "NaN": (lambda: find.leace(X * float("inf"), Y), "NaN or infinite activations in 20 examples"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_says_what_to_do(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_writer_is_not_an_orthogonal_subspace_in_general() -> None:
    x, labels = data(k=3)
    eraser = find.leace(x, labels)
    assert eraser.subspace("writer").overlap(eraser.subspace("orthogonal")) > 1 - 1e-9  # both span S_xz
    assert eraser.subspace("reader").overlap(eraser.subspace("orthogonal")) < 0.9
    assert isinstance(eraser.subspace(), Subspace)
