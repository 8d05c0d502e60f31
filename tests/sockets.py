"""The TCP sockets on which a process listens, read from /proc."""

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

LISTEN = "0A"  # state of a socket in proc_net_tcp(5)


def listening(pid: int) -> set[tuple[str, int]]:
    """The addresses and ports on which the process ``pid`` listens."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.add((_address(bytes.fromhex(address)), int(port, 16)))
    return found


def _address(kernel: bytes) -> str:
    """Four bytes at a time, each group in the order of this machine (little-endian)."""
    network = b"".join(kernel[start : start + 4][::-1] for start in range(0, len(kernel), 4))
    return str(IPv4Address(network) if len(network) == 4 else IPv6Address(network))


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")
