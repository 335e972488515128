"""``python -m tuner`` is ``cifar-tune``, where the package lies without its script."""

from tuner.cli import main

main()
