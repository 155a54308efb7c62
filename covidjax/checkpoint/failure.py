"""What a failed save says of the system."""

import errno
import os
import re

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def of_system(error: BaseException) -> tuple[str, str] | None:
    """The reason of a failed system call and what mends it; None where the error is of another kind."""
    # TensorStore reports a failed system call as a ValueError with the number in its text.
    match = re.search(r"os_error_code='(\d+)'", str(error))
    number = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
    if number is None:
        return None
    return os.strerror(number), "free space" if number in FULL else "make it writable"
