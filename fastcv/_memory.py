"""What the C library does with freed memory, for processes that would rather keep it."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX


def keep_freed_memory() -> None:
    """Lets this process keep the memory that it frees, so that large outputs do not pay for fresh pages at every call.

    torch takes CPU tensors from malloc. glibc gives large blocks back to the system when they are freed, and the first write to
    each page that comes anew costs more than a fast kernel's work on it (docs/overhead.md, "Large results"). From this call on
    freed blocks of any size wait for the next tensor: the process stays as large as it ever was. For the whole process and its
    children by fork, until they end. Raises RuntimeError where the C library is not glibc or refuses.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        raise RuntimeError("fastcv.keep_freed_memory: needs glibc, whose malloc can be told to keep what is freed")
    for what, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):  # no block is mapped by itself; as a threshold -1 is the largest
        if not library.mallopt(what, value):
            raise RuntimeError(f"fastcv.keep_freed_memory: mallopt({what}, {value}) was refused")
