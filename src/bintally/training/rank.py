"""`python -m bintally.training.rank MODULE`: one rank of a training, as its agent starts it in a new process."""

import sys
from importlib import import_module

if __name__ == "__main__":
    status = import_module(sys.argv[1]).run_rank()
    from bintally.training.distributed import exit_process  # torch, which run_rank() imports when it is ready for it

    exit_process(status)
