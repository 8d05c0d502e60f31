"""Which of this machine's addresses and interfaces another machine sees."""

import fcntl
import socket
import struct

from bintally.errors import UserError

_SIOCGIFADDR = 0x8915  # netdevice(7): the IPv4 address of an interface


def route_to(endpoint: str) -> tuple[str, str, bool]:
    """The route to ``endpoint`` (host:port): this machine's IPv4 address on it, the interface with that address, and
    whether the endpoint is this machine.

    gloo and nccl would resolve the host's name instead, which on many machines gives a loopback address.

    Raises:
        UserError: there is no route to the endpoint.
    """
    host, port = endpoint.split(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(port)))  # sends nothing, only looks up the route
            address: str = probe.getsockname()[0]
            for _index, name in socket.if_nameindex():
                if _address(probe, name) == address:
                    return address, name, socket.gethostbyname(host) == address
    except OSError as error:
        raise UserError(f"launch.rdzv_endpoint: there is no route to '{endpoint}': {error.strerror}") from error
    raise UserError(
        f"launch.rdzv_endpoint: no interface of this machine has {address}, by which it reaches '{endpoint}'"
    )


def _address(probe: socket.socket, interface: str) -> str | None:
    request = struct.pack("256s", interface.encode()[:15])
    try:
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
    except OSError:
        return None  # an interface without an IPv4 address
    return socket.inet_ntoa(answer[20:24])
