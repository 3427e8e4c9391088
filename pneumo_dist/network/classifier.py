"""A classifier: an encoder of segmentation_models_pytorch with a pooled head, and no map."""

import torch
from segmentation_models_pytorch.base import ClassificationHead
from segmentation_models_pytorch.base.initialization import initialize_head
from segmentation_models_pytorch.encoders import get_encoder


class Classifier(torch.nn.Module):
    """Maps films, float32 (n, channels, h, w), to None and class logits (n, 1).

    The head is that of the library's segmenters: global average pooling of the deepest features, dropout, linear.
    """

    def __init__(self, encoder: str, weights: str | None, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.encoder = get_encoder(encoder, in_channels=in_channels, depth=5, weights=weights)
        self.classification_head = ClassificationHead(self.encoder.out_channels[-1], classes=1, dropout=dropout or None)
        initialize_head(self.classification_head)

    def forward(self, images: torch.Tensor) -> tuple[None, torch.Tensor]:
        """Return no map, and the class logits."""
        logits: torch.Tensor = self.classification_head(self.encoder(images)[-1])
        return None, logits
