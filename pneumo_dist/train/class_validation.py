"""Validation of a classifier: the area under the ROC curve, with each film counted once for any number of ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata

from pneumo_dist.config.loss import LossConfig
from pneumo_dist.network.build import split_outputs
from pneumo_dist.network.losses import combo_loss
from pneumo_dist.ranks.precision import Resolved, autocast
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.watchdog import GATHER
from pneumo_dist.scoring.arrays import Flags
from pneumo_dist.train.validation import ValidationFilms, each_round
from shards.arrays import Floats


@dataclass(frozen=True)
class ClassValidation:
    """Scores of a fold's validation films.

    Attributes:
        score: Area under the ROC curve.
        accuracy: Share of films that a probability of 0.5 calls rightly.
        loss: Mean loss over the films.
    """

    score: float
    accuracy: float
    loss: float

    def figures(self) -> dict[str, float]:
        """Return the scores by the names that the logs use."""
        return {"validation_loss": self.loss, "score": self.score, "accuracy_at_half": self.accuracy}


def validate_classes(
    model: torch.nn.Module,
    films: ValidationFilms,
    loss_config: LossConfig,
    ranks: Ranks,
    amp: Resolved,
    check: Callable[[], object] = lambda: None,
) -> ClassValidation:
    """Score a classifier on a fold's validation films. All ranks return the same.

    `check` is called before every round, equally often on every rank; it may raise on all of them to stop.
    """
    model.eval()
    scored: list[npt.NDArray[np.float64]] = [np.zeros((0, 2))]
    losses: list[tuple[float, float, float]] = []
    for batch in each_round(films, ranks, check):
        if batch is None:
            continue
        count = len(batch.indices)
        with torch.no_grad(), autocast(amp, ranks.device):
            _, classes = split_outputs(model(batch.images.to(ranks.device, torch.float32, non_blocking=True)))
        assert classes is not None, "a network without a classification head"
        masks = batch.masks[:count].to(ranks.device, non_blocking=True)
        loss = float(combo_loss(None, masks, loss_config, classes[:count])["loss"])
        logits = classes[:count, 0].double().cpu().numpy()
        losses.append((float(batch.indices[0]), loss * count, float(count)))
        scored.append(np.stack([batch.indices.astype(np.float64), logits], axis=1))
    model.train()
    ranks.beat(GATHER)
    rows = np.concatenate(ranks.gather_array(np.concatenate(scored)))
    index, logits = rows[np.argsort(rows[:, 0], kind="stable")].T
    positive = films.shards.column("has_mask")[index.astype(np.int64)].astype(bool)
    # Summed in table order. In rank order, the number of ranks would show in the last bits.
    parts = np.concatenate(ranks.gather_array(np.array(losses, np.float64).reshape(-1, 3)))
    total, number = parts[np.argsort(parts[:, 0])][:, 1:].sum(axis=0)
    accuracy = float(((logits > 0) == positive).mean())
    return ClassValidation(roc_area(positive, logits), accuracy, float(total / number))


def roc_area(positive: Flags, scores: Floats) -> float:
    """Return the area under the ROC curve of films (n,); 1/2 if a class is missing, as for scores that say nothing.

    It is the share of pairs of a positive and a negative film in which the positive one has the higher score; a tie is
    half a pair (J. A. Hanley and B. J. McNeil, Radiology 1982). A score that is not a number counts as 0.
    """
    positives = int(positive.sum())
    pairs = positives * (len(positive) - positives)
    if not pairs:
        return 0.5
    ranks = rankdata(np.nan_to_num(scores))  # tied scores have their mean rank
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / pairs)
