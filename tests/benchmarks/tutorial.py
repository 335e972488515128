"""The usual tutorial's way to train on CIFAR-10, rewritten: the starting point of many users.

One image at a time through torchvision's transforms on PIL images, a DataLoader with workers,
float32 and ``.item()`` after each step; with the network and recipe of Ray Tune's PyTorch tutorial.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tuner.data.splits import Splits


class LeNet(nn.Module):
    """Two convolutions and three linear layers, as in PyTorch's "Training a Classifier"."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, side, _ = image_shape
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.side = ((side - 4) // 2 - 4) // 2
        self.fc1 = nn.Linear(16 * self.side**2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (N, K), for images of shape (N, C, H, W)."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class PilImages(Dataset[tuple[Tensor, int]]):
    """Images that are transformed one by one, as in torchvision's own CIFAR10."""

    def __init__(self, splits: Splits, crop: int) -> None:
        images = splits.train.images.permute(0, 2, 3, 1).numpy()
        self.images = [Image.fromarray(image) for image in images]
        self.labels = splits.train.labels.tolist()
        size = splits.image_shape[1]
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(size, padding=crop, padding_mode="reflect"),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(splits.mean, splits.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def epochs_of(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    splits: Splits,
    *,
    batch_size: int,
    crop: int = 4,
    workers: int = 2,
) -> Iterator[float]:
    """Train on the CPU without end; yield the mean loss of each epoch."""
    loader = DataLoader(
        PilImages(splits, crop),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        yield total / len(loader)
