"""The corpus: every program gets an outcome that it may get, in time, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from archer.cores import num_cores
from archer.types import Problem, Verdict
from archer.verify.code import ASSERT_FACTOR, wall_seconds
from archer.verify.policy import Policy
from archer.verify.pool import WorkerPool
from archer.verify.sandbox.server import SCRATCH
from tests.verify.corpus import ENTRIES, GROUPS, SECRET, Entry

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are judged on Linux")

SECONDS = 300.0
"""How long a verdict may take on a busy machine before a test gives up."""
SPARE_SECONDS = 2.0
SHARE = 6
"""Programs of a group in the seeded part, and as many again of the cheats and the honest ones."""
NOBODY = 65534
SERVER = "archer.verify.sandbox.server"
FIXED = [entry for entry in ENTRIES if len(entry.allowed) == 1 and entry.group != "hang"]
"""Programs whose outcome no clock decides, not even the kernel's."""


def part(seed: int, entries: Sequence[Entry] = ENTRIES) -> list[Entry]:
    """A few programs of every group, hanging ones fewer: each takes its wall time."""
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
    pool.ledger()
    tickets = {
        problem(entry).id: pool.submit(problem(entry), entry.response, entry.in_thought)
        for entry in entries
    }
    return {name: ticket.result(SECONDS) for name, ticket in tickets.items()}


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


def late(entries: Iterable[Entry], verdicts: dict[str, Verdict]) -> list[str]:
    """Whose verdict came after the wall backstop: what all calls of asserts may take is its own."""
    found = []
    for entry in entries:
        most = wall_seconds(entry.answer["time_limit_s"]) + SPARE_SECONDS
        if entry.answer["kind"] == "assert":
            most += ASSERT_FACTOR * entry.answer["time_limit_s"]
        if (seconds := verdicts[problem(entry).id].seconds) > most:
            found.append(f"{problem(entry).id}: {seconds:.1f} s, and {most:.1f} s at most")
    return found


# --- what may be left ---


def traces() -> dict[str, set[str]]:
    """What programs could leave, in the machine and in this process."""
    folders = [tempfile.gettempdir(), "/dev/shm", "/dev/mqueue", str(Path.home()), os.getcwd()]
    ipc = [
        line
        for name in ("shm", "sem", "msg")
        for line in Path(f"/proc/sysvipc/{name}").read_text().splitlines()[1:]
    ]
    return {
        "processes": {str(process.pid) for process in psutil.Process().children(recursive=True)},
        "processes of the sandbox": set(map(str, sandbox_processes(os.getpid()))),
        "mounts": set(Path("/proc/self/mounts").read_text().splitlines()),
        "ipc": set(ipc),
        "files": {path for folder in folders for path in _of_programs(folder)},
        "connections": {
            str((c.laddr, c.raddr, c.status)) for c in psutil.Process().net_connections("inet")
        },
        "descriptors": set(os.listdir("/proc/self/fd")) if num_threads() == 1 else set(),
    }


def num_threads() -> int:
    return threading.active_count()


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


def sandbox_processes(above: int) -> list[int]:
    """Fork servers and their runs, in all of /proc, whose tests are these."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            environment = Path(f"/proc/{name}/environ").read_bytes()
            command = Path(f"/proc/{name}/cmdline").read_bytes()
            if SERVER.encode() in command and _is_below(int(name), above, environment):
                found.append(int(name))
    return found


def _is_below(pid: int, above: int, environment: bytes) -> bool:
    """Whether a process belongs to one, or to nobody any more: other tests may run beside these."""
    with suppress(psutil.Error):
        parents = [parent.pid for parent in psutil.Process(pid).parents()]
        return above in parents or parents in ([], [1])
    return False


@contextmanager
def nothing_left() -> Iterator[None]:
    before = traces()
    yield
    deadline = time.monotonic() + 20.0
    while more := {what: found - before[what] for what, found in traces().items()}:
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged_cleanly(part(seed=1), monkeypatch)


@pytest.mark.full
def test_the_whole_corpus_is_judged_in_time_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged_cleanly(ENTRIES, monkeypatch)


def judged_cleanly(entries: Sequence[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHER_TEST_TOKEN", SECRET)
    with nothing_left(), WorkerPool(workers=num_cores()) as pool:
        verdicts = judge(pool, entries)
        assert pool.ledger()["verify/workers_lost"] == 0
    assert failures(entries, verdicts) == []
    assert late(entries, verdicts) == []
    levels = {verdict.sandbox for verdict in verdicts.values() if verdict.outcome != "no_answer"}
    assert levels == {"full"}


# --- under load, and when servers die ---


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.full)])
def test_outcomes_are_the_same_in_any_order_and_under_load(rounds: int) -> None:
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
def test_fork_servers_that_are_killed_cost_no_verdict(rounds: int) -> None:
    entries = [entry for entry in FIXED if entry.group != "form"]
    entries = random.Random(4).sample(entries, 60) if rounds == 3 else entries
    draw, over, killed = random.Random(5), threading.Event(), []

    def kill() -> None:
        while not over.wait(0.25):
            if servers := server_processes():
                with suppress(ProcessLookupError):
                    os.kill(draw.choice(servers), signal.SIGKILL)
                    killed.append(True)

    with WorkerPool(workers=num_cores()) as pool:
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            for _ in range(rounds):
                verdicts = judge(pool, entries)
                assert failures(entries, verdicts) == []
                assert {verdict.sandbox for verdict in verdicts.values()} == {"full"}
        finally:
            over.set()
            killer.join()
    assert killed


def test_a_run_that_somebody_else_kills_is_an_error_at_once() -> None:
    answer = {"kind": "stdin", "tests": [{"input": "", "output": ""}], "time_limit_s": 50}
    asked = Problem(id="killed", prompt="?", verifier="code", answer=answer)
    with WorkerPool(workers=1) as pool:
        ticket = pool.submit(asked, "```python\nimport time\ntime.sleep(150)\n```", False)
        while not (runs := [r for s in server_processes() for r in _children(s, 2)]):
            assert not ticket.done(), ticket.result()
            time.sleep(0.1)
        time.sleep(1.0)  # until it is confined and sleeps
        os.kill(runs[0], signal.SIGKILL)
        verdict = ticket.result(20.0)
    assert verdict.outcome == "error" and "killed" in verdict.detail


def _children(pid: int, depth: int) -> list[int]:
    with suppress(psutil.Error):
        link = psutil.Process(pid)
        if depth == 1:
            return [child.pid for child in link.children()]
        return [found for child in link.children() for found in _children(child.pid, depth - 1)]
    return []


def server_processes() -> list[int]:
    """Fork servers of this process's workers, and the link that each has to its worker."""
    found = []
    with suppress(psutil.Error):
        for worker in psutil.Process().children():
            for link in worker.children():
                found += [link.pid, *(server.pid for server in link.children())]
    return found


