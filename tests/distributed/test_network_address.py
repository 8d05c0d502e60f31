"""The address by which another machine reaches this one."""

import pytest

from bintally.distributed.network_address import route_to
from bintally.errors import UserError


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_route_to_this_machine_is_loopback(host: str) -> None:
    assert route_to(f"{host}:29500") == ("127.0.0.1", "lo", True)


def test_an_unknown_host_is_an_error_that_names_it() -> None:
    with pytest.raises(UserError, match=r"^launch\.rdzv_endpoint: there is no route to 'nowhere\.invalid:29500': \w+"):
        route_to("nowhere.invalid:29500")
