"""Memory and responsiveness of a running `bintally serve`."""

import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from common import rounded

TIMEOUT_S = 60.0
WARM_UP_S = 60.0  # before memory is compared; at most a third of the time


class Watch:
    """Measures a server in a thread of its own while a block runs: its memory, and how long `/live` takes."""

    def __init__(self, port: int, pid: int) -> None:
        self.resident: list[float] = []
        """MiB, once a second."""
        self._live: list[float] = []
        self._failed = 0
        self._port, self._proc = port, Path(f"/proc/{pid}")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        (self._proc / "clear_refs").write_text("5")  # the peak starts anew
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._peak = self._mib("VmHWM")

    def figures(self) -> dict[str, Any]:
        settled = self.resident[int(min(WARM_UP_S, len(self.resident) / 3)) :]
        start, end = rounded(self.resident[0], 4), rounded(self.resident[-1], 4)
        return {
            "live_worst_s": rounded(max(self._live)),
            "live_failed": self._failed,
            "resident_mib": {"start": start, "end": end, "peak": rounded(self._peak, 4)},
            "resident_spread_mib": round(max(settled) - min(settled), 1),
        }

    def _run(self) -> None:
        while not self._over.wait(0.2):
            if len(self._live) % 5 == 0:
                self.resident.append(self._mib("VmRSS"))
            start = time.monotonic()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/live", timeout=TIMEOUT_S) as response:
                    response.read()
            except OSError:
                self._failed += 1
            self._live.append(time.monotonic() - start)

    def _mib(self, name: str) -> float:
        status = (self._proc / "status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) / 1024
