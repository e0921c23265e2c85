"""How many cores this process may use."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Those that the scheduler lets this process have, as far as the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
