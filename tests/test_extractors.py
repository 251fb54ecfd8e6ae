"""Extractors: agreement with clean-fid and timm, validation of the embedded one, clear refusals."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from stages.data import image_files
from stages.encoders import embedded as encoders_embedded
from stages.encoders import pretrained
from stages.encoders.classifier import accuracy, train_classifier
from stages.encoders.weights import MissingWeightsError
from stages.methods import frechet
from stages.methods.torchvision_shim import prepare_torchvision
from stages.nets.encoders import EmbeddedCNN


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.RandomState(0).permutation(len(data.images))
    images = torch.tensor(data.images[order] / 8 - 1, dtype=torch.float32)[:, None]
    return images, torch.tensor(data.target[order])


@pytest.fixture(scope="module")
def trained(digits):
    torch.set_num_threads(1)
    images, labels = digits
    progress = []
    before = torch.get_rng_state()
    network = train_classifier(images[:1500], labels[:1500], 10, 8, 0, progress=progress.append)
    assert torch.equal(torch.get_rng_state(), before)
    return network, progress


@pytest.fixture(scope="module")
def embedded(trained):
    return encoders_embedded.embedded(trained[0].state_dict())


def test_embedded_extractor_reads_digits(digits, trained):
    network, progress = trained
    assert accuracy(network, digits[0][1500:], digits[1][1500:]) >= 0.98
    assert [p.epoch for p in progress] == list(range(1, 9))
    assert progress[-1].loss < progress[0].loss / 10
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_training_depends_on_its_seed_alone(digits):
    images, labels = digits[0][:200], digits[1][:200]
    torch.manual_seed(1)
    first = train_classifier(images, labels, 10, 2, 3, shift_pixels=1).state_dict()
    torch.manual_seed(2)
    again = train_classifier(images, labels, 10, 2, 3, shift_pixels=1).state_dict()
    other = train_classifier(images, labels, 10, 2, 4, shift_pixels=1).state_dict()
    assert encoders_embedded.state_hash(first) == encoders_embedded.state_hash(again)
    assert encoders_embedded.state_hash(first) != encoders_embedded.state_hash(other)


def test_training_refuses_bad_labels_and_images(digits):
    images, labels = digits[0][:50], digits[1][:50]
    with pytest.raises(ValueError, match="labels run from 0 to 9; with num_classes=9"):
        train_classifier(images, labels, 9, 1)
    with pytest.raises(ValueError, match="one integer for each of the 50 images"):
        train_classifier(images, labels[:20], 10, 1)
    with pytest.raises(ValueError, match=r"outside \[-1, 1\]"):
        train_classifier(images * 16, labels, 10, 1)
    with pytest.raises(ValueError, match="epochs is 0"):
        train_classifier(images, labels, 10, 0)


def blurred(images, amount):
    kernel = torch.tensor([amount, 1.0, amount])
    kernel = torch.outer(kernel, kernel) / (1 + 2 * amount) ** 2
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel[None, None])


@pytest.mark.parametrize("spatial", [False, True])
def test_embedded_distance_rises_with_noise_blur_and_dropped_classes(digits, embedded, spatial):
    images, labels = digits
    real, degraded, classes = images[:900], images[900:1500], labels[900:1500]
    noise = torch.randn(degraded.shape, generator=generator())

    reference = encoders_embedded.extract(embedded, real)

    def distance(changed):
        found = encoders_embedded.extract(embedded, changed)
        if spatial:
            return frechet.distance_from_features(
                found.spatial.flatten(1), reference.spatial.flatten(1)
            )
        return frechet.distance_from_features(found.features, reference.features)

    by_noise = [distance(degraded + s * noise) for s in (0, 0.1, 0.2, 0.4, 0.8)]
    by_blur = [distance(blurred(degraded, s)) for s in (0, 0.1, 0.2, 0.4, 0.8)]
    by_classes = [distance(degraded[classes >= dropped]) for dropped in (0, 1, 2, 4, 7)]
    for distances in (by_noise, by_blur, by_classes):
        assert distances == sorted(distances)
        assert distances[-1] > 5 * distances[0]


def test_embedded_interface(digits, trained, embedded):
    images = digits[0][:300]
    found = encoders_embedded.extract(embedded, images, batch_size=77)
    direct = trained[0](images)
    assert embedded.dimension == found.features.shape[1] == 64
    torch.testing.assert_close(found.features, direct.features)
    torch.testing.assert_close(found.logits, direct.logits)
    torch.testing.assert_close(found.spatial, direct.spatial[:, :7])
    stream = encoders_embedded.extract(embedded, iter(images.split(50)))
    torch.testing.assert_close(stream.features, found.features)
    state = trained[0].state_dict()
    assert embedded.weights_hash == encoders_embedded.state_hash(dict(reversed(state.items())))
    changed = {k: v.clone() for k, v in state.items()}
    changed["hidden.bias"][0] += 1e-6
    assert encoders_embedded.state_hash(changed) != embedded.weights_hash


def test_spatial_features_of_larger_images_stay_few():
    network = EmbeddedCNN(3, 10).eval()
    found = encoders_embedded.embedded(network.state_dict())(torch.zeros(2, 3, 32, 24))
    assert found.spatial.shape == (2, 7, 8, 8)


def test_images_with_nan_are_named(digits, embedded):
    images = digits[0][:300].clone()
    images[[210, 217], 0, 3, 3] = math.nan
    with pytest.raises(ValueError, match=r"pixels are NaN or infinite in image 210 \(and of 1"):
        encoders_embedded.extract(embedded, images, batch_size=100)
    with pytest.raises(ValueError, match=r"infinite in x210\.png"):
        encoders_embedded.extract(embedded, images, names=[f"x{i}.png" for i in range(300)])
    broken = {k: v.clone() for k, v in EmbeddedCNN(1, 10).state_dict().items()}
    broken["hidden.weight"][0, 0] = math.inf
    with pytest.raises(ValueError, match="features are NaN or infinite in image 0"):
        encoders_embedded.extract(encoders_embedded.embedded(broken), digits[0][:3])


def test_wrong_shapes_states_and_emptiness(digits, embedded):
    with pytest.raises(ValueError, match="3 channels and the embedded extractor was trained on 1"):
        embedded(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="not empty"):
        embedded(digits[0][:0])
    with pytest.raises(ValueError, match="no images"):
        encoders_embedded.extract(embedded, iter([]))
    with pytest.raises(ValueError, match="not that of an EmbeddedCNN"):
        encoders_embedded.embedded({"weight": torch.zeros(3)})


def test_unknown_and_missing_weights(tmp_path):
    with pytest.raises(ValueError, match="unknown extractor 'inceptoin'; did you mean 'inception'"):
        pretrained.load("inceptoin", tmp_path)
    with pytest.raises(ValueError, match="has no weight file; train it"):
        pretrained.load("embedded", tmp_path)
    with pytest.raises(MissingWeightsError) as caught:
        pretrained.load("inception", tmp_path, setting="teacher.weights")
    message = str(caught.value)
    for part in ("inception-2015-12-05.pt", str(tmp_path), "set teacher.weights"):
        assert part in message
    with pytest.raises(
        MissingWeightsError, match=r"^dinov2-base .* dinov2_vitb14_pretrain\.pth or"
    ):
        pretrained.load("dinov2-base", tmp_path)


@pytest.mark.parametrize("kind", ["inception", "dinov2-small"])
def test_files_that_hold_no_weights_are_refused_in_words(tmp_path, kind):
    file = tmp_path / "weights.pth"
    file.write_text("not weights")
    with pytest.raises(ValueError, match=r"weights\.pth cannot be read as the weights of"):
        pretrained.load(kind, file)


class TinyLayers(nn.Module):
    """Stands for Inception's layers: (B, 3, 299, 299) to (B, 2048)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 7, stride=23)
        self.last = nn.Conv2d(8, 2048, 13)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


