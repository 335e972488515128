"""Layout of the help: commands by workflow, options of a search by topic."""

from typing import Any

import click

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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections: dict[str, tuple[click.Command, ...]] = {}

    def add_section(self, title: str, *commands: click.Command) -> None:
        """Add commands, which the help lists under this title."""
        self.sections[title] = commands
        for command in commands:
            self.add_command(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, one section per group."""
        width = max(map(len, self.commands))
        for title, commands in self.sections.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (f"{command.name!s:{width}}", command.get_short_help_str(limit=60))
                        for command in commands
                    ]
                )


class SearchCommand(click.Command):
    """A command whose many options are listed in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, one section per group."""
        records = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                records[str(parameter.name)] = record
        known = {name for names in OPTIONS.values() for name in names}
        others = tuple(name for name in records if name not in known)
        for title, names in {**OPTIONS, "Other": others}.items():
            if rows := [records[name] for name in names if name in records]:
                with formatter.section(title):
                    formatter.write_dl(rows)
