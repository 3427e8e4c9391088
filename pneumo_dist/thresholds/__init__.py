"""Rules for masks: the search over stored predictions, what a rule is worth, thresholds.json."""
