"""One setting of the C library's allocator, which spares a film most of its page faults."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next film or batch; returns whether that could be told.

    glibc takes large blocks from the kernel and gives them back at once, so every film's arrays and every layer's
    output come as untouched pages that the kernel must clear one by one: 7,000 page faults for one film. Other C
    libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER_BYTES))
