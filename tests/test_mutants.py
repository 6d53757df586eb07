"""The list of planted faults stays true to the code: `make mutants` plants them."""

from __future__ import annotations

import pytest

from tests.mutants.faults import ROOT, Fault, read_faults

FAULTS = read_faults()


def test_no_two_faults_have_a_name() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) > 0


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted(fault: Fault) -> None:
    code = (ROOT / fault.file).read_text()
    assert code.count(fault.right) == 1
    assert fault.right != fault.wrong
    if fault.file.endswith(".py"):
        compile(code.replace(fault.right, fault.wrong), fault.file, "exec")
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert (
            f"def {name.partition('[')[0].rpartition('::')[2]}" in (ROOT / file).read_text()
            if name
            else (ROOT / file).exists()
        )
