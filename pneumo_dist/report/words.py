"""Sentences of the report for readers who do not know the code."""

import math

from pneumo_dist.scoring.masks import Rule


def rule_sentences(rule: Rule, pixel_cm2: float = math.nan) -> str:
    """Say for a clinician what a rule does. `pixel_cm2` is the area of a usual pixel in cm², nan if it is not known."""

    def region(pixels: int) -> str:
        area = pixels * pixel_cm2
        size = f" (about {area:,.{0 if area >= 10 else 1 if area >= 1 else 2}f} cm²)" if math.isfinite(area) else ""
        return f"{pixels:,} pixel{'' if pixels == 1 else 's'}{size}"

    triplet = rule.triplet
    shown = f"every pixel with a probability above {_percent(triplet.bottom)}"
    if triplet.area > 0:
        have = "has" if triplet.area == 1 else "have"
        needed = (
            f"a film is called positive if at least {region(triplet.area)} {have} one above {_percent(triplet.top)}"
        )
        text = f"The network gives each pixel a probability of pneumothorax, and {needed}. Its mask is then {shown}."
    else:
        text = f"The network gives each pixel a probability of pneumothorax. A film's mask is {shown}, and a film with "
        text += "such a pixel is called positive."
    if rule.stacking is not None:
        text = (
            f"The network gives each pixel a probability of pneumothorax. A film's mask is {shown}, unless the stacked "
            f"gate gives the film a probability of {_percent(rule.stacking.threshold)} or less. The gate weighs the "
            f"film's map{' and its class probability' if rule.stacking.needs_class else ''}."
        )
    if rule.smallest_part > 1:
        text += f" Connected parts of the mask with fewer than {region(rule.smallest_part)} are removed."
    if rule.gate > 0:
        text += f" A film is not called positive unless its probability as a whole is above {_percent(rule.gate)}."
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
