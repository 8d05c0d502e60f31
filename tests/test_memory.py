"""Freed memory stays with the process."""

import resource
import subprocess
import sys

WORK = """
import resource, sys
import torch
from bintally.memory import configure_malloc

if sys.argv[1] == "kept":
    configure_malloc()
for _ in range(50):
    torch.empty(2**23).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def test_freed_memory_is_not_requested_again_from_the_system() -> None:
    def page_faults(mode: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", WORK, mode]))

    pages = 50 * 2**25 / resource.getpagesize()
    assert page_faults("default") - page_faults("kept") > pages / 4
