"""The address another machine reaches this one by."""

import pytest

from bintally.faults import Fault
from bintally.training.addresses import facing


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_way_to_this_machine_is_loopback(host: str) -> None:
    assert facing(f"{host}:29500") == ("127.0.0.1", "lo", True)


def test_a_host_that_is_not_known_is_a_fault_that_names_it() -> None:
    with pytest.raises(Fault, match=r"^launch\.rdzv_endpoint: there is no way to 'nowhere\.invalid:29500': \w+"):
        facing("nowhere.invalid:29500")
