"""Layout of the help: commands by workflow, options of a search by topic."""

from collections.abc import Iterable, Mapping

import click

COMMANDS = {
    "Search": ("search", "plan", "refit", "rerun", "space", "data"),
    "Look": ("leaderboard", "show", "runs", "report", "compare", "check", "guide"),
    "Combine": ("ensemble", "distill"),
    "Use": ("predict", "evaluate", "export", "serve"),
    "Cluster": ("doctor", "cluster-template"),
}
"""Commands of each section; those of no section come last."""
OPTIONS = {
    "What to search, on which images": (
        *("space", "ensemble", "into", "top", "data", "data_dir", "image_size", "resize"),
        *("val_fraction", "folds", "train_limit", "all_data", "skip_broken", "warm_start"),
    ),
    "How to search": (
        *("trials", "epochs", "sampler", "scheduler", "metric", "purpose", "patience", "seed"),
        *("seeds", "time_budget", "gpu_hours", "measure"),
    ),
    "What each trial gets": (
        *("gpus_per_trial", "cpus_per_trial", "concurrent", "compile_mode", "max_failures"),
        "address",
    ),
    "The run and its files": (
        *("name", "resume", "storage", "keep", "save_seconds", "log", "study_storage"),
        "trust_code",
    ),
    "Output": ("as_json", "quiet", "_click_default_help"),
}
"""Parameter names of a search by section; those of no section come last."""


class WorkflowGroup(click.Group):
    """A group that lists its commands by workflow."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, one section per group."""
        names = self.list_commands(ctx)
        width = max(map(len, names))
        for title, members in _grouped(COMMANDS, names, "Other"):
            rows = []
            for name in members:
                command = self.get_command(ctx, name)
                if command is not None and not command.hidden:
                    rows.append((f"{name:{width}}", command.get_short_help_str(limit=60)))
            with formatter.section(title):
                formatter.write_dl(rows)


class SearchCommand(click.Command):
    """A command whose many options are listed in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, one section per group."""
        records = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                records[str(parameter.name)] = record
        for title, names in _grouped(OPTIONS, records, "Other"):
            with formatter.section(title):
                formatter.write_dl([records[name] for name in names])


def _grouped(
    groups: Mapping[str, Iterable[str]], names: Iterable[str], others: str
) -> list[tuple[str, list[str]]]:
    """Divide names into groups, and leave out empty groups."""
    names = list(names)
    placed = {name for group in groups.values() for name in group}
    found = {title: [name for name in group if name in names] for title, group in groups.items()}
    found[others] = [name for name in names if name not in placed]
    return [(title, members) for title, members in found.items() if members]
