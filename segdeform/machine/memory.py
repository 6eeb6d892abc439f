"""What Python, torch and OpenCV say when memory ends. Without torch."""

from __future__ import annotations


def memory_that_ended(error: BaseException) -> str:
    """Returns "GPU memory" or "memory" for an error that says it ended, "" for any other.

    Only Python and CUDA have a type for it; torch's CPU allocator and OpenCV say it in words.
    """
    if type(error).__name__ == "OutOfMemoryError":  # torch.OutOfMemoryError, not imported here
        return "GPU memory"
    said = str(error)
    worded = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in said
    # "Insufficient memory" is the name of OpenCV's StsNoMem, "Failed to allocate" its usual text.
    worded |= type(error).__module__ == "cv2" and "nsufficient memory" in said
    return "memory" if worded or isinstance(error, MemoryError) else ""
