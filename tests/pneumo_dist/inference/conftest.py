"""What the tests of inference share."""

import pytest
from tiny_runs import Trained, make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two small experiments on two folds; tests that change a run copy it first."""
    return make(tmp_path_factory.mktemp("trained"))
