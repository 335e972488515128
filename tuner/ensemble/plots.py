"""Pictures of a confusion matrix and of calibration."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from tuner.data.names import cut
from tuner.metrics.calibration import Bin
from tuner.run import layout
from tuner.storage.files import replacing
from tuner.storage.spreadsheet import write_csv

MOST_LABELLED = 20
"""Maximum number of classes for which each cell and class name is written out."""
LONGEST_LABEL = 24
"""Maximum characters of a class name; longer ones would leave no room for the matrix."""


def write_pictures(
    folder: Path, classes: Sequence[str], confusion: Tensor, bins: Sequence[Bin], title: str
) -> None:
    """Write the confusion matrix as a table and as a picture, and the reliability diagram.

    Args:
        folder: Where to write.
        classes: Names of the K classes.
        confusion: Counts, shape (K, K), rows true, columns predicted.
        bins: The bins that hold an image.
        title: Title above the pictures.
    """
    rows = zip(classes, confusion.tolist(), strict=True)
    head = ["true \\ predicted", *classes]
    write_csv(folder / layout.CONFUSION, head, ([label, *row] for label, row in rows))
    plot_confusion(folder / layout.CONFUSION_PLOT, confusion, classes, title)
    plot_reliability(folder / layout.RELIABILITY_PLOT, bins, title)


def plot_confusion(path: Path, confusion: Tensor, classes: Sequence[str], title: str) -> None:
    """Draw a confusion matrix as a PNG, each row shaded by the share of its class.

    Args:
        path: Where to write.
        confusion: Counts, shape (K, K), rows true, columns predicted.
        classes: Names of the K classes.
        title: Title above the picture.
    """
    num_classes = len(classes)
    side = max(5.0, 0.62 * min(num_classes, MOST_LABELLED) + 2)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    # Names are not formulas, whatever dollar signs they contain.
    axes.set_title(title, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    if num_classes <= MOST_LABELLED:
        labels = [cut(name, LONGEST_LABEL) for name in classes]
        axes.set_xticks(range(num_classes), labels, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(num_classes), labels, parse_math=False)
        for row in range(num_classes):
            for column in range(num_classes):
                colour = "white" if shares[row, column] > 0.5 else "black"
                count = int(confusion[row, column])
                axes.text(column, row, f"{count}", ha="center", va="center", color=colour)
    _save(figure, path)


def plot_reliability(path: Path, bins: Sequence[Bin], title: str) -> None:
    """Draw accuracy against confidence as a PNG, with the number of images in each bin below.

    Bars that end below the diagonal are overconfident (Niculescu-Mizil & Caruana 2005).

    Args:
        path: Where to write.
        bins: The bins that hold an image.
        title: Title above the picture.
    """
    figure = Figure(figsize=(5.5, 6), layout="constrained")
    accuracies, counts = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    lows = [entry.low for entry in bins]
    widths = [entry.high - entry.low for entry in bins]
    shape = {"x": lows, "width": widths, "align": "edge", "edgecolor": "white"}
    accuracies.bar(height=[b.accuracy for b in bins], color="tab:blue", label="accuracy", **shape)
    accuracies.plot(
        [entry.confidence for entry in bins],
        [entry.accuracy for entry in bins],
        "o",
        color="black",
        markersize=4,
        label="mean confidence of the bin",
    )
    accuracies.plot([0, 1], [0, 1], "--", color="grey", label="perfectly calibrated")
    accuracies.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    accuracies.legend(loc="upper left", frameon=False)
    accuracies.set_title(title, parse_math=False)
    counts.bar(height=[entry.count for entry in bins], color="tab:grey", log=True, **shape)
    counts.set(xlabel="confidence", ylabel="images", ylim=(0.5, None))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))  # type: ignore[no-untyped-call]
