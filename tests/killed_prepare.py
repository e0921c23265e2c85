"""An `archer prepare` that says which verdicts it has made: `killed_prepare.py RAW OUT LOG`.

The log, to which several processes append, gets the key of each as soon as it is kept.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def main(raw: str, out: str, log: str) -> None:
    import archer.cli
    from archer.prepare.references import Known

    lines = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    add = Known.add

    def logged(self: Known, key: str, *verdict: Any) -> None:
        add(self, key, *verdict)
        os.write(lines, f"{key}\n".encode())

    Known.add = logged  # type: ignore[method-assign, assignment]
    sys.exit(archer.cli.main(["prepare", raw, "--out", out, "--quiet"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
