"""The measured networks, each with its batch size and the target ratio over the earlier rate."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A training, as plain values that earlier checkouts can also read."""

    model: dict[str, Any]
    batch_size: int = 128
    optimizer: dict[str, Any] = field(default_factory=lambda: {"sgd": {"lr": 0.01}})
    target: float
    """Minimum ratio of the captured rate to the eager one of commit a475a52."""

    def config(self, epochs: int) -> dict[str, Any]:
        """Return the configuration with the given number of epochs."""
        return {
            "model": self.model,
            "epochs": epochs,
            "batch_size": self.batch_size,
            "optimizer": self.optimizer,
            "augment": {"crop": 4, "flip": True},
        }


CASES = {
    "cnn": Case(model={"cnn": {}}, target=5),
    "speednet": Case(model={"speednet": {}}, batch_size=500, target=1.9),
    "speednet, Muon": Case(
        model={"speednet": {}}, batch_size=500, optimizer={"muon": {"lr": 0.02}}, target=1.9
    ),
    "resnet 20": Case(model={"resnet": {"depth": 20}}, target=4.5),
    "vit": Case(model={"vit": {}}, target=3.8),
    "convnext": Case(model={"convnext": {}}, target=3.8),
    "wide_resnet": Case(model={"wide_resnet": {}}, target=3.4),
    "resnet 18": Case(model={"resnet": {"depth": 18}}, target=3.2),
}
"""Cases in the order in which they are measured, so that those cut off are at the end."""
TINY = {
    "cnn": Case(model={"cnn": {"stages": 1, "blocks": 1, "width": 8}}, batch_size=32, target=5),
    "speednet": Case(model={"speednet": {"stages": 1, "width": 8}}, batch_size=64, target=1.9),
}
"""Cases for the digits on a CPU."""
EPOCHS = 100
"""Number of epochs of a configuration, more than are measured."""
