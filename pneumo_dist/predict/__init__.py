"""Prediction: ensembles, averaged weights, bundles, stored maps. Never imports training."""
