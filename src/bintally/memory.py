"""Settings of the memory allocator, and what says that memory has run out."""

import ctypes
import platform

# malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
TOP_PAD_BYTES = 2**26
# Messages of CUDA, PyTorch's allocator, C++, oneDNN and Python's threads when memory is short.
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "bad_alloc",
    "could not create a primitive",
    "can't start new thread",
)


def configure_malloc() -> None:
    """Keep freed memory in the process, in one heap for all threads.

    By default glibc returns the memory of tensors to the system and requests it again, and each new page is cleared: a
    network spends up to half its time on that (`benchmarks/train.py` shows it). The process keeps its peak memory.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, TOP_PAD_BYTES), (_ARENA_MAX, 1)):
        if not libc.mallopt(option, value):
            raise OSError(f"mallopt({option}, {value}) was refused")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of PyTorch or of Python says that memory has run out."""
    return isinstance(error, MemoryError) or any(message in str(error) for message in OUT_OF_MEMORY)
