"""Training a fold: stages, steps, validation, logs. Never imports prediction."""
