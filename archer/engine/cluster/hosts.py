"""A hostfile: which machines a cluster is made of.

    # head first
    node0 slots=8
    node1 slots=8

A line is a machine, as ssh knows it: a name, an address, an alias of ~/.ssh/config, `user@name`.
`slots`, as MPI writes it, is how many GPUs of it may be used (CPUs, where it has no GPU); without,
all of them. What follows `#` is a comment. Ray is not imported here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@%-]*")
"""Never with a dash in front, which ssh would take for an option."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine of a hostfile.

    Example: the line `node0 slots=8` is Host(name="node0", slots=8).
    """

    name: str
    slots: int | None = None
    """GPUs that may be used, or CPUs where there is none; None: all."""


def read_hosts(file: Path) -> list[Host]:
    """The machines of a hostfile in its order; the first one is the head."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        raise ValueError(
            f"there is no hostfile {file}; write one machine a line, such as: node0 slots=8"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not text; write one machine a line") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}; name a hostfile") from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        host = _host(words, f"{file}:{number}")
        if host.name in hosts:
            raise ValueError(f"{file}:{number}: {host.name} is named twice; leave one line out")
        hosts[host.name] = host
    if not hosts:
        raise ValueError(f"{file} names no machine; write one a line, such as: node0 slots=8")
    return list(hosts.values())


def _host(words: list[str], where: str) -> Host:
    name, *settings = words
    if not NAME.fullmatch(name):
        raise ValueError(f"{where}: {name} is no name of a machine; write one as ssh takes it")
    slots = None
    for setting in settings:
        key, _, value = setting.partition("=")
        if key != "slots" or slots is not None:
            raise ValueError(f"{where}: {setting} is not known; write: {name} slots=8")
        if not re.fullmatch(r"[1-9][0-9]{0,5}", value):
            raise ValueError(
                f"{where}: {setting}: give the number of GPUs (or CPUs) to use, 1 or more, or "
                "leave it out for all"
            )
        slots = int(value)
    return Host(name=name, slots=slots)
