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


def test_memory_given_back_is_not_taken_anew_from_the_system() -> None:
    def faults(how: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", WORK, how]))

    pages = 50 * 2**25 / resource.getpagesize()
    assert faults("default") - faults("kept") > pages / 4
