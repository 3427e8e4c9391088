"""The tiny dataset of the integration tests."""

from integration.conftest import dataset as dataset
