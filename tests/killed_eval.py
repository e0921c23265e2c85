"""An `archer eval` that kills itself within a unit: `killed_eval.py FILE OUT UNIT N`.

Half a unit's lines are written by then, the last of them torn.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

SAMPLES = 3


def arguments(problems: Path, out: Path) -> list[str]:
    asked = ["--samples", str(SAMPLES), "--max-tokens", "6", "--answer-pattern", "number"]
    return ["eval", "tiny", "--problems", str(problems), "--out", str(out), "--quiet", *asked]


def main(problems: str, out: str, unit: str, after: str) -> None:
    import archer.cli
    import archer.evaluate
    from archer.scores import answer_lines
    from archer.types import Group
    from archer.unfinished import Unfinished

    archer.evaluate.UNIT = int(unit)
    add = Unfinished.add

    def killed(self: Unfinished, unit: Sequence[Group]) -> None:
        if self.num_units == int(after):
            lines = b"".join(answer_lines(unit, first=len(self.answers)))
            self._file.write(lines[: len(lines) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, unit)

    Unfinished.add = killed  # type: ignore[method-assign]
    archer.cli.main(arguments(Path(problems), Path(out)))


if __name__ == "__main__":
    main(*sys.argv[1:])
