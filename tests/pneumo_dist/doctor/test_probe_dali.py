"""The probe of DALI: its graph decodes exactly on this machine."""

import pytest

from pneumo_dist.doctor.probes import Crash, DaliFacts, dali_distributions


def test_dali_of_this_machine(real_dali: DaliFacts | Crash) -> None:
    pytest.importorskip("nvidia.dali")
    assert isinstance(real_dali, DaliFacts), real_dali
    assert real_dali.is_exact
    assert dali_distributions()
