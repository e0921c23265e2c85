"""The corpus: every program gets an outcome that it may get, in time, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from archer.cores import num_cores
from archer.types import Problem, Verdict
from archer.verify.code import ASSERT_FACTOR, wall_seconds
from archer.verify.policy import Level, Policy
from archer.verify.pool import Ticket, WorkerPool
from archer.verify.sandbox.client import MAX_WAITING
from archer.verify.sandbox.server import SCRATCH
from tests.needs import needs_sandbox
from tests.verify.corpus import ENTRIES, GROUPS, SECRET, Entry
from tests.verify.processes import orphans, sandbox_processes

pytestmark = needs_sandbox

NeedsLevel = Callable[[Level], None]

SECONDS = 300.0
"""How long a verdict may take on a busy machine before a test gives up."""
SPARE_SECONDS = 2.0
SHARE = 6
"""Programs of a group in the seeded part, and as many again of the cheats and the honest ones."""
NOBODY = 65534
WORKERS = 2
"""Of the pool whose fork servers are killed: no more responses are on their way at a time."""
FIXED = [entry for entry in ENTRIES if len(entry.allowed) == 1 and entry.group != "hang"]
"""Programs with one outcome, whatever the load."""


def part(seed: int, entries: Sequence[Entry] = ENTRIES) -> list[Entry]:
    """A few programs of every group, the same for a seed."""
    draw = random.Random(seed)
    chosen = []
    for group in GROUPS:
        those = [entry for entry in entries if entry.group == group]
        share = SHARE * 2 if group in ("cheat", "honest") else SHARE
        chosen += draw.sample(those, min(share, len(those)))
    return chosen


def problem(entry: Entry) -> Problem:
    name = f"{entry.name} ({entry.answer['kind']})"
    return Problem(id=name, prompt="?", verifier="code", answer=entry.answer)


def judge(pool: WorkerPool, entries: Iterable[Entry]) -> dict[str, Verdict]:
    return {name: ticket.result(SECONDS) for name, ticket in submit(pool, entries).items()}


def submit(pool: WorkerPool, entries: Iterable[Entry]) -> dict[str, Ticket]:
    pool.ledger()
    return {
        problem(entry).id: pool.submit(problem(entry), entry.response, entry.in_thought)
        for entry in entries
    }


def failures(entries: Iterable[Entry], verdicts: dict[str, Verdict]) -> list[str]:
    """What an entry got that it may not get."""
    found = []
    for entry in entries:
        verdict = verdicts[problem(entry).id]
        if verdict.outcome not in entry.allowed:
            found.append(
                f"{entry.group}: {problem(entry).id}: {verdict.outcome}, not "
                f"{sorted(entry.allowed)}: {verdict.detail}"
            )
        verdict.detail.encode()  # whatever a program says can be written down
    return found


def late(
    entries: Iterable[Entry], verdicts: dict[str, Verdict], *, waiting: float = 1.0
) -> list[str]:
    """Whose verdict came after the wall backstop: what all calls of asserts may take is its own.

    waiting: times that, for those that may have had to wait for a core.
    """
    found = []
    for entry in entries:
        most = wall_seconds(entry.answer["time_limit_s"])
        if entry.answer["kind"] == "assert":
            most += ASSERT_FACTOR * entry.answer["time_limit_s"]
        most = waiting * most + SPARE_SECONDS
        if (seconds := verdicts[problem(entry).id].seconds) > most:
            found.append(f"{problem(entry).id}: {seconds:.1f} s, and {most:.1f} s at most")
    return found


# --- what may be left ---


def traces() -> dict[str, set[str]]:
    """What programs could leave, in the machine and in this process."""
    folders = [tempfile.gettempdir(), "/dev/shm", "/dev/mqueue", str(Path.home()), os.getcwd()]
    return {
        "processes": {str(process.pid) for process in psutil.Process().children(recursive=True)},
        "orphans": {str(process.pid) for process in orphans()},
        "mounts": set(Path("/proc/self/mounts").read_text().splitlines()),
        "ipc": system_v(),
        "files": {path for folder in folders for path in _of_programs(folder)},
        "connections": {
            str((c.laddr, c.raddr, c.status)) for c in psutil.Process().net_connections("inet")
        },
        "descriptors": set(os.listdir("/proc/self/fd")),
    }


def system_v() -> set[str]:
    """What of System V stands in this machine: it outlives those who made it."""
    return {
        f"{name} {' '.join(line.split()[:5])}"  # key, number, rights, size, maker
        for name in ("shm", "sem", "msg")
        for line in Path(f"/proc/sysvipc/{name}").read_text().splitlines()[1:]
    }


def _of_programs(folder: str) -> list[str]:
    """Files that a program may have left there: nobody's, or in the name of a scratch folder.

    Others write there too while these tests run: tests beside them, and pytest itself.
    """
    found = []
    with suppress(OSError):
        for entry in os.scandir(folder):
            with suppress(OSError):
                if entry.name.startswith(SCRATCH) or _owner(entry) == NOBODY:
                    found.append(entry.path)
    return found


def _owner(entry: os.DirEntry[str]) -> int:
    return entry.stat(follow_symlinks=False).st_uid


@contextmanager
def nothing_left() -> Iterator[None]:
    alone = threading.active_count() == 1  # other threads open and close descriptors of their own
    before = traces()
    yield
    deadline = time.monotonic() + 20.0
    while True:
        more = {what: found - before[what] for what, found in traces().items()}
        if not alone or threading.active_count() > 1:
            del more["descriptors"]
        if not any(more.values()) or time.monotonic() > deadline:
            break
        time.sleep(0.05)  # the kernel ends what is below a process that was killed
    assert not any(more.values()), more


# --- every program ---


def test_the_corpus_has_enough_of_every_class_and_kind() -> None:
    assert len(ENTRIES) >= 140
    assert len({problem(entry).id for entry in ENTRIES}) == len(ENTRIES)
    for group in GROUPS:
        assert sum(entry.group == group for entry in ENTRIES) >= 9
    for entry in ENTRIES:
        assert entry.group in GROUPS and "error" not in entry.allowed
        if entry.group == "honest":
            assert entry.allowed == {"correct"}, entry.name
        if entry.group == "cheat":
            assert "correct" not in entry.allowed, entry.name


def test_a_part_of_the_corpus_is_judged_in_time_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, needs_level: NeedsLevel
) -> None:
    needs_level("full")
    judged_cleanly(part(seed=1), monkeypatch)


@pytest.mark.full
def test_the_whole_corpus_is_judged_in_time_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, needs_level: NeedsLevel
) -> None:
    needs_level("full")
    judged_cleanly(ENTRIES, monkeypatch)


def judged_cleanly(entries: Sequence[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHER_TEST_TOKEN", SECRET)
    with nothing_left(), WorkerPool(workers=num_cores()) as pool:
        verdicts = judge(pool, entries)
        assert pool.ledger()["verify/workers_lost"] == 0
    assert failures(entries, verdicts) == []
    levels = {verdict.sandbox for verdict in verdicts.values() if verdict.outcome != "no_answer"}
    assert levels == {"full"}
    # All cores were taken, by this pool and by tests beside this one. A program that waits for one
    # is given longer; the backstop itself is for those that had a core, so whoever was late by
    # that is judged once more, alone.
    assert late(entries, verdicts, waiting=MAX_WAITING) == []
    slow = [entry for entry in entries if late([entry], verdicts)]
    assert late(slow, judged_alone(slow)) == []


def judged_alone(entries: Sequence[Entry]) -> dict[str, Verdict]:
    """By one worker whose fork servers, with numpy and without, have started before."""
    answer = {"kind": "stdin", "tests": [{"input": "", "output": ""}]}
    with WorkerPool(workers=1) as pool:
        for program in ("pass", "import numpy"):
            asked = Problem(id=program, prompt="?", verifier="code", answer=answer)
            started = pool.submit(asked, f"```python\n{program}\n```", False).result(SECONDS)
            assert started.outcome == "correct"
        return judge(pool, entries)


# --- under load, and when servers die ---


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.full)])
def test_outcomes_are_the_same_in_any_order_and_under_load(
    rounds: int, needs_level: NeedsLevel
) -> None:
    needs_level("full")
    entries = part(seed=2, entries=FIXED) if rounds < 20 else FIXED
    draw = random.Random(3)
    spin = [sys.executable, "-c", "while True: pass"]
    load = [subprocess.Popen(spin) for _ in range(2)]
    try:
        with WorkerPool(workers=num_cores()) as pool:
            for _ in range(rounds):
                shuffled = draw.sample(entries, len(entries))
                assert failures(shuffled, judge(pool, shuffled)) == []
    finally:
        for process in load:
            process.kill()
            process.wait()


@pytest.mark.parametrize("rounds", [3, pytest.param(6, marks=pytest.mark.full)])
def test_fork_servers_that_are_killed_cost_no_verdict(rounds: int, needs_level: NeedsLevel) -> None:
    needs_level("full")
    entries = [entry for entry in FIXED if entry.group != "form"]
    entries = random.Random(4).sample(entries, 60) if rounds == 3 else entries
    draw, others, killed = random.Random(5), sandbox_processes(), 0
    with WorkerPool(workers=WORKERS) as pool:
        for _ in range(rounds):
            tickets = submit(pool, entries)
            killed += kill_servers(list(tickets.values()), draw, others)
            verdicts = {name: ticket.result(SECONDS) for name, ticket in tickets.items()}
            assert failures(entries, verdicts) == []
            assert {verdict.sandbox for verdict in verdicts.values()} == {"full"}
    assert killed > rounds


def kill_servers(
    tickets: list[Ticket], draw: random.Random, others: Container[psutil.Process]
) -> int:
    """Kills a fork server now and then while responses are judged; returns how many.

    Responses are begun in their order, and a next server is killed when all that can have been on
    their way have their verdicts. So none is met twice, however slow the machine: tries are few.
    Links are spared: a server without one goes on, and is found no more.
    """
    killed, settled = 0, 5
    while settled < len(tickets):
        deadline = time.monotonic() + SECONDS
        while not all(ticket.done() for ticket in tickets[:settled]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        servers = [p for p, above in sandbox_processes().items() if above == 1 and p not in others]
        settled = sum(ticket.done() for ticket in tickets) + WORKERS + 3
        if servers:  # or those that were killed are not yet replaced
            with suppress(psutil.NoSuchProcess):
                draw.choice(servers).kill()
                killed += 1
    return killed


def test_a_run_that_somebody_else_kills_is_an_error_at_once(needs_level: NeedsLevel) -> None:
    needs_level("full")
    answer = {"kind": "stdin", "tests": [{"input": "", "output": ""}], "time_limit_s": 50}
    asked = Problem(id="killed", prompt="?", verifier="code", answer=answer)
    others = sandbox_processes()
    with WorkerPool(workers=1) as pool:
        ticket = pool.submit(asked, "```python\nimport time\ntime.sleep(150)\n```", False)
        runs: list[psutil.Process] = []
        while not runs:
            assert not ticket.done(), ticket.result()
            time.sleep(0.1)
            found = sandbox_processes().items()
            runs = [process for process, above in found if above == 2 and process not in others]
        runs[0].kill()
        verdict = ticket.result(SECONDS)
    assert verdict.outcome == "error" and "killed" in verdict.detail


# --- other levels, other users ---


def test_at_level_restricted_honest_programs_and_cheats_get_the_same(
    monkeypatch: pytest.MonkeyPatch, needs_level: NeedsLevel
) -> None:
    """But for those marked: it has no scratch folder, counts no threads, and shows names of files
    and numbers of processes."""
    needs_level("restricted")
    monkeypatch.setenv("ARCHER_TEST_TOKEN", SECRET)
    entries = weaker_part("restricted")
    with nothing_left(), WorkerPool(workers=1, policy=Policy(sandbox="restricted")) as pool:
        verdicts = judge(pool, entries)
    assert failures(entries, verdicts) == []
    assert {v.sandbox for v in verdicts.values() if v.outcome != "no_answer"} == {"restricted"}


def test_at_level_restricted_no_file_of_the_machine_is_changed(
    tmp_path: Path, needs_level: NeedsLevel
) -> None:
    needs_level("restricted")
    file = tmp_path / "file"
    file.write_text("mine")
    file.chmod(0o600)
    before = file.stat()
    program = f"""
