"""``cluster-template``: print a file to start a cluster from."""

from importlib.resources import files

import click

TEMPLATES = {"kuberay": "kuberay.yaml", "ray-up": "ray-up.yaml", "slurm": "slurm.sh"}


@click.command("cluster-template", epilog="Example: cifar-tune cluster-template slurm > search.sh")
@click.argument("kind", type=click.Choice(list(TEMPLATES)))
def cluster_template(kind: str) -> None:
    """Print a template for Kubernetes, a cloud or Slurm."""
    click.echo((files("tuner") / "templates" / TEMPLATES[kind]).read_text(), nl=False)
