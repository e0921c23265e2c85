"""Two machines made of namespaces: README's "More than one machine", as it stands there, with one
of them cut off in the midst of the run.

Each machine has its own network, processes, /dev/shm and /tmp/ray, and a real sshd. The files are
shared, as on a cluster with a common home.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from archer.engine.cluster.node import MARK
from tests.children import child_environment

ROOT = Path(__file__).parents[1]

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

SECONDS = 900.0
"""Longest that one command may take on a busy machine."""

ADDRESSES = {"node0": "10.0.0.1", "node1": "10.0.0.2"}
"""Of the machines that README names."""

END = "=== exit code"

BOOT = """
set -e
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs tmpfs /run
mkdir /run/sshd
for name in passwd shadow hosts; do mount --bind "$1/$name" "/etc/$name"; done
hostname "$2"
"$3" -f "$1/sshd_config" -E "$1/sshd-$2.log"
echo up
read -r
"""
"""What the first process of a machine does: it is on until its standard input ends."""


def missing() -> str:
    """Why this cannot be tried here; "" where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "machines of namespaces are made by root on Linux"
    tools = ("ip", "ssh", "ssh-keygen", "unshare", "nsenter", "mount")
    if absent := [name for name in tools if shutil.which(name) is None]:
        return f"there is no {', '.join(absent)}"
    if SSHD is None:
        return (
            "there is no sshd: apt install openssh-server, or without installing it, "
            "apt download openssh-server libwrap0, dpkg -x each of them to DIR, and set "
            "PATH=DIR/usr/sbin:$PATH LD_LIBRARY_PATH=DIR/usr/lib/x86_64-linux-gnu"
        )
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


UNSHARE = "unshare --net --mount --uts --ipc --pid --fork --kill-child --mount-proc".split()

