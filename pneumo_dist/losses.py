"""The combo loss of the first-place recipe: weighted BCE, Dice and Focal, in float32.

Source: A. Anuar, SIIM-ACR Pneumothorax Segmentation, 2019. Focal loss: Lin et al., arXiv:1708.02002.
"""

import torch
import torch.nn.functional as F

from pneumo_dist.config import LossConfig


def combo_loss(logits: torch.Tensor, masks: torch.Tensor, config: LossConfig) -> dict[str, torch.Tensor]:
    """Return the loss terms of a micro-batch and their weighted sum under `loss`, as float32 scalars.

    `logits` and `masks` have shape (n, 1, h, w). BCE and focal are means over all pixels; Dice takes the whole
    micro-batch as one vector: 1 − (2I + ε) / (P + T + ε). Half-precision logits are widened first.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, masks = logits.float(), masks.float()
        bce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
        probability = torch.sigmoid(logits)
        intersection = (probability * masks).sum()
        total = probability.sum() + masks.sum()
        # exp(-BCE) is the probability given to the true class, without a logarithm of a clamped sigmoid. The floor
        # keeps the gradient of a power below 1 finite where a pixel is certain.
        focal = (-torch.expm1(-bce)).clamp_min(1e-12).pow(config.focal_gamma) * bce
        terms = {
            "bce": bce.mean(),
            "dice": 1 - (2 * intersection + config.dice_epsilon) / (total + config.dice_epsilon),
            "focal": focal.mean(),
        }
        loss = config.bce * terms["bce"] + config.dice * terms["dice"] + config.focal * terms["focal"]
        return {"loss": loss, **terms}
