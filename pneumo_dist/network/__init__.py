"""The network: architectures, losses, batch-norm statistics."""
