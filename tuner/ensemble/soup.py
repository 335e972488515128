"""Soups: one network whose weights are the mean of several networks' (Wortsman et al. 2022).

The mean of networks trained from different initializations is rarely a good network: the paper
averages fine-tunings of one pretrained network. Figures show what a soup is worth here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tuner.augment import normalize, per_channel
from tuner.config import Tta
from tuner.data.cache import Images
from tuner.ensemble.members import Network, Predict
from tuner.ensemble.pool import Pool
from tuner.errors import UsageError
from tuner.metrics.goal import score
from tuner.metrics.predict import value_of
from tuner.run.checkpoint import load_checkpoint, save_checkpoint
from tuner.run.trial import TrialRecord
from tuner.storage.paths import AnyPath

FIT_IMAGES = 5000
"""Maximum number of training images to estimate normalization statistics from."""
BATCH = 500
ONLY_IN_TRAINING = {"dropout", "stochastic_depth", "policy", "freeze_epochs", "layer_decay"}
"""Architecture parameters in which the networks of one soup may differ."""


def find_group(pool: Pool, order: Iterable[int]) -> list[int]:
    """Return the candidates of the best architecture that two or more of them share, best first.

    Args:
        pool: The candidates.
        order: Their positions, best first.

    Raises:
        UsageError: If no two share one.
    """
    groups: dict[str, list[int]] = {}
    for position in order:
        groups.setdefault(_architecture(pool.trials[position]), []).append(position)
    shared = [group for group in groups.values() if len(group) > 1]
    if not shared:
        raise UsageError(
            f"no two of the {len(pool)} best trials share an architecture, which a soup needs; "
            "choose another --method, or a larger --pool"
        )
    return shared[0]


def _architecture(trial: TrialRecord) -> str:
    model = trial.config.model
    params = {name: v for name, v in model.params.items() if name not in ONLY_IN_TRAINING}
    return f"{model.family} {sorted(params.items())}"


@dataclass(slots=True)
class SoupMaker:
    """Makes each soup of candidates once, and keeps its predictions of the validation images."""

    pool: Pool
    folder: AnyPath
    """Where soups are stored as checkpoints."""
    train_images: Tensor
    """uint8, shape (N, C, H, W)."""
    val: Images
    tta: Tta
    predict: Predict
    device: torch.device
    """Where normalization statistics are estimated."""
    _probs: dict[frozenset[int], Tensor] = field(default_factory=dict, init=False)

    def network(self, members: Sequence[int]) -> Network:
        """Return the soup of some candidates; for one, the candidate itself."""
        if len(members) == 1:
            return self.pool.network(members[0])
        trials = [self.pool.trials[i] for i in sorted(members)]
        name = "-".join(["soup", *(str(trial.number) for trial in trials)])
        file = self.folder / f"{name}.safetensors"
        if not file.exists():
            loaded = [load_checkpoint(t.checkpoint, t.config.model) for t in trials]
            models, checkpoints = zip(*loaded, strict=True)
            soup = models[0]
            soup.load_state_dict(mean_of([model.state_dict() for model in models]))
            mean = per_channel(checkpoints[0].mean, self.device)
            std = per_channel(checkpoints[0].std, self.device)
            # Spread over all, because a folder's images are ordered by class.
            images = self.train_images[:: -(-len(self.train_images) // FIT_IMAGES)]
            estimate_statistics(soup.to(self.device), images, mean, std)
            save_checkpoint(file, soup, checkpoints[0])
        config = trials[0].config
        return Network(file=file, model=config.model, precision=config.precision)

    def probs(self, members: Sequence[int]) -> Tensor:
        """Return a soup's probabilities of the validation images, shape (N, K)."""
        if len(members) == 1:
            return self.pool.probs[members[0]]
        key = frozenset(members)
        if key not in self._probs:
            self._probs[key] = self.predict([self.network(members)], self.val.images, self.tta)[0]
        return self._probs[key]

    def greedy(self, order: Sequence[int], index: Tensor) -> list[int]:
        """Add candidates as long as the metric does not get worse (Wortsman et al. 2022, recipe 1).

        Args:
            order: Candidates, best first.
            index: Validation images to choose on.
        """
        labels = self.val.labels[index]

        def score_of(members: list[int]) -> float:
            metric = self.pool.metric
            return score(value_of(self.probs(members)[index], labels, metric), metric)

        chosen = [order[0]]
        best = score_of(chosen)
        for candidate in order[1:]:
            if (reached := score_of([*chosen, candidate])) >= best:
                chosen, best = [*chosen, candidate], reached
        return chosen


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average the weights of networks of one architecture; for integers, take the first."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }


@torch.no_grad()
def estimate_statistics(network: nn.Module, images: Tensor, mean: Tensor, std: Tensor) -> None:
    """Re-estimate the running statistics of batch normalization in place.

    Those of the averaged networks do not fit the averaged weights (Izmailov et al. 2018). The rest
    of the network stays in evaluation mode, so that dropout does not distort them.

    Args:
        network: Not changed if it has no batch normalization.
        images: uint8, shape (N, C, H, W).
        mean: Channel means, on the network's device, shape (1, C, 1, 1).
        std: As ``mean``.
    """
    network.eval()
    layers = [
        layer
        for layer in network.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # A plain average over all batches.
        layer.train()
    # Batches of almost the same size, because each counts the same.
    for batch in images.tensor_split(-(-len(images) // BATCH)):
        inputs = normalize(batch.to(mean.device), mean, std)
        network(inputs.contiguous(memory_format=torch.channels_last))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
