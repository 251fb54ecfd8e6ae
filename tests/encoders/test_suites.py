"""Networks of published protocols, on files of the published structure made here."""

import pytest
import torch
from torch.nn import functional as F

from stages.encoders import suites
from stages.encoders.weights import MissingWeightsError
from stages.methods.torchvision_shim import prepare_torchvision
from tests import dinov2_like, inception_like


def pixels(count, side, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return inception_like.write(folder / "inception-2015-12-05.pt")


def test_features_maps_and_logits_are_the_files_own(file):
    ours, network = suites.load("inception", str(file)), torch.jit.load(file)
    images = pixels(3, 20)
    found = ours(images)
    with torch.no_grad():
        features = network(images, return_features=True)
        torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-5)
        probabilities = network(images, no_output_bias=True)
        torch.testing.assert_close(found.logits.softmax(1), probabilities, rtol=1e-4, atol=1e-7)
        biased = network(images)
    assert (found.logits.softmax(1) - biased).abs().max() > 1e-4
    assert found.spatial.shape == (3, 7, 17, 17)
    assert found.spatial.min() == 0  # after the ReLU
    assert "TensorFlow" in ours.resize
    grey = images[:, :1]
    torch.testing.assert_close(ours(grey).features, ours(grey.expand(-1, 3, -1, -1)).features)
    with pytest.raises(ValueError, match=r"give uint8"):
        ours(images.float())


def test_a_file_with_another_resize_or_structure_is_refused(tmp_path):
    other = inception_like.write(tmp_path / "other.pt", shift=0.0)
    with pytest.raises(ValueError, match=r"features differ by .* after TensorFlow's resize"):
        suites.load("inception", str(other))
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "linear.pt")
    with pytest.raises(ValueError, match="cannot be read as the weights of 'inception'"):
        suites.load("inception", str(tmp_path / "linear.pt"))
    with pytest.raises(MissingWeightsError, match=r"set evaluate\.weights"):
        suites.load("inception", str(tmp_path / "none"))


def test_positions_are_resampled_at_the_hubs_points():
    """Every place by its own sampling point and Keys' kernel, a = -0.75, edges repeated."""
    table = torch.randn(1, 1 + 49, 3, generator=torch.Generator().manual_seed(0))
    found = suites.hub_positions(table, 4)
    assert found.shape == (1, 17, 3)
    assert torch.equal(found[:, 0], table[:, 0])
    grid = table[0, 1:].view(7, 7, 3).double()

    def kernel(x, a=-0.75):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    def weights(place):
        at = (place + 0.5) / ((4 + 0.1) / 7) - 0.5
        row = torch.zeros(7, dtype=torch.float64)
        for j in range(int(at // 1) - 1, int(at // 1) + 3):
            row[min(max(j, 0), 6)] += kernel(at - j)
        return row

    matrix = torch.stack([weights(i) for i in range(4)])
    expected = torch.einsum("ia,jb,abd->ijd", matrix, matrix, grid).view(16, 3)
    torch.testing.assert_close(found[0, 1:].double(), expected, rtol=0, atol=1e-4)
    smooth = F.interpolate(grid.permute(2, 0, 1)[None], (4, 4), mode="bicubic", antialias=True)[
        0
    ].permute(1, 2, 0)
    assert (smooth.reshape(16, 3) - expected).abs().max() > 0.1
    assert suites.hub_positions(table, 7) is table


def test_dinov2_reads_its_file_at_full_size_and_resamples(tmp_path, monkeypatch):
    prepare_torchvision()
    import timm

    file = dinov2_like.write(tmp_path / "dinov2_vitl14_pretrain.pth")
    with pytest.raises(ValueError, match="cannot be read as the weights of 'dinov2-large'"):
        suites.load("dinov2-large", str(file))  # which has 24 blocks
    monkeypatch.setattr(suites, "DINO_DEPTH", dinov2_like.DEPTH)
    made = suites.load("dinov2-large", str(file))
    images = pixels(2, 40)
    found = made(images).features
    assert found.shape == (2, 1024)
    # With the positions put in by hand.
    by_hand = timm.create_model(
        "vit_large_patch14_dinov2", num_classes=0, img_size=224, depth=dinov2_like.DEPTH
    ).eval()
    state = torch.load(file, weights_only=True)
    del state["mask_token"]
    state["pos_embed"] = suites.hub_positions(state["pos_embed"], 16)
    by_hand.load_state_dict(state)
    x = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True) / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = by_hand.forward_features((x - mean) / std)[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
