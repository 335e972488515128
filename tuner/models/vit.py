"""Vision transformers (Dosovitskiy et al. 2021) with patches and depth that fit small images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuner.models.layers import PatchEmbedding, StochasticDepth, draw_truncated, drop_rates
from tuner.models.params import ViTParams


class ViT(nn.Module):
    """Patches with their positions, layers of attention, the mean or the class token, a classifier.

    Args:
        params: The choices.
        num_classes: K.
        image_shape: (C, H, W).
    """

    def __init__(
        self, params: ViTParams, num_classes: int, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        heads = max(1, int(params.width / params.head_width + 0.5))
        width = heads * params.head_width
        channels, *sides = image_shape
        rows, columns = (-(-side // params.patch) for side in sides)
        self.patches = PatchEmbedding(channels, width, params.patch)
        self.positions: Tensor
        if params.positions == "learned":
            self.positions = nn.Parameter(torch.empty(rows * columns, width))
        else:
            waves = sincos_positions(rows, columns, width)
            self.register_buffer("positions", waves, persistent=False)
        self.class_token = None
        if params.pooling == "class":
            # One-dimensional, so that weight decay skips it.
            self.class_token = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(params.dropout)
        rates = drop_rates(params.stochastic_depth, params.layers)
        self.layers = nn.Sequential(*(Layer(params, width, heads, rate) for rate in rates))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)
        draw_truncated(self)
        for start in (self.positions, self.class_token):
            if isinstance(start, nn.Parameter):
                nn.init.trunc_normal_(start, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (N, K), for normalized images, shape (N, C, H, W)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        if self.class_token is not None:
            own = self.class_token.expand(len(tokens), 1, -1)
            tokens = torch.cat([own, tokens], dim=1)
        tokens = self.norm(self.layers(self.dropout(tokens)))
        pooled = tokens.mean(dim=1) if self.class_token is None else tokens[:, 0]
        return self.classifier(pooled)  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention among the tokens, then an MLP at each, both added to their inputs."""

    def __init__(self, params: ViTParams, width: int, heads: int, drop_rate: float) -> None:
        super().__init__()
        hidden = round(width * params.mlp_ratio)
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(params.dropout)
        self.drop = StochasticDepth(drop_rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (N, T, C) to the same shape."""
        tokens = tokens + self.drop(self.dropout(self.attend(self.norm1(tokens))))
        hidden = F.gelu(self.expand(self.norm2(tokens)))
        return tokens + self.drop(self.dropout(self.contract(hidden)))  # type: ignore[no-any-return]

    def attend(self, tokens: Tensor) -> Tensor:
        """Mix the tokens, shape (N, T, C), by softmax attention with several heads."""
        split = self.queries_keys_values(tokens).unflatten(2, (3, self.heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return self.project(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Return sines and cosines of each patch's row and column, shape (rows * columns, width).

    As in Beyer et al. (2022), "Better plain ViT baselines for ImageNet-1k": a quarter of the
    channels each, at frequencies from 1 down to 1/10,000. ``width`` must be a multiple of 4.
    """
    frequencies = 10_000 ** -torch.linspace(0, 1, width // 4)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (row, column)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
