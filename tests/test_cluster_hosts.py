"""A hostfile says which machines there are; what is wrong in it is one line with its cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from archer.cli import main
from archer.engine.cluster import node
from archer.engine.cluster.hosts import Host, read_hosts


def hostfile(folder: Path, text: str) -> Path:
    file = folder / "hosts.txt"
    file.write_text(text)
    return file


def test_a_host_a_line_and_the_form_of_mpi_are_read_in_order(tmp_path: Path) -> None:
    text = "# head first\n\nnode0 slots=8\nann@10.0.0.2   # all of it\n\tnode-1.lab slots=16\n"
    assert read_hosts(hostfile(tmp_path, text)) == [
        Host(name="node0", slots=8),
        Host(name="ann@10.0.0.2"),
        Host(name="node-1.lab", slots=16),
    ]


MISTAKES = {
    "# nothing\n\n": "names no machine",
    "a\nb\na slots=2\n": "hosts.txt:3: a is named twice",
    "a slots=0\n": "slots=0: give the number",
    "a slots=eight\n": "slots=eight: give the number",
    "a slots=-1\n": "slots=-1: give the number",
    "a slots=1 slots=2\n": "slots=2 is not known",
    "a max_slots=2\n": "max_slots=2 is not known; write: a slots=8",
    "a 8\n": "8 is not known",
    "-oProxyCommand=x\n": "-oProxyCommand=x is no name of a machine",
    "a,b\n": "a,b is no name of a machine",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_a_hostfile_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"hosts\.txt") as raised:
        read_hosts(hostfile(tmp_path, text))
    assert MISTAKES[text] in str(raised.value)


def test_a_hostfile_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hosts.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not text"):
        read_hosts(tmp_path / "hosts.txt")


ADDRESSES = {
    ("fe80::1%eth0", "2001:db8::7", "10.0.0.7"): "10.0.0.7",
    ("2001:db8::7",): "2001:db8::7",
    ("fe80::1%eth0", "127.0.1.1", "::1"): None,
    ("192.0.2.1",): None,  # another machine's
}


@pytest.mark.parametrize("stands_for", ADDRESSES)
def test_the_heads_address_is_one_of_its_name_that_others_reach_it_by(
    stands_for: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"fe80::1%eth0", "2001:db8::7", "10.0.0.7", "127.0.0.1", "127.0.1.1", "::1"}
    monkeypatch.setattr(node, "own_addresses", lambda: own)
    entries = [(0, 0, 0, "", (address, 0)) for address in stands_for]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: entries)
    assert node.own_address("head") == ADDRESSES[stands_for]


def test_an_alias_that_only_ssh_knows_stands_for_no_address() -> None:
    assert node.own_address("an alias of ssh") is None


@pytest.mark.parametrize("command", ["up", "status", "down"])
def test_a_note_that_was_cut_off_is_said_with_its_cure(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ARCHER_CACHE", str(tmp_path))
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters/local.json").write_text('{"mark": "9f2c')
    assert main(["cluster", command, "--local"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "archer cluster up --local was killed before it started anything; rm " in line
    assert line.endswith("local.json")


REFUSED = {
    "up": "on which machines? Give --hostfile FILE",
    "up --hostfile .": ". cannot be read: Is a directory; name a hostfile",
    "up --hostfile none.txt": "there is no hostfile none.txt; write one machine a line",
    "up --local --port 80": "--port 80: give one from 1024 to 65535",
    "up --local --wait 0": "--wait 0: give a number of seconds above 0",
    "up --local --env NO_SUCH_NAME": "--env NO_SUCH_NAME: it is not set here",
    "down --local": "nothing is up that archer cluster up --local started",
    "status --hostfile a.txt": "nothing is up that archer cluster up --hostfile a.txt started",
    "down --local --wait 3": "--wait is for cluster up",
}


@pytest.mark.parametrize("command", REFUSED)
def test_a_mistake_on_the_command_line_is_one_line(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARCHER_CACHE", str(tmp_path / "cache"))
    assert main(["cluster", *command.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert REFUSED[command] in line
