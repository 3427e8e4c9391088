"""What torch and DALI of this machine say, asked once."""

import pytest

from pneumo_dist.doctor.probes import Crash, DaliFacts, TorchFacts, dali_facts, torch_facts


@pytest.fixture(scope="session")
def real_torch() -> TorchFacts | Crash:
    return torch_facts(cpu=True)


@pytest.fixture(scope="session")
def real_dali() -> DaliFacts | Crash:
    return dali_facts(on_gpu=False)
