"""Scores of a representation that stand beside the ICR: alignment, uniformity, RankMe, probe.

Alignment and uniformity: Wang and Isola 2020, arXiv 2005.10242, section 4. RankMe: Garrido et al.
2023, arXiv 2210.02885, equation 1. All are computed in float64 on the CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.methods import given

RIDGES = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 9))


def alignment(features: Tensor, power: float = 2.0) -> float:
    """Mean distance to `power` between two views of one image, on the unit sphere; >= 0, low good.

    features (n, V, d), V >= 2. With power 2 it lies in [0, 4]. Mean over all pairs of views (ours;
    the paper draws one pair).
    """
    points = _on_sphere(features, "alignment")
    num_views = points.shape[1]
    if num_views < 2:
        raise ValueError("features hold one view an image; alignment needs at least two views")
    first, second = torch.triu_indices(num_views, num_views, offset=1)
    distance = (points[:, first] - points[:, second]).norm(dim=-1)
    return distance.pow(power).mean().item()


def uniformity(features: Tensor, temperature: float = 2.0) -> float:
    """log mean exp(-t |a - b|^2) over pairs of different images, on the unit sphere; low good.

    features (n, V, d), n >= 2, t = `temperature`; at most 0. Pairs are taken within one view and
    averaged over the views inside the logarithm, so that no image is paired with itself.
    """
    points = _on_sphere(features, "uniformity")
    num_images = points.shape[0]
    if num_images < 2:
        raise ValueError("features hold one image; uniformity compares images, give at least two")
    views = points.transpose(0, 1)
    squared = (2 - 2 * views @ views.transpose(1, 2)).clamp_min(0)
    first, second = torch.triu_indices(num_images, num_images, offset=1)
    return squared[:, first, second].mul(-temperature).exp().mean().log().item()


def rankme(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values: an effective rank in [1, d].

    features (N, d), or (n, V, d), whose views are then stacked as rows. Not centred, as in the
    paper. Raises ValueError for features that are all zero.
    """
    features = _float64(features, "rankme", (2, 3))
    values = torch.linalg.svdvals(features.reshape(-1, features.shape[-1]))
    if values[0] == 0:
        raise ValueError("rankme: features are all zero; tap another layer")
    share = values / values.sum()
    return torch.special.entr(share).sum().exp().item()


def probe_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ridge: float | None = None,
) -> float:
    """Held-out accuracy, in [0, 1], of a linear probe; see `probe_right`."""
    right = probe_right(train_features, train_labels, test_features, test_labels, ridge)
    return right.double().mean().item()


def probe_right(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ridge: float | None = None,
) -> Tensor:
    """Which held-out rows, (N,) bool, a linear probe classifies rightly: ridge regression onto
    one-hot labels.

    features (N, d), labels (N,) integers. Features are standardised by the training set and a free
    intercept is fitted; the penalty is `ridge` times N. Unset, `ridge` is the one among RIDGES that
    classifies the training images best by exact leave-one-out prediction, the larger at a tie.
    Closed form, so nothing about it is random (raw pixels of digits: .963, and .976 by logistic
    regression).

    Raises ValueError for sizes that do not fit and for fewer than two classes.
    """
    train = _float64(train_features, "probe: train_features", (2,))
    test = _float64(test_features, "probe: test_features", (2,))
    train_labels = given.tensor(train_labels, "probe: train_labels")
    test_labels = given.tensor(test_labels, "probe: test_labels")
    for name, rows, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if labels.shape != (len(rows),):
            raise ValueError(
                f"probe: {name}_labels have shape {tuple(labels.shape)} for {len(rows)} features"
            )
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"probe: train_features have {train.shape[1]} columns, test_features {test.shape[1]}"
        )
    classes, targets = train_labels.cpu().unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError("probe: train_labels hold one class; a probe needs at least two")
    mean, scale = train.mean(dim=0), train.std(dim=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    train, test = (train - mean) / scale, (test - mean) / scale
    onehot = F.one_hot(targets, len(classes)).to(train)
    weights = _ridge_weights(train, onehot, targets, ridge)
    predicted = classes[(test @ weights + onehot.mean(dim=0)).argmax(dim=1)]
    return predicted == test_labels.cpu()


def _ridge_weights(centred: Tensor, onehot: Tensor, targets: Tensor, ridge: float | None) -> Tensor:
    """Weights (d, classes) of the ridge fit to centred rows with a free intercept."""
    num_rows = len(centred)
    offset = onehot.mean(dim=0)
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    spread = left.T @ (onehot - offset)

    def fitted(candidate: float) -> Tensor:
        return left @ ((values**2 / (values**2 + candidate * num_rows))[:, None] * spread)

    def left_out_accuracy(candidate: float) -> float:
        shrink = values**2 / (values**2 + candidate * num_rows)
        leverage = (left**2 @ shrink + 1 / num_rows).clamp_max(1 - 1e-12)
        # Leave-one-out residual of a linear smoother: (y - yhat) / (1 - leverage).
        residual = (onehot - offset - fitted(candidate)) / (1 - leverage)[:, None]
        return ((onehot - residual).argmax(dim=1) == targets).double().mean().item()

    if ridge is None:
        ridge = max(RIDGES, key=lambda candidate: (left_out_accuracy(candidate), candidate))
    elif not 0 <= ridge < float("inf"):
        raise ValueError(
            f"ridge is {ridge}; it must be at least 0 and finite, or None to choose it"
        )
    shrink = torch.where(values > 0, values / (values**2 + ridge * num_rows), values)
    return right.T @ (shrink[:, None] * spread)


def _float64(features: Tensor, name: str, ranks: tuple[int, ...]) -> Tensor:
    features = given.tensor(features, name).detach()
    if features.ndim not in ranks or 0 in features.shape:
        shapes = {2: "(N, d)", 3: "(n, views, d)"}
        wanted = " or ".join(shapes[rank] for rank in ranks)
        raise ValueError(f"{name} has shape {tuple(features.shape)}; give {wanted}, none 0")
    if not torch.isfinite(features).all():
        raise ValueError(f"{name} holds values that are not finite; check the network's output")
    return features.to("cpu", torch.float64)


def _on_sphere(features: Tensor, name: str) -> Tensor:
    features = _float64(features, name, (3,))
    norms = features.norm(dim=-1, keepdim=True)
    if (norms == 0).any():
        raise ValueError(
            f"{name}: a feature vector is zero and has no direction; tap another layer"
        )
    return features / norms
