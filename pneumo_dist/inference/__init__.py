"""From checkpoints to masks: prediction, thresholds, submission, report."""
