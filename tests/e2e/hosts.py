"""Two hosts on one machine: network namespaces with addresses of their own and a link that can be cut."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")


@dataclass(frozen=True)
class TwoHosts:
    """Each host is a process that sleeps in its namespace; a user namespace around both makes root unnecessary."""

    holders: tuple[int, int]

    def on(self, host: int, *command: str) -> list[str]:
        """The arguments that run a command on one of the hosts."""
        return [
            *("nsenter", "--target", str(self.holders[host]), "--user", "--net", "--preserve-credentials"),
            *command,
        ]

    def run(self, host: int, command: str) -> None:
        subprocess.run(self.on(host, "sh", "-ec", command), check=True)

    def cut(self) -> None:
        self.run(0, "ip link set east down")

    def mend(self) -> None:
        self.run(0, "ip link set east up")


def _hold(*command: str) -> subprocess.Popen[bytes]:
    """Start a process in a network namespace of its own and wait until it has entered it."""
    ours = Path("/proc/self/ns/net").readlink()
    process = subprocess.Popen([*command, "sleep", "infinity"])
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process.pid}/ns/net").readlink() == ours:
        assert process.poll() is None and time.monotonic() < deadline, f"{' '.join(command)} failed"
        time.sleep(0.01)
    return process


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Create the hosts for the block; AssertionError where only root may create network namespaces."""
    first = _hold("unshare", "--user", "--map-root-user", "--net")
    second = None
    try:
        second = _hold(*("nsenter", "--target", str(first.pid), "--user", "--preserve-credentials"), "unshare", "--net")
        hosts = TwoHosts((first.pid, second.pid))
        hosts.run(0, f"ip link set lo up; ip link add east type veth peer name west netns {second.pid}")
        hosts.run(1, "ip link set lo up")
        for host, end in enumerate(("east", "west")):
            hosts.run(host, f"ip address add {ADDRESSES[host]}/24 dev {end}; ip link set {end} up")
        yield hosts
    finally:
        for process in filter(None, (second, first)):
            process.kill()
            process.wait()
