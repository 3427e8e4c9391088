"""Training of a fold: stages, steps, validation and logs. Never imports prediction."""
