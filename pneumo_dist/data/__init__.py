"""The input pipeline: order of the films, augmentation and loaders."""