import os
done, path = [], {str(file)!r}
library = os.open(os.__file__, os.O_RDONLY)
own = os.fstat(library)  # set to what they are: it must not matter if this does succeed
for way in (
    lambda: os.chmod(path, 0o4777), lambda: os.utime(path, (1, 1)), lambda: os.truncate(path, 0),
    lambda: os.unlink(path), lambda: os.rename(path, path + "2"), lambda: os.link(path, path + "3"),
    lambda: os.symlink(path, path + "4"), lambda: os.mkdir(path + "5"), lambda: open(path).read(),
    lambda: os.fchmod(library, own.st_mode & 0o7777),
    lambda: os.utime(library, ns=(own.st_atime_ns, own.st_mtime_ns)),
    lambda: os.open(path, os.O_RDONLY | os.O_TRUNC),
):
    try:
        done.append(way())
    except OSError:
        pass
print(done)
"""
    answer = {"kind": "stdin", "tests": [{"input": "", "output": "[]"}]}
    asked = Problem(id="files", prompt="?", verifier="code", answer=answer)
    with WorkerPool(workers=1, policy=Policy(sandbox="restricted")) as pool:
        verdict = pool.submit(asked, f"```python\n{program}\n```", False).result(SECONDS)
    assert verdict.outcome == "correct", verdict
    assert os.listdir(tmp_path) == ["file"] and file.read_text() == "mine"
    assert (file.stat().st_mode, file.stat().st_mtime) == (before.st_mode, before.st_mtime)


def weaker_part(level: str) -> list[Entry]:
    """Not the bombs and hangs, which these levels hold only in part."""
    entries = [e for e in ENTRIES if e.group not in ("bomb", "hang") and level not in e.not_at]
    if (
        level == "weak"
    ):  # it hides neither the folder for scratch files nor, from its own user, /proc
        entries = [entry for entry in entries if entry.group != "reach"]
    return entries


AS_ANOTHER = """
import dataclasses, json, os, sys
from archer.types import Problem
from archer.verify.policy import Policy
from archer.verify.pool import WorkerPool
from archer.verify.sandbox.selftest import try_level
from tests.verify.corpus import ENTRIES

