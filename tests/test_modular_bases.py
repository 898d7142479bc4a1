"""The Fourier basis of Z_n and its products, spectra, neurons, cosine shares: laws, torch.fft, planted truth."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_ablate.modular import (
    FourierBasis,
    cosine_share,
    gini,
    neuron_frequencies,
    random_top_share,
    spectrum,
    spectrum2,
    trig_ratio,
)
from mi_ablate.modular.bases import PARTS

SIZES = st.integers(2, 24)
FAST = settings(max_examples=30, deadline=None)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.compat
@given(SIZES)
@FAST
def test_the_basis_is_orthonormal_for_odd_and_even_n_and_complete(n: int) -> None:
    basis = FourierBasis(n)
    assert basis.matrix.shape == (n, n)
    assert len(basis.labels) == n
    assert torch.allclose(basis.matrix @ basis.matrix.T, torch.eye(n, dtype=torch.float64), atol=1e-12)
    assert (basis.matrix.abs().amax(1) > 0.1 / n**0.5).all(), "a near-zero row made unit"
    for k in basis.frequencies:
        assert basis.labels[basis.rows(k)[0]] == f"cos {k}"
        assert torch.equal(basis.cos(k), basis.block(k)[0])
        for row, label in zip(basis.block(k), (f"cos {k}", f"sin {k}")):
            assert torch.equal(row, basis.matrix[basis.labels.index(label)])


def test_the_alternating_row_of_an_even_n() -> None:
    basis = FourierBasis(96)
    assert basis.labels[-1] == "cos 48"
    assert torch.allclose(basis.cos(48) * 96**0.5, torch.tensor([1.0, -1.0] * 48, dtype=torch.float64))
    with pytest.raises(ValueError, match="Frequency 48 of Z_96 has no sine: it is zero on every element"):
        basis.sin(48)
    assert (basis.order(48), basis.order(44), basis.order(15)) == (2, 24, 32)
    published = torch.stack([torch.sin(2 * math.pi * 48 * torch.arange(96).double() / 96)])
    assert published.norm() < 1e-12, "the row that the published builder adds is rounding error"
    assert (published / published.norm()).norm() == pytest.approx(1), "and is then made unit"


@given(SIZES, st.integers(0, 100))
@FAST
def test_transform_agrees_with_torch_fft_and_comes_back(n: int, seed: int) -> None:
    basis, x = FourierBasis(n), noise(n, 3, seed=seed)
    found, fft = basis.transform(x), torch.fft.rfft(x, dim=0, norm="ortho")
    for k in basis.frequencies:
        scale = 1 if 2 * k == n else 2**0.5
        rows = basis.rows(k)
        assert torch.allclose(found[rows[0]], scale * fft[k].real, atol=1e-12)
        if len(rows) == 2:
            assert torch.allclose(found[rows[1]], -scale * fft[k].imag, atol=1e-12)
    assert torch.allclose(basis.inverse(found), x, atol=1e-12)
    assert torch.allclose(basis.inverse(basis.transform(x.T, 1), -1), x.T, atol=1e-12)
    assert torch.allclose(basis.energies(x).sum(0), (x**2).sum(0), atol=1e-10), "Parseval"


@given(st.integers(2, 12), st.integers(0, 100))
@FAST
def test_products_over_pairs_parseval_and_inverse(n: int, seed: int) -> None:
    basis, x = FourierBasis(n), noise(n, n, 2, seed=seed)
    assert torch.allclose(basis.inverse2(basis.transform2(x)), x, atol=1e-12)
    energies = basis.energies2(x)
    assert torch.allclose(energies.sum((0, 1)), (x**2).sum((0, 1)), atol=1e-10)
    flipped = basis.energies2(x.transpose(0, 1))
    assert torch.allclose(flipped, energies.transpose(0, 1), atol=1e-10)
    parts = basis.pair_energies(x)
    k = torch.arange(1, n // 2 + 1)
    assert torch.allclose(parts["first"], energies[k, 0], atol=1e-10)
    assert torch.allclose(parts["second"], energies[0, k], atol=1e-10)
    assert torch.allclose(parts["sum"] + parts["difference"], energies[k, k], atol=1e-10)


@given(st.integers(2, 14), st.integers(0, 30), st.data())
@FAST
def test_components_are_orthogonal_projections(n: int, seed: int, data: st.DataObject) -> None:
    basis, x, y = FourierBasis(n), noise(n, n, 2, seed=seed), noise(n, n, 2, seed=seed + 1)
    ks = data.draw(st.lists(st.integers(1, n // 2), max_size=3))
    part = data.draw(st.sampled_from(PARTS))
    found = basis.component(x, ks, part)
    assert torch.allclose(basis.component(found, ks, part), found, atol=1e-10), "idempotent"
    assert abs(float((found * (y - basis.component(y, ks, part))).sum())) < 1e-8, "orthogonal"
    assert torch.allclose(found.mean((0, 1)), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    energies = basis.pair_energies(x)
    used = {"2x2": ("sum", "difference"), "3x3": tuple(energies)}.get(part, (part,))
    index = [k - 1 for k in set(ks)]
    expected = sum(energies[name][index].sum(0) for name in used)
    if not (n % 2 == 0 and part == "difference" and n // 2 in ks):  # the Nyquist term is counted under "sum"
        assert torch.allclose((found**2).sum((0, 1)), expected, atol=1e-9)
    if part == "sum":
        moved = basis.component(x.roll(3, 0), ks)
        assert torch.allclose(moved, found.roll(3, 0), atol=1e-10), "shift covariance"


def test_sum_directions_are_the_published_combinations_of_products() -> None:
    basis = FourierBasis(11)
    for k in basis.frequencies:
        c, s = basis.cos(k), basis.sin(k)
        plus, cross = torch.outer(c, c) - torch.outer(s, s), torch.outer(s, c) + torch.outer(c, s)
        assert torch.allclose(basis.sum_directions(k), torch.stack([plus, cross]) / 2**0.5, atol=1e-12)
        both = torch.cat([basis.sum_directions(k), basis.difference_directions(k)]).flatten(1)
        assert torch.allclose(both @ both.T, torch.eye(4, dtype=torch.float64), atol=1e-12)
        x = noise(11, 11)
        by_hand = (both[:2] @ x.flatten())[:, None] * both[:2]
        assert torch.allclose(basis.component(x, [k]), by_hand.sum(0).reshape(11, 11), atol=1e-12)


@given(SIZES, st.integers(0, 23), st.integers(1, 23))
@FAST
def test_a_spectrum_does_not_see_shifts_or_reflections_and_units_permute_it(n: int, shift: int, unit: int) -> None:
    x = noise(n, 4)
    shares = spectrum(x).shares
    assert float(shares.sum()) == pytest.approx(1)
    assert torch.allclose(spectrum(x.roll(shift, 0)).shares, shares)
    assert torch.allclose(spectrum(x[(-torch.arange(n)) % n]).shares, shares)
    if math.gcd(unit, n) == 1:
        permuted = spectrum(x[(unit * torch.arange(n)) % n]).shares  # as another primitive root does
        assert torch.allclose(permuted.sort().values, shares.sort().values)
        k = torch.arange(1, n // 2 + 1)
        image = (unit * k) % n
        assert torch.allclose(permuted[torch.minimum(image, n - image) - 1], shares)


def test_spectra_name_their_energy_and_rows() -> None:
    basis, x = FourierBasis(8), noise(8, 5)
    found = spectrum(x, "mine")
    assert found.energy == pytest.approx(float(((x - x.mean(0)) ** 2).sum()))
    assert torch.allclose(found.row_norms, basis.transform(x)[1:].norm(dim=1))
    assert repr(found).startswith("Spectrum(mine, Z_8: ")
    with pytest.raises(ValueError, match="9 frequencies were asked for; Z_8 has 1 to 4"):
        found.top(9)


@pytest.mark.compat
def test_gini_and_random_baselines_are_the_published_numbers() -> None:
    assert gini(torch.ones(7)) == pytest.approx(0)
    assert gini(torch.tensor([0.0] * 6 + [2.0] * 2)) == pytest.approx(1 - 2 / 8)
    drawn = [spectrum(noise(97, 128, seed=s)) for s in range(20)]
    # a normal variable has the Gini coefficient sd / (mean √π): here 1/√(2·256 π) and 1/√(2·128 π), less 1/N for N of them
    assert sum(x.gini for x in drawn) / 20 == pytest.approx((512 * math.pi) ** -0.5 * 47 / 48, abs=0.001)
    assert sum(x.gini_rows for x in drawn) / 20 == pytest.approx((256 * math.pi) ** -0.5 * 95 / 96, abs=0.001)
    assert random_top_share((97, 128), 5) == pytest.approx(0.121, abs=0.0015)
    assert random_top_share((97, 128), 10) == pytest.approx(0.234, abs=0.0015)


def test_a_spectrum_over_pairs_tells_sums_from_differences() -> None:
    i, j = torch.arange(13)[:, None].double(), torch.arange(13)[None].double()
    w = 2 * math.pi / 13
    x = torch.stack([torch.cos(3 * w * (i + j)), 2 * torch.sin(5 * w * (i - j)), torch.cos(2 * w * i) + 0 * j], -1)
    found = spectrum2(x, "planted")
    assert float(found.sums[2]) == pytest.approx(1 / 6)
    assert float(found.differences[4]) == pytest.approx(4 / 6)
    assert float(found.shares[2, 0]) == pytest.approx(1 / 6)
    assert float(found.shares.sum()) == pytest.approx(1)
    assert repr(found) == "Spectrum2(planted, Z_13: one operand 0.167, i+j 0.167, i-j 0.667)"
    assert float(spectrum2(torch.ones(4, 4, 2)).shares.sum()) == 0


def planted_neurons(n: int, frequencies: list[int]) -> torch.Tensor:
    i, j = torch.arange(n)[:, None].double(), torch.arange(n)[None].double()
    waves = [torch.cos(2 * math.pi * k * i / n + k) + torch.cos(2 * math.pi * k * j / n + 1) for k in frequencies]
    return torch.relu(torch.stack(waves, -1))


@pytest.mark.compat
def test_neurons_are_found_and_the_last_frequency_is_out_of_reach_of_two_variants() -> None:
    n = 17
    x = torch.cat([planted_neurons(n, [2, 8, 8, 5]), torch.ones(n, n, 1), noise(n, n, 1)], -1)
    found = neuron_frequencies(x)
    assert found.frequency[:5].tolist() == [2, 8, 8, 5, 0]
    assert found.clusters(0.8) == {2: [0], 5: [3], 8: [1, 2]}
    assert found.unassigned(0.8) == [4, 5]
    assert {2, 5, 8} <= set(found.frequencies)
    assert float(found.energy[4]) == pytest.approx(0, abs=1e-20)
    for variant in ("nanda_colab", "arena"):
        short = neuron_frequencies(x, variant)
        assert short.frequency[[0, 3]].tolist() == [2, 5]
        assert 8 not in short.frequencies, "(n - 1) / 2 can never be chosen"
        assert 8 not in short.clusters(0.8)
    assert torch.equal(neuron_frequencies(x, "tl_demo").frequency, found.frequency)
    even = neuron_frequencies(planted_neurons(16, [8, 3]))
    assert even.frequency.tolist() == [8, 3]
    assert float(even.share.max()) <= 1 + 1e-12


def test_the_share_of_a_neuron_is_that_of_its_three_by_three_block() -> None:
    for n in (7, 8):
        x = noise(n, n, 3)
        y = x - x.mean((0, 1))
        basis, found = FourierBasis(n), neuron_frequencies(x)
        for k in basis.frequencies:
            block = basis.component(y, [k], "3x3")
            assert torch.allclose(found.shares[k - 1], (block**2).sum((0, 1)) / (y**2).sum((0, 1)))


def test_the_trig_ratio_of_a_sum_is_one_and_of_noise_small() -> None:
    n = 31
    i, j = torch.arange(n)[:, None].double(), torch.arange(n)[None].double()
    waves = torch.stack([torch.cos(2 * math.pi * k * (i + j) / n) for k in (3, 4)], -1)
    assert torch.allclose(trig_ratio(waves, [3, 4]), torch.ones(2, dtype=torch.float64))
    assert trig_ratio(waves, [3]).tolist() == pytest.approx([1, 0], abs=1e-12)
    assert float(trig_ratio(noise(n, n, 50), [3, 4]).mean()) == pytest.approx(4 / n**2, rel=0.5)


def cube(n: int, k: int) -> torch.Tensor:
    i = torch.arange(n)
    distance = i[:, None, None] + i[None, :, None] - i
    return torch.cos(2 * math.pi * k * distance.double() / n)


@given(st.integers(2, 9), st.integers(0, 50))
@FAST
def test_cosine_coefficients_are_inner_products_with_the_unit_cubes(n: int, seed: int) -> None:
    x = noise(n, n, n, seed=seed) + 1
    found = cosine_share(x)
    cubes = torch.stack([cube(n, k) for k in range(1, n // 2 + 1)])
    cubes = cubes / cubes.flatten(1).norm(dim=1)[:, None, None, None]
    slow = (cubes * x).sum((1, 2, 3))
    assert torch.allclose(found.coefficients, slow, atol=1e-10)
    assert torch.allclose(found.cosines, slow / x.norm())
    assert torch.allclose(found.fve, slow**2 / ((x - x.mean()) ** 2).sum())
    assert torch.allclose(found.centred, slow**2 / ((x - x.mean(-1, keepdim=True)) ** 2).sum())
    left = x - (slow[:, None, None, None] * cubes).sum(0)
    assert found.residual(range(1, n // 2 + 1)) == pytest.approx(float(left.norm() / x.norm()))


@pytest.mark.compat
def test_planted_logits_have_their_planted_shares() -> None:
    n = 13
    x = 3 * cube(n, 2) + 4 * cube(n, 5) + 7
    found = cosine_share(x.float())
    assert found.top(2) == [5, 2]
    assert found.fve[[1, 4]].tolist() == pytest.approx([9 / 25, 16 / 25], rel=1e-6)
    assert float(found.centred.sum()) == pytest.approx(1, rel=1e-6)
    assert float((found.cosines**2).sum()) < 0.3, "uncentred, the constant counts"
    per_prompt = noise(n, n, 1).expand(n, n, n) * 5
    assert float(cosine_share(x + per_prompt).centred.sum()) == pytest.approx(1)
    assert float(cosine_share(x + per_prompt).fve.sum()) < 0.7, "what a softmax does not see is variance"
    assert float(cosine_share(x.roll(1, -1)).fve.sum()) < 0.9, "the same waves out of phase are not these cubes"
    assert cosine_share(torch.ones(3, 3, 3)).fve.isnan().all()


def gromov(n: int, units: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden units [n, n, m], logits and planted frequencies of Gromov's two-layer quadratic network (2301.02679)."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.randint(1, n // 2 + 1, (units,), generator=generator)
    f, g = 2 * math.pi * torch.rand(2, units, generator=generator, dtype=torch.float64)
    turns = 2 * math.pi * torch.arange(n).double()[:, None] * k / n
    hidden = (torch.cos(turns + f)[:, None] + torch.cos(turns + g)[None]) ** 2
    return hidden, hidden @ torch.cos(-turns - f - g).T, k


@pytest.mark.compat
@pytest.mark.parametrize("n", [31, 30])
def test_the_analytic_network_is_read_exactly(n: int) -> None:
    """Even n is multiplication mod the prime 31 in the order of exponents."""
    hidden, logits, k = gromov(n, 400, 0)
    i = torch.arange(n)
    assert torch.equal(logits.argmax(-1), (i[:, None] + i) % n)
    # cos² gives 2k on one operand, the product k on both: the largest 3 x 3 block is that of 2k or of k, never another's
    found = neuron_frequencies(hidden)
    double = torch.minimum(2 * k % n, n - 2 * k % n)
    assert ((found.frequency == k) | (found.frequency == double)).all()
    product = hidden - hidden.mean(0) - hidden.mean(1, keepdim=True) + hidden.mean((0, 1))
    assert torch.equal(neuron_frequencies(product).frequency, k)
    assert float(neuron_frequencies(product).share.min()) == pytest.approx(1)
    used = sorted(set(k.tolist()))
    expected = torch.stack([product[..., k == one].norm() for one in used]).argmax()
    share = cosine_share(logits)
    assert float(share.centred.sum()) > 0.7
    assert float(cosine_share(gromov(n, 3000, 0)[1]).centred.sum()) > 0.95, "phases average out as units are added"
    assert float(share.coefficients.min()) > 0, "every frequency adds to the right answer"
    assert share.centred[used[int(expected)] - 1] > 0.5 / len(used)
    shuffled = cosine_share(logits[:, torch.randperm(n, generator=torch.Generator().manual_seed(0))])
    assert float(shuffled.centred.sum()) < 0.1


def test_what_is_no_frequency_or_has_no_pairs_is_refused() -> None:
    basis = FourierBasis(10)
    with pytest.raises(ValueError, match=r"Z_10 has the frequencies 1 to 5; \[6\] are none of them"):
        basis.component(torch.zeros(10, 10), [3, 6])
    with pytest.raises(ValueError, match="part='square' is one of sum, difference, 2x2, 3x3"):
        basis.component(torch.zeros(10, 10), [3], "square")
    with pytest.raises(ValueError, match=r"x has shape \[9, 10\]; its axis 0 must have the length 10"):
        basis.transform(torch.zeros(9, 10))
    with pytest.raises(ValueError, match=r"FourierBasis\(1\): Z_n needs a whole number n > 1"):
        FourierBasis(1)
    with pytest.raises(ValueError, match="variant='np' is one of nanda_text, tl_demo, nanda_colab, arena"):
        neuron_frequencies(torch.zeros(5, 5, 2), "np")
    with pytest.raises(ValueError, match="Variant 'arena' looks at the frequencies below 1: there is none in Z_3"):
        neuron_frequencies(torch.zeros(3, 3, 2), "arena")
    with pytest.raises(ValueError, match=r"threshold=1\.5 is a share of a neuron's variance"):
        neuron_frequencies(noise(5, 5, 2)).clusters(1.5)


def test_what_has_another_shape_is_refused(unchecked) -> None:
    with pytest.raises(ValueError, match=r"x has shape \[9, 10\]; functions of pairs have \[10, 10, \.\.\.\]"):
        FourierBasis(10).diagonals(torch.zeros(9, 10), 1)
    with pytest.raises(ValueError, match=r"logits have shape \[5, 5, 6\]; \[n, n, n\], with the group's n answers"):
        cosine_share(torch.zeros(5, 5, 6))
    with pytest.raises(ValueError, match=r"Neurons over pairs have shape \[n, n, neurons\]; these have \[5, 5\]"):
        neuron_frequencies(torch.zeros(5, 5))
    with pytest.raises(ValueError, match=r"x has shape \[5, 5\]; functions of pairs, \[n, n, m\], are needed"):
        spectrum2(torch.zeros(5, 5))
