"""The classification gate: films that the image-level head finds empty stay empty."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def best_gate(
    probabilities: Floats, shown: Floats, hidden: Floats, weights: Floats, below: float = np.inf
) -> tuple[float, float]:
    """Return the gate with the highest weighted mean Dice, exactly, and that mean; 0 where no gate is better.

    `probabilities` are the films' class probabilities, `shown` their Dice with the mask that they have, `hidden` that
    of an empty one, all float64 (n,). A gate empties the films whose probability is not above it, so only the films'
    own probabilities need to be tried: in their order, the changes add up. The lowest of equal gates wins.
    None is as high as `below`: films of this probability keep their masks.
    """
    order = np.argsort(probabilities, kind="stable")
    ranked = probabilities[order]
    # Films of one probability cannot be told apart.
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    change = (weights * (hidden - shown))[order].cumsum()[ends]
    change[(ranked[ends] <= 0) | (ranked[ends] >= below)] = -np.inf  # a gate of 0 is none
    whole = float((weights * shown).sum())
    place = int(change.argmax())
    if change[place] <= 1e-12:
        return 0.0, whole / float(weights.sum())
    return float(ranked[ends[place]]), (whole + float(change[place])) / float(weights.sum())
