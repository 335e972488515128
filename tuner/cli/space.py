"""``space``: check, sample and describe search spaces."""

from dataclasses import replace

import click

from tuner.cli import completion
from tuner.cli.options import JSON, STORAGE, option
from tuner.cli.output import print_json, print_table
from tuner.schema import plural
from tuner.storage.paths import AnyPath


@click.group()
def space() -> None:
    """Check, sample and describe search spaces."""


@space.command("check", epilog="Example: cifar-tune space check wide")
@click.argument("file", shell_complete=completion.spaces)
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
    count = plural(size, "configuration") if size is not None else "continuous"
    told = [plural(len(rows), "parameter"), count, plural(len(checked.baseline), "baseline")]
    if checked.search.costs:
        told.append(f"by {checked.search.objectives}")
    print_table(rows, f"{file}: {', '.join(told)}")


@space.command("sample", epilog="Example: cifar-tune space sample wide -n 5")
@click.argument("file", shell_complete=completion.spaces)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@option(
    "-n",
    "--number",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of configurations to draw.",
)
@option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the draws.",
)
@STORAGE
@JSON
def space_sample(
    file: str, overrides: tuple[str, ...], number: int, seed: int, storage: AnyPath, as_json: bool
) -> None:
    """Print configurations as a search would try them: the baselines first, then random ones.

    Limits on networks, which depend on the images, are not applied.
    """
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
