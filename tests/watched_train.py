"""`archer train` with every moment at which it could be killed announced on standard output.

Not a test: the tests of resuming run it as a child process, read its announcements, and kill it.
Writes are slowed down, so that a kill that follows an announcement comes in the middle of one.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import archer.pipeline
import archer.run
from archer.cli import main
from archer.engine.learner import Learner
from archer.rollout import sample_step

PAUSE = 0.015


def announced(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        step = kwargs.get("step", "")
        # In one piece: a checkpoint becomes complete in a thread of its own.
        print(f"event {event} {step}".rstrip() + "\n", end="", flush=True)
        time.sleep(PAUSE)
        return function(*args, **kwargs)

    return wrapped


if __name__ == "__main__":
    os.fsync = announced("write", os.fsync)
    os.rename = announced("rename", os.rename)
    os.replace = announced("replace", os.replace)
    archer.run.shutil.rmtree = announced("remove", archer.run.shutil.rmtree)  # type: ignore[attr-defined]
    archer.pipeline.sample_step = announced("sample", sample_step)  # type: ignore[attr-defined]
    Learner.update = announced("update", Learner.update)  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
