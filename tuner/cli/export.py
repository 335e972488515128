"""``export``: write an ensemble as one file for other programs."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuner.cli.options import ENSEMBLE, JSON, STORAGE, TRUST_CODE, option
from tuner.cli.output import load_ensemble, print_json, print_table
from tuner.console import Console
from tuner.monitor.steps import step
from tuner.run.resuming import short_path
from tuner.schema import plural
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    from tuner.deploy.export import Export


@click.command(epilog="Example: cifar-tune export --ensemble first/top5 --output ensemble.onnx")
@ENSEMBLE
@STORAGE
@option(
    "--format",
    "to",
    type=click.Choice(["onnx", "pt2"]),
    help="What to write: a file for ONNX runtimes, or a torch.export program. [default: by the "
    "suffix of --output]",
)
@option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File to write; an existing file is replaced.",
)
@option(
    "--check",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Compare on the images of this folder, at full size. [default: those kept with the "
    "ensemble]",
)
@TRUST_CODE
@JSON
def export(
    ensemble: str | None,
    storage: AnyPath,
    to: str | None,
    output: Path,
    check: Path | None,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Write an ensemble as one ONNX or PyTorch file.

    The file takes images of any size and returns probabilities. It includes resizing,
    normalization, members, weights and temperatures. It is run at once, and written only if it
    reproduces the ensemble's probabilities.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # About invalid metadata.
    console = Console(stderr=True, highlight=False)
    loaded = load_ensemble(console, storage, ensemble, trust_code=trust_code)
    folder = loaded.path
    # Large ensembles take a minute.
    with step(console, f"Exporting {short_path(folder)}: {plural(len(loaded.members), 'member')}"):
        made = loaded.export(output, format=to, check=check)
    if as_json:
        print_json(made.to_plain())
    else:
        _print(made)


def _print(made: "Export") -> None:
    compared = made.compared
    print(
        f"{made.file}: {made.num_bytes / 1e6:.1f} MB, {plural(made.num_members, 'member')}\n"
        f"Run by {made.runtime} on {compared.num_images} images: probabilities differ by "
        f"{compared.max_difference:.1g} at most, all labels are equal."
    )
    if made.value_range:
        black, white = made.value_range
        print(
            f"It takes 8 bits. Scale deeper images: values {black:g} to {white:g} become 0 to 255."
        )
    if made.resize == "crop":
        print(
            "Where an image's sides differ by an odd number, it crops half a pixel away from where "
            "predict crops files."
        )
    if compared.num_files:
        print(
            f"predict, which decodes large JPEGs at a smaller scale, gives {compared.num_files} "
            f"files the same label in {compared.equal_labels_of_files} cases."
        )
    print()
    rows = [
        {
            "images": str(latency.num_images),
            f"{made.runtime}, ms": f"{latency.exported_ms:.3g}",
            "torch, ms": f"{latency.torch_ms:.3g}",
        }
        for latency in made.latency
    ]
    print_table(rows, "Time on the CPU")
