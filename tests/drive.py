"""`archer train` as a child process, with all that it starts: tests take parts of it away."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.children import child_environment

MARK = "ARCHER_FAULT_TEST"


class Drive:
    """Trains by `recipe.toml` of a folder, into its `run`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.lines: list[str] = []
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "archer.cli", "train", "recipe.toml", "--run", "run"]
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**child_environment(), MARK: self.mark},
        )
        self.reader = threading.Thread(target=self._read, args=[self.process])
        self.reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.lines.append(line)

    def steps(self) -> int:
        return sum(line.startswith("step ") and "accuracy" in line for line in self.lines)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def own(self) -> list[psutil.Process]:
        """All processes that this run has started, and that live."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def find(self, target: str) -> list[psutil.Process]:
        found = []
        for process in self.own():
            with suppress(psutil.Error):
                command = process.cmdline() or [""]  # one that is just ending has none
                if {
                    "sampler": command[0].startswith("ray::Replica"),
                    "learner": command[0].startswith("ray::LearnerRank"),
                    "verifier": "archer.verify.worker" in command,
                    "driver": process.pid == self.process.pid,
                    "daemon": process.name() == "raylet",
                }[target]:
                    found.append(process)
        return found


def gone(drive: Drive) -> None:
    """Nothing that the run has started lives on; what has to be ended first has a moment."""
    until = time.monotonic() + 20
    while (left := drive.own()) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left, [process.cmdline()[:3] for process in left]


def rollouts(run: Path) -> list[list[dict[str, Any]]]:
    files = sorted((run / "rollouts").glob("*.jsonl"))
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in files]
    return [[{k: v for k, v in row.items() if k != "seconds"} for row in own] for own in rows]