class TinyInception(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = TinyLayers()

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def inception_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    network = TinyInception()
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.normal_(0, fan_in**-0.5, generator=generator())
    torch.jit.script(network).save(str(folder / "inception-2015-12-05.pt"))
    return folder


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_inception_gives_clean_fids_numbers_on_the_same_files(tmp_path, inception_dir, mode):
    prepare_torchvision()
    from cleanfid.fid import fid_from_feats, get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    ours, theirs = [], []
    extractor = pretrained.load("inception", inception_dir)
    model = InceptionV3W(str(inception_dir), download=False)
    for name, seed in (("a", 0), ("b", 1)):
        folder = tmp_path / name
        folder.mkdir()
        random = np.random.RandomState(seed)
        for i in range(12):
            shape = (20, 26, 3)[: 3 if mode == "RGB" else 2]
            pixels = random.randint(0, 256 - 60 * seed, shape)
            Image.fromarray(pixels.astype(np.uint8), mode).save(folder / f"{i:02}.png")
        images, names = image_files.read_images(folder)
        images = torch.from_numpy(images) / 127.5 - 1
        assert names[0] == "00.png"
        grey = images[:, :1] if mode == "L" else images
        ours.append(encoders_embedded.extract(extractor, grey, batch_size=5).features)
        theirs.append(
            get_folder_features(
                str(folder), model, num_workers=0, device="cpu", mode="clean", verbose=False
            )
        )
        assert np.allclose(ours[-1].numpy(), theirs[-1], atol=1e-5)
    # Few features of the many, so that clean-fid's square root is real and quick.
    few = [x[:, :6].double() for x in ours]
    expected = fid_from_feats(*(x[:, :6].astype(np.float64) for x in theirs))
    assert frechet.from_features(*few).distance == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert len(extractor.weights_hash) == 64


@pytest.mark.parametrize("suffix", ["pth", pytest.param("safetensors", marks=pytest.mark.slow)])
def test_dinov2_reads_a_local_file(tmp_path, suffix):
    prepare_torchvision()
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=224).eval()
    state = {k: v.contiguous() for k, v in network.state_dict().items()}
    if suffix == "pth":
        torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    else:
        save_file(state, tmp_path / "vit_small_patch14_dinov2.safetensors")
    extractor = pretrained.load("dinov2-small", tmp_path)
    images = torch.rand(2, 1, 16, 16, generator=generator()) * 2 - 1
    found = encoders_embedded.extract(extractor, images)
    assert found.features.shape == (2, extractor.dimension) == (2, 384)
    assert found.spatial.shape == (2, 7, 16, 16)
    large = F.interpolate(
        images.expand(-1, 3, -1, -1), size=(224, 224), mode="bicubic", antialias=True
    )
    mean, std = (torch.tensor(network.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    inputs = ((large.clamp(-1, 1) + 1) / 2 - mean) / std
    with torch.no_grad():
        patches, prefix = network.forward_intermediates(
            inputs, indices=1, return_prefix_tokens=True, norm=True, output_fmt="NLC"
        )[1][0]
    torch.testing.assert_close(found.features, prefix[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        found.spatial[:, :, 2, 5], patches[:, 2 * 16 + 5, :7], atol=1e-4, rtol=1e-4
    )


def test_folders_of_images(tmp_path):
    def save(name, size=(6, 4)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        return pixels

    with pytest.raises(ValueError, match="does not exist"):
        image_files.read_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no images"):
        image_files.read_images(tmp_path)
    pixels = save("b.png")
    save("deep/a.PNG")
    (tmp_path / ".hidden").write_text("x")
    images, names = image_files.read_images(tmp_path)
    assert names == ["b.png", "deep/a.PNG"]
    assert images.shape == (2, 3, 4, 6)
    assert np.array_equal(images[0], pixels.transpose(2, 0, 1))
    (tmp_path / "notes.svg").write_text("not an image")
    with pytest.raises(ValueError, match=r"1 of 3 files .* not images .* the first notes\.svg"):
        image_files.read_images(tmp_path)
    (tmp_path / "notes.svg").rename(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"c\.png is not a readable image"):
        image_files.read_images(tmp_path)
    save("c.png", size=(8, 4))
    with pytest.raises(ValueError, match=r"b\.png is 6x4 and c\.png is 8x4"):
        image_files.read_images(tmp_path)
