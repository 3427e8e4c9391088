"""Configuration: the schemas of experiments and ensembles, and their YAML loader."""
