"""Names of the rules for masks that tune finds."""

from collections.abc import Mapping
from typing import Literal

RuleName = Literal["triplet", "components", "threshold-components", "triplet-components", "gate", "stacking"]

RULES: Mapping[RuleName, str] = {
    "triplet": "triplet",
    "components": "fixed threshold without small components",
    "threshold-components": "best threshold without small components",
    "triplet-components": "triplet without small components",
    "gate": "triplet with the classification gate",
    "stacking": "fixed threshold with the stacked gate",
}
"""What each rule does, in the report's words."""
