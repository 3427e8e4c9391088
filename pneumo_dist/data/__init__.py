"""Films on their way to the network: order, augmentation, loaders."""
