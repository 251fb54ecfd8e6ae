import pytest
import pywt
import torch

from stages.methods.wavelet.basis import WaveletBasis
from stages.methods.wavelet.neighbours import FAMILIES, MISSING, groups, max_variables


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Level value")
@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym4", "coif1", "bior2.2"])
@pytest.mark.parametrize("levels", [0, 1, 3])
def test_coefficients_are_those_of_pywavelets(wavelet, levels):
    x = images(2, 3, 16, 32)
    w = WaveletBasis(wavelet, levels, 3, 16, 32).analyse(x).reshape(2, 3, -1)
    for image, flat in zip(x.flatten(0, 1), w.flatten(0, 1), strict=True):
        coarse, *details = pywt.wavedec2(image.numpy(), wavelet, mode="periodization", level=levels)
        parts = [coarse, *(band for level in details for band in level)]
        expected = torch.cat([torch.from_numpy(part).flatten() for part in parts])
        torch.testing.assert_close(flat, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "db8", "sym20", "bior2.2", "dmey"])
def test_adjoint_is_the_transpose_and_inverts_orthonormal_wavelets(wavelet):
    basis = WaveletBasis(wavelet, 2, 2, 16, 8)
    x, w = images(3, 2, 16, 8), images(3, 256)
    inner = (basis.analyse(x) * w).sum()
    torch.testing.assert_close((x * basis.adjoint(w)).sum(), inner, rtol=1e-12, atol=1e-12)
    error = float((basis.adjoint(basis.analyse(x)) - x).abs().max())
    assert basis.is_orthonormal == (wavelet not in ("bior2.2", "dmey"))
    assert (error < 1e-9) == basis.is_orthonormal
    gram = basis.gram()
    assert (float((gram - torch.eye(128, dtype=gram.dtype)).abs().max()) < 1e-9) == (
        basis.is_orthonormal
    )


def test_mosaic_puts_every_band_in_its_corner():
    basis = WaveletBasis("haar", 2, 1, 8, 8)
    values = torch.empty(64)
    for number, band in enumerate(basis.bands):
        values[band.slice] = number
    picture = basis.mosaic(values)[0]
    # A2 0, H2 1, V2 2, D2 3, H1 4, V1 5, D1 6
    assert picture[0, 0] == 0
    assert picture[2, 0] == 1
    assert picture[0, 2] == 2
    assert picture[3, 3] == 3
    assert picture[7, 0] == 4
    assert picture[0, 7] == 5
    assert picture[4, 4] == 6
    assert torch.equal(picture.flatten().sort().values, values.sort().values)


def test_bad_sizes_and_names_are_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"height 28 is not divisible .* 8: use levels=2"):
        WaveletBasis("db2", 3, 1, 28, 32)
    with pytest.raises(ValueError, match=r"width 7 is not divisible .* use levels=0"):
        WaveletBasis("db2", 1, 1, 8, 7)
    with pytest.raises(ValueError, match="did you mean 'db2'"):
        WaveletBasis("bd2", 1, 1, 8, 8)
    with pytest.raises(ValueError, match="discrete wavelet"):
        WaveletBasis("morl", 1, 1, 8, 8)
    with pytest.raises(ValueError, match="levels must be 0 or more"):
        WaveletBasis("db2", -1, 1, 8, 8)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_every_coefficient_is_predicted_once(family, coupled, levels):
    basis = WaveletBasis("haar", levels, 3, 8, 16)
    index, num_targets = groups(basis, family, coupled)
    targets = index[:, :num_targets].flatten()
    targets = targets[targets != MISSING]
    assert torch.equal(targets.sort().values, torch.arange(basis.num_coefficients))
    assert index.shape[1] == max_variables(basis, family, coupled)
    for row in index.tolist():
        present = [i for i in row if i != MISSING]
        assert len(set(present)) == len(present)
        if not coupled:
            assert len({i // basis.size_per_channel for i in present}) == 1


def test_local_squares_wrap_and_drop_repeated_places():
    basis = WaveletBasis("haar", 3, 1, 16, 16)  # bands of side 2, 2, 4, 8
    index, _ = groups(basis, "local")
    sizes = (index != MISSING).sum(1)
    assert sizes[:16].unique().tolist() == [4]  # the bands of side 2
    assert sizes[16:].unique().tolist() == [9]
    # first place of H2, a 4x4 band that starts at 16: rows 3, 0, 1 and columns 3, 0, 1
    expected = sorted(16 + 4 * r + c for r in (3, 0, 1) for c in (3, 0, 1))
    assert index[16, 0] == 16
    assert sorted(index[16].tolist()) == expected


def test_tied_and_parent_neighbours_are_at_the_same_place():
    basis = WaveletBasis("haar", 2, 1, 8, 8)
    named = {band.name: band.offset for band in basis.bands}
    tied, _ = groups(basis, "band-tied")
    assert [named["H1"] + 5, named["V1"] + 5, named["D1"] + 5] in tied.tolist()
    assert [3, MISSING, MISSING] in tied.tolist()
    parents, _ = groups(basis, "parent")
    # V1 at (row 2, column 3) of its 4x4 band: parent V2 at (1, 1) of its 2x2 band
    row = parents[named["V1"] + 11].tolist()
    assert set(row[-3:]) == {named["H1"] + 11, named["D1"] + 11, named["V2"] + 3}
    # D2 at (0, 1): the parent is the approximation there
    row = parents[named["D2"] + 1].tolist()
    assert {named["H2"] + 1, named["V2"] + 1, 1} < set(row)


def test_coupling_adds_the_same_place_of_the_other_channels():
    basis = WaveletBasis("haar", 1, 3, 4, 4)
    index, _ = groups(basis, "independent", couple_channels=True)
    assert sorted(index[16 + 7].tolist()) == [7, 23, 39]
    assert index[16 + 7, 0] == 23
