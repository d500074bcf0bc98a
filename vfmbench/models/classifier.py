"""A small convolutional classifier; its penultimate features are an embedded feature space (`digitnet`)."""

from __future__ import annotations

from torch import Tensor, nn


class SmallClassifier(nn.Module):
    """Two convolution stages, one halving, global average pooling and a linear head.

    `features` returns the pooled activations [B, feature_size], `forward` the logits [B, num_classes].
    """

    def __init__(self, in_channels: int = 1, channels: int = 32, feature_size: int = 64, num_classes: int = 10):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, feature_size, 3, stride=2, padding=1),
            nn.GroupNorm(8, feature_size),
            nn.SiLU(),
            nn.Conv2d(feature_size, feature_size, 3, padding=1),
            nn.GroupNorm(8, feature_size),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(feature_size, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