if __name__ == "__main__":
    level, names = sys.argv[1], json.loads(sys.stdin.read())
    fault = try_level(level).fault
    if fault:
        names = []
    rights = [line for line in open("/proc/self/status") if line.startswith("CapEff")]
    with WorkerPool(workers=2, policy=Policy(sandbox=level)) as pool:
        tickets = {}
        for e in ENTRIES:
            asked = Problem(id=f"{e.name} ({e.answer['kind']})", prompt="?", verifier="code",
                            answer=e.answer)
            if asked.id in names:
                tickets[asked.id] = pool.submit(asked, e.response, e.in_thought)
        verdicts = {n: dataclasses.asdict(t.result(300)) for n, t in tickets.items()}
    print(json.dumps({"user": os.getuid(), "rights": int(rights[0].split()[1], 16),
                      "fault": fault, "verdicts": verdicts}))
"""


def as_ordinary_user(entries: Sequence[Entry], level: str) -> dict[str, Verdict]:
    """The verdicts of a pool in a process without rights; skips where that can't be had."""
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": ()} if os.getuid() == 0 else {}
    source = str(Path(__file__).parents[2])
    libraries = str(Path(np.__file__).parents[1])
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join([source, libraries]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ARCHER_TEST_TOKEN": SECRET,
    }
    for python in ordinary_interpreters():
        run = {"env": environment, "cwd": "/", "capture_output": True, "text": True, **user}
        with suppress(OSError):
            imports = AS_ANOTHER.partition("if __name__")[0]
            if subprocess.run([python, "-c", imports], **run, check=False).returncode:  # type: ignore[call-overload]
                continue
            names = json.dumps([problem(entry).id for entry in entries])
            done = subprocess.run(
                [python, "-c", AS_ANOTHER, level], **run, input=names, check=False
            )  # type: ignore[call-overload]
            assert done.returncode == 0, done.stderr
            said = json.loads(done.stdout)
            if said["fault"]:
                pytest.skip(f"level {level} is not to be had without rights: {said['fault']}")
            assert said["user"] != 0 and said["rights"] == 0
            return {name: Verdict(**verdict) for name, verdict in said["verdicts"].items()}
    pytest.skip("no interpreter of this version that the user nobody can run with numpy")


def ordinary_interpreters() -> list[str]:
    """This one, and the system's of the same version, for an interpreter in the home of root."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return [sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"]


def test_an_ordinary_user_gets_the_same_verdicts_at_level_full() -> None:
    entries = part(seed=6)
    assert failures(entries, as_ordinary_user(entries, "full")) == []


@pytest.mark.full
@pytest.mark.parametrize("level", ["full", "restricted"])
def test_an_ordinary_user_gets_the_same_verdicts_on_the_whole_corpus(level: str) -> None:
    entries = ENTRIES if level == "full" else weaker_part(level)
    assert failures(entries, as_ordinary_user(entries, level)) == []


def test_at_level_weak_honest_programs_and_cheats_get_the_same() -> None:
    """But for those marked: it lets processes be made and sockets be opened, and shows files."""
    entries, before = weaker_part("weak"), system_v()
    assert failures(entries, as_ordinary_user(entries, "weak")) == []
    assert system_v() <= before  # the self-test, which gets at it there, leaves nothing