# --- other levels, other users ---


def test_at_level_restricted_honest_programs_and_cheats_get_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for those marked: it has no scratch folder, counts no threads, and shows names of files
    and numbers of processes."""
    monkeypatch.setenv("ARCHER_TEST_TOKEN", SECRET)
    entries = weaker_part("restricted")
    with nothing_left(), WorkerPool(workers=1, policy=Policy(sandbox="restricted")) as pool:
        verdicts = judge(pool, entries)
    assert failures(entries, verdicts) == []
    assert {v.sandbox for v in verdicts.values() if v.outcome != "no_answer"} == {"restricted"}


def test_at_level_restricted_no_file_of_the_machine_is_changed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    file.chmod(0o600)
    before = file.stat()
    program = f"""
import os
done, path = [], {str(file)!r}
for way in (
    lambda: os.chmod(path, 0o4777), lambda: os.utime(path, (1, 1)), lambda: os.truncate(path, 0),
    lambda: os.unlink(path), lambda: os.rename(path, path + "2"), lambda: os.link(path, path + "3"),
    lambda: os.symlink(path, path + "4"), lambda: os.mkdir(path + "5"), lambda: open(path).read(),
    lambda: os.fchmod(os.open(os.__file__, os.O_RDONLY), 0o644),
    lambda: os.utime(os.open(os.__file__, os.O_RDONLY), (1, 1)),
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
from tests.verify.corpus import ENTRIES

if __name__ == "__main__":
    level, names = sys.argv[1], json.loads(sys.stdin.read())
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
                      "verdicts": verdicts}))
"""


def as_ordinary_user(entries: Sequence[Entry], level: str) -> dict[str, Verdict]:
    """The verdicts of a pool in a process without rights; skips where no interpreter can be one."""
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
            said = json.loads(done.stdout)
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
    entries = weaker_part("weak")
    assert failures(entries, as_ordinary_user(entries, "weak")) == []


# --- problems that are broken themselves ---

SOLVED = "```python\ndef add(a, b):\n    return a + b\n```"
BROKEN_TESTS = {
    "does not compile": "assert add(2, 3) ==",
    "never calls the program": "assert 2 + 3 == 5",
    "raises before a call": "1 / 0\nassert add(2, 3) == 5",
    "asserts nothing": "add(2, 3)\nprint(add(2, 3))",
    "spins before a call": "while True: pass\nassert add(2, 3) == 5",
    "ends itself": "import os\nadd(2, 3)\nos._exit(0)\nassert 0",
    "returns outside a function": "assert add(2, 3) == 5\nreturn",
    "is empty": "",
    "takes all memory": "x = [0] * 10**10\nassert add(2, 3) == 5",
}
BROKEN_CHECKERS = {
    "does not compile": "def check(",
    "has no check": "def chek(given, output, expected): return True",
    "raises when loaded": "1 / 0",
    "raises when called": "def check(given, output, expected): return undefined",
    "takes no arguments": "def check(): return True",
    "spins": "def check(given, output, expected):\n    while True: pass",
    "ends itself": "import os\ndef check(given, output, expected): os._exit(0)",
    "says nothing": "def check(given, output, expected): output == expected",
    "says a text": "def check(given, output, expected): return 'no'",
}


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(workers=1) as opened:
        yield opened


@pytest.mark.parametrize("name", BROKEN_TESTS)
def test_broken_test_code_is_an_error(pool: WorkerPool, name: str) -> None:
    answer = {"kind": "assert", "code": BROKEN_TESTS[name], "time_limit_s": 0.5}
    verdict = judged(pool, name, answer, SOLVED)
    assert verdict.outcome == "error", verdict


@pytest.mark.parametrize("kind", ["stdin", "call"])
@pytest.mark.parametrize("name", BROKEN_CHECKERS)
def test_a_broken_checker_is_an_error(pool: WorkerPool, name: str, kind: str) -> None:
    answer = {"kind": kind, "name": "add", "checker": BROKEN_CHECKERS[name], "time_limit_s": 0.5}
    test = {"input": "", "output": "5"} if kind == "stdin" else {"input": [2, 3], "output": 5}
    program = SOLVED.replace("\n```", "\nprint(add(2, 3))\n```")
    verdict = judged(pool, name, answer | {"tests": [test]}, program)
    assert verdict.outcome == "error", verdict


def judged(pool: WorkerPool, name: str, answer: dict[str, object], response: str) -> Verdict:
    asked = Problem(id=name, prompt="?", verifier="code", answer=answer)
    return pool.submit(asked, response, False).result(SECONDS)
