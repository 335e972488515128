"""What goes into a search: ``space`` and ``data``."""

from dataclasses import replace
from pathlib import Path

import click

from tuner.cli.options import DATA_DIR, IMAGE_SIZE, JSON, STORAGE, option
from tuner.cli.tables import print_json, print_table
from tuner.storage.paths import AnyPath


@click.group()
def space() -> None:
    """Look at a search space."""


@space.command("check", epilog="Example: cifar-tune space check search_spaces/wide.yaml")
@click.argument("file")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@STORAGE
@JSON
def space_check(file: str, overrides: tuple[str, ...], storage: AnyPath, as_json: bool) -> None:
    """Check a space and list its parameters."""
    from tuner.space import find_space, load_space

    checked = load_space(find_space(file), list(overrides), storage)
    rows = [{"parameter": path, "values": values} for path, values in checked.rows()]
    if as_json:
        print_json(rows)
        return
    size = checked.cardinality()
    count = f"{size} configurations" if size is not None else "continuous"
    print_table(rows, f"{file}: {len(rows)} parameters, {count}, {len(checked.baseline)} baselines")


@space.command("sample", epilog="Example: cifar-tune space sample search_spaces/wide.yaml -n 5")
@click.argument("file")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@option("-n", "--number", type=click.IntRange(min=1), default=1, show_default=True)
@option("--seed", type=int, default=0, show_default=True)
@STORAGE
@JSON
def space_sample(
    file: str, overrides: tuple[str, ...], number: int, seed: int, storage: AnyPath, as_json: bool
) -> None:
    """Print configurations drawn from a space, as a search would."""
    import yaml

    from tuner.space import find_space, load_space
    from tuner.tuning.sampling.sampler import Sampler

    drawn = load_space(find_space(file), list(overrides), storage)
    sampler = Sampler(drawn, replace(drawn.search, seed=seed, sampler="random"))
    drawn_configs = map(sampler.ask, range(number))
    configs = [config.to_dict() for config in drawn_configs if config]
    if as_json:
        print_json(configs)
    else:
        click.echo(yaml.safe_dump_all(configs, sort_keys=False).rstrip())


@space.command("schema", epilog="Example: cifar-tune space schema > space.schema.json")
def space_schema() -> None:
    """Print the JSON schema of search spaces, for editors."""
    from tuner.space import json_schema

    print_json(json_schema())


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