pytestmark = [pytest.mark.full, pytest.mark.skipif(bool(missing()), reason=missing())]


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that is on."""

    name: str
    first: subprocess.Popen[str]
    """Its first process, as it is seen from outside."""

    def enter(self, *command: str) -> list[str]:
        """A command, as it is given here for that machine."""
        number = self.first.pid
        spaces = ["--net", "--mount", "--uts", "--ipc", f"--pid=/proc/{number}/ns/pid_for_children"]
        return ["nsenter", f"--target={number}", *spaces, f"--wd={os.getcwd()}", *command]

    def link(self, state: str) -> None:
        """Cuts its cable (down), or mends it (up)."""
        run(*self.enter("ip", "link", "set", "cable", state))

    def off(self) -> None:
        """Ends all that runs on it."""
        self.first.communicate("")

    def processes(self) -> list[psutil.Process]:
        """All that run on it but its first one and sshd, and a shell that came from outside."""
        own = os.stat(f"/proc/{self.first.pid}/ns/pid_for_children").st_ino
        found = []
        for process in psutil.process_iter():
            try:
                there = os.stat(f"/proc/{process.pid}/ns/pid").st_ino == own
                if there and process.name() not in ("bash", "sshd"):
                    found.append(process)
            except (OSError, psutil.Error):  # gone meanwhile
                continue
        return found

    def segments(self) -> list[str]:
        """What lies in its shared memory."""
        return run(*self.enter("ls", "-A", "/dev/shm")).split()


def python_path() -> str:
    return child_environment()["PYTHONPATH"]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[dict[str, Machine]]:
    """node0 and node1, and a folder `work` with the recipes."""
    make_files(tmp_path)
    Path("/tmp/ray").mkdir(exist_ok=True)
    made: dict[str, Machine] = {}
    try:
        for name in ADDRESSES:
            command = [*UNSHARE, "bash", "-c", BOOT, "boot", str(tmp_path), name, str(SSHD)]
            first = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            made[name] = Machine(name, first)
            assert first.stdout is not None
            assert first.stdout.readline() == "up\n", f"{name} does not come up"
        one, other = (str(machine.first.pid) for machine in made.values())
        cable = f"cable netns {one} type veth peer name cable netns {other}"
        run("ip", "link", "add", *cable.split())
        for name, machine in made.items():
            run(*machine.enter("ip", "address", "add", f"{ADDRESSES[name]}/24", "dev", "cable"))
            run(*machine.enter("ip", "link", "set", "lo", "up"))
            machine.link("up")
        yield made
    finally:
        for machine in made.values():
            machine.off()


def make_files(folder: Path) -> None:
    """What the machines share: the home of root, the working folder, and files for /etc."""
    home, work = folder / "home", folder / "work"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    work.mkdir()
    shutil.copytree(ROOT / "recipes", work / "recipes")
    for file in (folder / "host_key", home / ".ssh/id_ed25519"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file))
    shutil.copy(home / ".ssh/id_ed25519.pub", home / ".ssh/authorized_keys")
    public = (folder / "host_key.pub").read_text()
    known = [f"{name},{address} {public}" for name, address in ADDRESSES.items()]
    (home / ".ssh/known_hosts").write_text("".join(known))
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"SetEnv PYTHONPATH={python_path()}\n"
    )
    (folder / "passwd").write_text(
        f"root:x:0:0:root:{home}:/bin/bash\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/bash\n"
    )
    (folder / "shadow").write_text("root:*:::::::\nnobody:*:::::::\n")
    hosts = [f"{address} {name}\n" for name, address in ADDRESSES.items()]
    (folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *hosts]))


class Shell:
    """A shell on a machine, in the working folder, with the virtual environment."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.process = subprocess.Popen(
            machine.enter("bash", "--norc"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                "HOME": str(folder / "home"),
                "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
                "PYTHONPATH": python_path(),
            },
        )
        self.said: list[str] = []
        """Lines that have come since the last command was given."""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        # -m: a command is a process group of its own, as at a terminal.
        assert self.give(f"set -m; cd {folder / 'work'}") == (0, "")

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.said.append(line)

    def start(self, line: str) -> None:
        """Gives a command."""
        assert self.process.stdin is not None
        self.said.clear()
        self.process.stdin.write(f"{{ {line}\n}} < /dev/null\nprintf '{END} %s\\n' $?\n")
        self.process.stdin.flush()

    def finish(self) -> tuple[int, str]:
        """Waits for the command that was given; its exit code, and all that it said."""
        until = time.monotonic() + SECONDS
        while not (self.said and self.said[-1].startswith(END)):
            assert time.monotonic() < until, "".join(self.said)
            assert self.process.poll() is None, "".join(self.said)
            time.sleep(0.05)
        *lines, end = self.said
        return int(end.split()[-1]), "".join(lines)

    def give(self, line: str) -> tuple[int, str]:
        """Gives a command and waits for it."""
        self.start(line)
        return self.finish()

    def close(self) -> None:
        """Once its machine is off."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.reader.join()


@pytest.fixture
def shell(tmp_path: Path, machines: dict[str, Machine]) -> Iterator[Shell]:
    """On node0."""
    opened = Shell(machines["node0"], tmp_path)
    yield opened
    machines["node0"].off()
    opened.close()


def readme() -> tuple[str, list[str]]:
    """The hostfile and the commands of README's section."""
    text = (ROOT / "README.md").read_text()
    section = text.partition("\n## More than one machine\n")[2].partition("\n## ")[0]
    hosts, commands = re.findall(r"```\w*\n(.*?)```", section, flags=re.DOTALL)
    return hosts, commands.splitlines()


def steps(run: Path) -> list[int]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["step"] for line in lines]


def left(machines: dict[str, Machine]) -> list[str]:
    """What still runs or lies in memory on any of them."""
    found = [
        f"{machine.name}: {process}"
        for machine in machines.values()
        for process in machine.processes()
    ]
    return found + [f"{m.name}: {segment}" for m in machines.values() for segment in m.segments()]


