"""Synthetic chest films, with and without a pneumothorax, and their labels."""
