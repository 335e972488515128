"""``data``: prepare data sets and look at them."""

from pathlib import Path

import click

from tuner.cli.options import DATA_DIR, IMAGE_SIZE, JSON
from tuner.cli.output import print_json


@click.group()
def data() -> None:
    """Prepare data sets and look at them."""


@data.command("prepare", epilog="Example: cifar-tune data prepare cifar10")
@click.argument("source", metavar="[DATA]", default="cifar10")
@DATA_DIR
@IMAGE_SIZE
@JSON
def data_prepare(source: str, data_dir: Path, image_size: int | None, as_json: bool) -> None:
    """Fetch and decode a data set, so that searches start at once."""
    from tuner.config import DataConfig
    from tuner.data.splits import load_splits, load_test

    config = DataConfig(source=source, image_size=image_size)
    splits = load_splits(config, data_dir)
    test = load_test(config, data_dir)
    total = len(splits.train.labels) + len(splits.val.labels) + len(test.images.labels)
    if as_json:
        print_json({"data": source, "images": total})
    else:
        click.echo(f"{source} is ready: {total} images.")


@data.command("info", epilog="Example: cifar-tune data info digits")
@click.argument("source", metavar="[DATA]", default="cifar10")
@DATA_DIR
@IMAGE_SIZE
@JSON
def data_info(source: str, data_dir: Path, image_size: int | None, as_json: bool) -> None:
    """Describe a data set's training images: sizes, classes, fingerprint."""
    from tuner.config import DataConfig
    from tuner.data.splits import load_splits

    splits = load_splits(DataConfig(source=source, image_size=image_size), data_dir)
    info = {
        "data": source,
        "classes": list(splits.classes),
        "image_shape": list(splits.image_shape),
        "training_images": len(splits.train.labels),
        "validation_images": len(splits.val.labels),
        "mean": [round(value, 4) for value in splits.mean],
        "std": [round(value, 4) for value in splits.std],
        "fingerprint": splits.fingerprint,
        "split_fingerprint": splits.split_fingerprint,
    }
    if as_json:
        print_json(info)
        return
    for key, value in info.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        click.echo(f"{key.replace('_', ' '):18} {text}")
