"""Wrong labels and near-duplicates are found, on real images, well above chance."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from torch import Tensor

from tuner.data.decoding import resized
from tuner.data.near_duplicates import near_duplicates
from tuner.voting.label_errors import confident_joint, label_errors

SWAPPED = 0.05


def test_swapped_labels_of_digits_are_found() -> None:
    digits = load_digits()
    random = np.random.RandomState(0)
    wrong = random.choice(len(digits.target), int(SWAPPED * len(digits.target)), replace=False)
    labels = digits.target.copy()
    labels[wrong] = (labels[wrong] + random.randint(1, 10, len(wrong))) % 10
    model = LogisticRegression(max_iter=200)
    probs = cross_val_predict(model, digits.data / 16, labels, cv=5, method="predict_proba")
    found = label_errors(torch.from_numpy(probs), torch.from_numpy(labels)).tolist()
    hits = len(set(found) & set(wrong.tolist()))
    assert hits / len(found) > 0.75
    assert hits / len(wrong) > 0.75
    # The likeliest first.
    assert len(set(found[:20]) & set(wrong.tolist())) >= 19


def test_the_joint_counts_each_image_once_and_follows_the_order_of_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(200, 4, generator=generator).softmax(dim=1)
    labels = torch.randint(4, (200,), generator=generator)
    joint = confident_joint(probs, labels)
    torch.testing.assert_close(joint.sum(dim=1), torch.bincount(labels, minlength=4).double())
    order = torch.tensor([2, 0, 3, 1])
    permuted = confident_joint(probs[:, order], order.argsort()[labels])
    torch.testing.assert_close(permuted, joint[order][:, order])


def test_sure_and_right_probabilities_leave_nothing_to_find() -> None:
    labels = torch.arange(30) % 3
    probs = torch.full((30, 4), 0.02, dtype=torch.float64)
    probs[torch.arange(30), labels] = 0.94  # Class 3 has no image.
    assert label_errors(probs, labels).tolist() == []
    probs[5] = torch.tensor([0.96, 0.0, 0.02, 0.02], dtype=torch.float64)
    assert label_errors(probs, labels).tolist() == [5]


@pytest.fixture(scope="module")
def tiles() -> Tensor:
    """Return tiles of two real photos that do not overlap, 80 images of 32 x 32 pixels."""
    photos = [
        torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
        for photo in load_sample_images().images
    ]
    parts = [
        photo[:, :, top : top + 80, left : left + 80]
        for photo in photos
        for top in range(0, 400, 80)
        for left in range(0, 640, 80)
    ]
    return resized(torch.cat(parts), 32)


@pytest.mark.parametrize("change", ["none", "darker", "shifted", "noisy"])
def test_near_copies_are_found_and_other_images_are_not(tiles: Tensor, change: str) -> None:
    copies = tiles[::4].float()
    generator = torch.Generator().manual_seed(0)
    if change == "darker":
        copies = 0.7 * copies
    elif change == "shifted":
        copies = copies.roll(1, dims=3)
    elif change == "noisy":
        copies += 4 * torch.randn(copies.shape, generator=generator)
    blank = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    tests = torch.cat([copies.clamp(0, 255).round().to(torch.uint8), blank])
    pairs = {i: other for i, other, _ in near_duplicates(tests, torch.cat([tiles, blank]))}
    assert len(pairs) >= 0.7 * len(copies)
    assert all(other == 4 * index for index, other in pairs.items())
    rest = tiles[torch.arange(len(tiles)) % 4 != 0]
    assert len(list(near_duplicates(tests, rest))) <= 2
