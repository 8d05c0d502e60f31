"""The address another machine reaches this one by."""

import pytest

from bintally.errors import UserError
from bintally.training.network_address import route_to


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_way_to_this_machine_is_loopback(host: str) -> None:
    assert route_to(f"{host}:29500") == ("127.0.0.1", "lo", True)


def test_a_host_that_is_not_known_is_a_fault_that_names_it() -> None:
    with pytest.raises(UserError, match=r"^launch\.rdzv_endpoint: there is no way to 'nowhere\.invalid:29500': \w+"):
        route_to("nowhere.invalid:29500")