def test_the_commands_of_readme_end_well_though_a_machine_is_cut_off_in_mid_step(
    tmp_path: Path, machines: dict[str, Machine], shell: Shell
) -> None:
    hosts, commands = readme()
    work = tmp_path / "work"
    (work / "hosts.txt").write_text(hosts)
    recipe = work / "recipes/tiny.toml"
    recipe.write_text(recipe.read_text() + "\n[cluster]\nsilent_seconds = 8.0\n")
    up, export_address, train, status, export, down = commands

    code, said = shell.give(up)
    assert code == 0, said
    assert said.splitlines()[-1] == export_address
    assert shell.give(export_address) == (0, "")
    code, said = shell.give(status)
    assert code == 0, said
    assert [line.split()[:3] for line in said.splitlines()[:2]] == [
        ["node0", "in", "10.0.0.1,"],
        ["node1", "in", "10.0.0.2,"],
    ]
    assert all(len(line) <= 80 for line in said.splitlines())

    # All of them can be found, whatever Ray calls them and whoever of them ends first.
    (state,) = (tmp_path / "home/.cache/archer/clusters").iterdir()
    mark = json.loads(state.read_text())["mark"]
    for machine in machines.values():
        assert machine.processes()
        assert {process.environ().get(MARK) for process in machine.processes()} == {mark}

    shell.start(train)
    until = time.monotonic() + SECONDS
    while 5 not in steps(work / "runs/far"):
        assert shell.process.poll() is None and time.monotonic() < until, "".join(shell.said)
        time.sleep(0.05)
    there = machines["node1"].processes()
    names = " ".join(word for process in there for word in process.cmdline()[:1])
    assert "ray::LearnerRank" in names and "ray::Replica" in names, names
    machines["node1"].link("down")
    code, said = shell.finish()
    assert code == 0, said
    # Either of the two processes there may be missed first.
    lost = r"(learner|sampler) \d has not answered for \d+ s \(process \d+ on 10.0.0.2\)"
    assert re.search(lost, said), said
    assert ": going on from the last checkpoint, restart 1 of at most 3" in said, said
    assert steps(work / "runs/far") == list(range(51))

    code, said = shell.give(status)
    assert code == 1
    assert said.splitlines()[1].startswith("node1  missing   ssh: ")
    code, said = shell.give(export)
    assert code == 0, said
    assert (work / "far-model/model.safetensors").is_file()

    code, said = shell.give(down)
    assert code == 1
    assert "node1: not stopped: ssh: " in said
    machines["node1"].link("up")
    until = time.monotonic() + 60
    while shell.give("ssh -o BatchMode=yes node1 true")[0]:  # the kernel remembers the cut
        assert time.monotonic() < until
        time.sleep(0.5)
    code, said = shell.give(down)
    assert code == 0, said
    assert not left(machines)
    code, said = shell.give(down)
    assert code == 2
    assert "nothing is up that archer cluster up --hostfile hosts.txt started" in said


def test_ctrl_c_in_the_midst_of_up_leaves_nothing(
    tmp_path: Path, machines: dict[str, Machine], shell: Shell
) -> None:
    (tmp_path / "work/hosts.txt").write_text("node0\nnode1\n")
    for at, seconds in (("starting the head", 0.5), ("1 more to join", 0.0), ("to join", 0.5)):
        shell.start("archer cluster up --hostfile hosts.txt")
        until = time.monotonic() + SECONDS
        while not any(at in line for line in shell.said):
            assert time.monotonic() < until, shell.said
            time.sleep(0.02)
        time.sleep(seconds)
        (archer,) = (
            process
            for process in machines["node0"].processes()
            if process.cmdline()[2:4] == ["cluster", "up"]
        )
        os.killpg(os.getpgid(archer.pid), signal.SIGINT)
        code, said = shell.finish()
        assert code == 130, said
        assert "nothing was left running" in said
        time.sleep(5)  # in which what was on its way would begin
        assert not left(machines)
        assert not list((tmp_path / "home/.cache/archer/clusters").iterdir())


NOT_REACHED = {
    "10.0.0.9": "No route to host; is it on?",
    "nobody@node1": "or name the right user, as in user@name",
    "node1": "if not, another machine answers by its name",
}
"""Second lines of a hostfile, where node1 has another key than is known, and what is said."""


def test_a_machine_that_is_not_reached_is_named_with_the_cure_and_nothing_is_left(
    tmp_path: Path, machines: dict[str, Machine], shell: Shell
) -> None:
    known = tmp_path / "home/.ssh/known_hosts"
    for name, cure in NOT_REACHED.items():
        if name == "node1":
            other = (tmp_path / "home/.ssh/id_ed25519.pub").read_text()
            known.write_text(known.read_text().splitlines(keepends=True)[0] + f"node1 {other}")
        (tmp_path / "work/hosts.txt").write_text(f"node0\n{name}\n")
        code, said = shell.give("archer cluster up --hostfile hosts.txt")
        assert code == 2
        line = said.splitlines()[-1]
        assert line.startswith(f"archer: 1 of 2 machines are not in: {name}: "), said
        assert line.endswith(f"{cure}; nothing was left running"), said
        assert not left(machines)
        assert not list((tmp_path / "home/.cache/archer/clusters").iterdir())


def test_a_machine_under_its_name_and_its_address_is_refused(
    tmp_path: Path, machines: dict[str, Machine], shell: Shell
) -> None:
    for first, other in (("node1", "10.0.0.2"), ("node0", "localhost")):
        (tmp_path / "work/hosts.txt").write_text(f"{first}\n{other}\n")
        code, said = shell.give("archer cluster up --hostfile hosts.txt")
        assert code == 2
        assert f"{first} and {other} are one machine; leave one of the two lines out" in said
        assert not left(machines)
        assert not list((tmp_path / "home/.cache/archer/clusters").iterdir())
