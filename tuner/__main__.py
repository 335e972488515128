"""``python -m tuner`` runs ``cifar-tune`` where its script is not installed."""

from tuner.cli import main

main()
