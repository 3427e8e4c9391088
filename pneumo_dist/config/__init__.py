"""The configuration: schemas of experiments and ensembles, and how YAML files are loaded."""
