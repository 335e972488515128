"""Pictures can be opened, show what they are about, and bear any class names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from tuner.ensemble.plots import plot_confusion, plot_reliability
from tuner.metrics.calibration import Bin


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "confusion.png"


def names(num_classes: int) -> list[str]:
    return [f"class {number}" for number in range(num_classes)]


def draw(path: Path, confusion: Tensor, classes: list[str] | None = None) -> np.ndarray:
    plot_confusion(path, confusion, classes or names(len(confusion)), "run: vote of 5")
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("num_classes", [2, 10, 20, 21, 100])
def test_a_confusion_matrix_of_any_size_is_a_picture(path: Path, num_classes: int) -> None:
    pixels = draw(path, 100 * torch.eye(num_classes, dtype=torch.long) + 1)
    height, width, _ = pixels.shape
    assert 400 < height < width < 2000
    assert len(np.unique(pixels.astype(int) @ (1, 256, 65536))) > 50, "it is blank"
    assert list(path.parent.iterdir()) == [path]


def test_the_diagonal_is_dark_where_it_holds_the_most(path: Path) -> None:
    right = draw(path, 90 * torch.eye(3, dtype=torch.long) + 5)
    wrong = draw(path, 90 * torch.eye(3, dtype=torch.long).flip(1) + 5)
    assert right.shape == wrong.shape
    # The cell at the top left is a third of the matrix from its corner.
    row, column = right.shape[0] // 5, right.shape[1] // 4
    assert right[row, column].sum() < wrong[row, column].sum() - 200


def test_each_row_is_shaded_by_the_share_of_its_class(path: Path) -> None:
    pixels = draw(path, torch.tensor([[900, 100], [1, 1]]))
    filled = {
        share: (pixels == colormaps["Blues"](share, bytes=True)[:3]).all(axis=2).mean()
        for share in (0.9, 0.1, 0.5)
    }
    assert filled[0.9] > 0.1
    assert filled[0.1] > 0.1
    assert filled[0.5] > 0.2, "the second class is half right, as few as its images are"


def test_a_class_without_an_image_is_drawn_as_none(path: Path) -> None:
    draw(path, torch.tensor([[0, 0], [3, 4]]))


@pytest.mark.parametrize(
    "name", [r"$\foo$", "a_b^c", "50 % {off}", "<b>&amp;", "x" * 200, "Äpfel", "_hidden", ""]
)
def test_any_class_name_can_be_drawn(path: Path, name: str) -> None:
    draw(path, torch.ones(2, 2, dtype=torch.long), [name, "other"])


def test_any_title_can_be_drawn(path: Path) -> None:
    plot_confusion(path, torch.ones(2, 2, dtype=torch.long), names(2), r"$\run$ 50 %")


def test_a_picture_takes_the_place_of_an_older_one(path: Path) -> None:
    one = draw(path, torch.tensor([[9, 1], [1, 9]]))
    other = draw(path, torch.tensor([[1, 9], [9, 1]]))
    assert not np.array_equal(one, other)


# Reliability


def bins(accuracy: float) -> list[Bin]:
    return [
        Bin(
            low=n / 15, high=(n + 1) / 15, count=10**n, confidence=(n + 0.5) / 15, accuracy=accuracy
        )
        for n in (3, 4, 5)
    ]


def blue_share(path: Path) -> float:
    """Return the share of the picture that its bars of accuracy fill."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return float((pixels == (31, 119, 180)).all(axis=2).mean())


def test_a_reliability_diagram_has_a_bar_for_each_bin(path: Path) -> None:
    areas = []
    for accuracy in (0.9, 0.45):
        plot_reliability(path, bins(accuracy), r"$\run$ 50 %")
        areas.append(blue_share(path))
    # The legend's patch is blue, too.
    assert areas[0] == pytest.approx(2 * areas[1], rel=0.1)
    plot_reliability(path, bins(0.9)[:1], "run")
    assert blue_share(path) == pytest.approx(areas[0] / 3, rel=0.1)
    assert list(path.parent.iterdir()) == [path]
