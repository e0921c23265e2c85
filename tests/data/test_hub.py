"""Files come from a hub whole, checked, of one commit, and no byte of them twice.

The hub is `tests.local_hub`; the client is the real library, in this process or in one of its own.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, scan_cache_dir

from archer.data.hub import Fetched, fetch
from tests.local_hub import TOKEN, Hub, Request, reached

BIG = random.Random(7).randbytes(3_000_000)
FILES = {
    "README.md": b"hello\n",
    "main/train-2.parquet": BIG,
    "main/train-10.parquet": b"ten",
    "main/train-1.parquet": b"one",
    "test.jsonl": b"{}\n",
    "empty.txt": b"",
}
REPO = "some/sums"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with reached(tmp_path, monkeypatch) as server:
        server.commit(REPO, FILES)
        yield server


def refusal(*patterns: str, repo: str = REPO, revision: str | None = None) -> str:
    """The one line with which `fetch` fails."""
    with pytest.raises(ValueError, match=r": ") as caught:
        fetch(repo, patterns, revision=revision)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(fetched: Fetched) -> list[bytes]:
    return [path.read_bytes() for path in fetched.paths]


def blobs(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "hub").glob("*/blobs/*"))


def partials(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "hub").glob("*/archer/*.partial"))


# What comes


def test_files_come_by_pattern_and_in_natural_order(
    hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    fetched = fetch(REPO, ["*.jsonl", "main/train-*.parquet", "*.parquet", "README.md"])
    names = ["test.jsonl", *(f"main/train-{n}.parquet" for n in (1, 2, 10)), "README.md"]
    assert contents(fetched) == [FILES[name] for name in names]
    assert [path.name for path in fetched.paths] == [name.rpartition("/")[2] for name in names]
    assert fetched.revision == hub.repositories[REPO].branches["main"]
    assert (fetched.repo, fetched.licence, fetched.offline) == (REPO, "mit", False)
    assert fetched.names == (
        "README.md",
        "empty.txt",
        *(f"main/train-{n}.parquet" for n in (1, 2, 10)),
        "test.jsonl",
    )
    assert capfd.readouterr() == ("", "")


def test_a_checksum_is_the_hub_s_for_both_kinds_of_files(hub: Hub, tmp_path: Path) -> None:
    fetch(REPO, ["README.md", "empty.txt", "test.jsonl"])
    assert {path.name for path in blobs(tmp_path)} == {
        "ce013625030ba8dba906f756967f9e9ca394464a",  # printf 'hello\n' | git hash-object --stdin
        "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
        "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356",  # sha256sum
    }


def test_what_is_here_is_not_asked_for_again(hub: Hub) -> None:
    first = fetch(REPO, ["*.parquet"])
    hub.forget()
    assert fetch(REPO, ["*.parquet"]) == first
    assert hub.asked == ["GET api"]
    hub.forget()
    assert fetch(REPO, ["*.parquet"], revision=first.revision) == first
    assert hub.asked == []  # a commit never changes


def test_progress_counts_the_bytes_of_all_files(hub: Hub) -> None:
    told: list[tuple[int, int]] = []
    total = len(BIG) + 6
    fetch(REPO, ["*.parquet"], progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (total, total)
    assert {total for _, total in told} == {total}
    assert sorted(told) == told and len(told) > 10
    told.clear()
    fetch(REPO, ["*.parquet"], progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (total, total)


def test_a_token_goes_to_the_hub_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[REPO].private = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert contents(fetch(REPO, ["test.jsonl"])) == [b"{}\n"]
    bearer = {f"Bearer {TOKEN}"}
    assert hub.tokens == {"api": bearer, "file": bearer, "store": {None}}


def test_several_licences_and_none(hub: Hub) -> None:
    repository = hub.repositories[REPO]
    repository.licence = ""
    assert fetch(REPO, []).licence == ""
    hub.commit(REPO, {"README.md": b"new"})
    repository.licence = ["mit", "cc-by-4.0"]  # type: ignore[assignment]
    assert fetch(REPO, []).licence == "mit, cc-by-4.0"


# Of one commit


def test_a_revision_is_held_while_its_branch_moves(hub: Hub) -> None:
    old = hub.repositories[REPO].branches["main"]
    assert contents(fetch(REPO, ["test.jsonl"])) == [b"{}\n"]
    new = hub.commit(REPO, FILES | {"test.jsonl": b'{"new": 1}\n'})
    fetched = fetch(REPO, ["test.jsonl"])
    assert (fetched.revision, contents(fetched)) == (new, [b'{"new": 1}\n'])
    fetched = fetch(REPO, ["test.jsonl"], revision=old)
    assert (fetched.revision, contents(fetched)) == (old, [b"{}\n"])
    hub.commit(REPO, {"test.jsonl": b"tagged\n"}, branch="v1")
    assert contents(fetch(REPO, ["test.jsonl"], revision="v1")) == [b"tagged\n"]


def test_a_branch_that_moves_in_the_middle_changes_nothing(hub: Hub) -> None:
    moved: list[str] = []

    def move(done: int, total: int) -> None:
        if not moved:
            moved.append(hub.commit(REPO, dict.fromkeys(FILES, b"new")))

    fetched = fetch(REPO, ["*.parquet", "README.md"], progress=move)
    assert fetched.revision != moved[0]
    assert contents(fetched) == [b"one", BIG, b"ten", b"hello\n"]


def test_what_did_not_change_between_commits_does_not_come_again(hub: Hub) -> None:
    fetch(REPO, ["*.parquet"])
    new = hub.commit(REPO, FILES | {"main/train-1.parquet": b"new"})
    hub.forget()
    fetched = fetch(REPO, ["*.parquet"])
    assert (fetched.revision, contents(fetched)) == (new, [b"new", BIG, b"ten"])
    assert [request.num_bytes for request in hub.sent] == [3]


def test_a_file_of_an_earlier_commit_is_checked_too(hub: Hub) -> None:
    path = fetch(REPO, ["test.jsonl"]).paths[0]
    path.write_bytes(b"[]\n")
    hub.commit(REPO, FILES | {"README.md": b"new"})
    assert "does not have the checksum" in refusal("test.jsonl")
    assert contents(fetch(REPO, ["test.jsonl"])) == [b"{}\n"]


# Interrupted


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [1_000_000, 1_500_000]
    assert contents(fetch(REPO, ["main/train-2.parquet"])) == [BIG]
    assert [(request.range, request.num_bytes) for request in hub.sent] == [
        (None, 1_000_000),
        ("bytes=1000000-", 1_500_000),
        ("bytes=2500000-", 500_000),
    ]
    assert partials(tmp_path) == []


def test_a_download_that_was_given_up_goes_on_with_the_next_call(hub: Hub, tmp_path: Path) -> None:
    told: list[int] = []
    hub.cuts = [1_000_000, 0, 0, 0]
    said = refusal("main/train-2.parquet")
    assert "1,000,000 of 3,000,000 bytes have come" in said
    assert "run the same command again, which goes on from there" in said
    assert blobs(tmp_path) == []
    hub.forget()
    fetched = fetch(REPO, ["main/train-2.parquet"], progress=lambda done, _: told.append(done))
    assert contents(fetched) == [BIG]
    assert [(r.range, r.num_bytes) for r in hub.sent] == [("bytes=1000000-", 2_000_000)]
    assert (told[0], told[-1]) == (1_000_000, 3_000_000)


def test_a_hub_that_knows_no_ranges_sends_all_again(hub: Hub) -> None:
    hub.ranges, hub.cuts = False, [1_000_000]
    told: list[int] = []
    fetched = fetch(REPO, ["main/train-2.parquet"], progress=lambda done, _: told.append(done))
    assert contents(fetched) == [BIG]
    assert told[-1] == len(BIG)


def test_a_busy_hub_is_asked_again(hub: Hub) -> None:
    hub.refusals = [503, 429]
    assert contents(fetch(REPO, ["test.jsonl"])) == [b"{}\n"]
    assert hub.asked.count("GET api") == 3


def test_a_hub_that_stays_busy_is_said(hub: Hub) -> None:
    hub.refusals = [429] * 4
    said = refusal("test.jsonl")
    assert "was never downloaded whole at main" in said and "429" in said
    assert hub.asked == ["GET api"] * 4


# Wrong bytes


@pytest.mark.parametrize("name", ["README.md", "main/train-2.parquet"])
def test_other_bytes_of_the_same_length_are_found_and_mended(
    hub: Hub, tmp_path: Path, name: str
) -> None:
    hub.wrong = True
    said = refusal(name)
    assert f"{name} of 'some/sums' does not have the checksum" in said
    assert "run the same command again" in said
    assert blobs(tmp_path) == partials(tmp_path) == []
    hub.wrong = False
    assert contents(fetch(REPO, [name])) == [FILES[name]]


@pytest.mark.parametrize("name", ["README.md", "main/train-2.parquet"])
def test_a_file_that_was_damaged_in_the_cache_is_found_and_mended(hub: Hub, name: str) -> None:
    path = fetch(REPO, [name]).paths[0]
    path.write_bytes(b"x" + FILES[name][1:])
    assert "does not have the checksum" in refusal(name)
    assert not path.exists()
    assert contents(fetch(REPO, [name])) == [FILES[name]]


def test_a_partial_file_of_other_bytes_is_found_and_mended(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [1_000_000, 0, 0, 0]
    refusal("main/train-2.parquet")
    [partial] = partials(tmp_path)
    partial.write_bytes(bytes(1_000_000))
    assert "does not have the checksum" in refusal("main/train-2.parquet")
    assert contents(fetch(REPO, ["main/train-2.parquet"])) == [BIG]
    partial.write_bytes(bytes(4_000_000))  # longer than the file
    fetch(REPO, ["main/train-2.parquet"]).paths[0].resolve().unlink()
    assert contents(fetch(REPO, ["main/train-2.parquet"])) == [BIG]


# A person's mistakes


def test_a_pattern_without_a_file_names_near_ones(hub: Hub) -> None:
    said = refusal("main/trian-1.parquet")
    assert "has no file 'main/trian-1.parquet'" in said
    assert "correct the name; there are main/train-1.parquet, " in said
    assert "there are README.md, empty.txt, main/train-1.parquet" in refusal("zzz")
    assert not hub.sent


def test_a_gated_data_set_asks_for_terms_and_a_token(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[REPO].gated = True
    said = refusal("test.jsonl")
    assert f"accept its terms at {hub.address}/datasets/{REPO} and set HF_TOKEN" in said
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert contents(fetch(REPO, ["test.jsonl"])) == [b"{}\n"]


def test_unknown_private_and_impossible_names_are_said(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[REPO].private = True
    for repo in ("some/other", REPO):
        said = refusal("*", repo=repo)
        assert f"shows no data set '{repo}': correct the name, or set HF_TOKEN" in said
    assert "'a/b/c' cannot be a name on the hub" in refusal("*", repo="a/b/c")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "'some/sums' has no revision 'v9': give a branch" in refusal("*", revision="v9")
    assert "has no revision" in refusal("*", revision="f" * 40)


def test_an_address_without_a_hub_is_said(hub: Hub) -> None:
    hub.refusals = [200]
    assert "cannot be reached" in refusal("*")


def test_a_hub_that_forbids_is_said(hub: Hub) -> None:
    hub.refusals = [403]
    assert "answers 403 for 'some/sums'" in (said := refusal("*"))
    assert "set HF_TOKEN to a token that may read it" in said


def test_a_full_disk_is_said_in_one_line(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "datasets--some--sums" / "archer"
    folder.mkdir(parents=True)
    sum = "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
    (folder / f"{sum}.partial").symlink_to("/dev/full")
    said = refusal("test.jsonl")
    assert "No space left on device; make room" in said


def test_a_folder_without_rights_is_said_in_one_line(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("no folder")
    assert "or set HF_HOME to a folder" in refusal("test.jsonl")


# Offline


def test_without_the_hub_what_was_downloaded_is_used(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch(REPO, ["*.parquet"])
    hub.commit(REPO, {"other": b"new"}, branch="later")
    hub.refusals = [503] * 4
    fetched = fetch(REPO, ["*.parquet"])
    assert fetched.offline
    assert (fetched.paths, fetched.names, fetched.licence) == (
        first.paths,
        first.names,
        first.licence,
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.forget()
    for revision in (None, "main", first.revision):
        fetched = fetch(REPO, ["*.parquet"], revision=revision)
        assert (fetched.offline, fetched.revision) == (True, first.revision)
        assert contents(fetched) == [b"one", BIG, b"ten"]
    assert "README.md of 'some/sums' was not downloaded" in refusal("README.md")
    assert "was never downloaded whole at later" in refusal("other", revision="later")
    assert "offline" in refusal("*", repo="some/other")
    assert hub.asked == []


def test_part_of_a_data_set_is_not_taken_for_the_whole(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cuts = [3, 0, 0, 0, 0]  # train-1 comes, train-2 does not
    commit = hub.repositories[REPO].branches["main"]
    refusal("*.parquet")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "was never downloaded whole at main" in refusal("*.parquet")
    said = refusal("*.parquet", revision=commit)
    assert "main/train-2.parquet of 'some/sums' was not downloaded" in said


def test_what_another_tool_downloaded_is_used_offline(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    huggingface_hub.hf_hub_download(REPO, "test.jsonl", repo_type="dataset")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetched = fetch(REPO, ["*"])
    assert (fetched.offline, fetched.names, fetched.licence) == (True, ("test.jsonl",), "")
    assert contents(fetched) == [b"{}\n"]
    fetched.paths[0].write_bytes(b"[]\n")
    assert "does not have the checksum" in refusal("*")


def test_the_library_finds_the_cache_in_order(hub: Hub, tmp_path: Path) -> None:
    fetched = fetch(REPO, ["*.parquet"])
    scan = scan_cache_dir(tmp_path / "hub")
    assert not scan.warnings
    [repository] = scan.repos
    assert repository.size_on_disk == len(BIG) + 6
    assert {str(ref): state.commit_hash for ref, state in repository.refs.items()} == {
        "main": fetched.revision
    }


# In a process of its own, which reads its environment


CHILD = """
import json, sys
from archer.data.hub import fetch
try:
    fetched = fetch(sys.argv[1], sys.argv[2:])
except ValueError as error:
    sys.exit(f"archer: {error}")
assert "torch" not in sys.modules and "transformers" not in sys.modules
print(json.dumps([str(path) for path in fetched.paths]))
"""


def child(address: str, home: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), **more}
    package = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(
        [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    command = [sys.executable, "-c", CHILD, REPO, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_a_killed_download_goes_on_in_the_next_process(hub: Hub, tmp_path: Path) -> None:
    hub.cuts, hub.stall = [2_000_000], threading.Event()
    process = child(hub.address, tmp_path, "main/train-2.parquet")
    limit = time.monotonic() + 60
    while time.monotonic() < limit and not any(p.stat().st_size for p in partials(tmp_path)):
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    hub.stall.set()
    [partial] = partials(tmp_path)
    kept = partial.stat().st_size
    assert 0 < kept <= 2_000_000
    hub.forget()
    process = child(hub.address, tmp_path, "main/train-2.parquet")
    said, complained = process.communicate(timeout=120)
    assert (process.returncode, complained) == (0, "")
    assert Path(json.loads(said)[0]).read_bytes() == BIG
    rest = [request for request in hub.sent if request.range]
    assert rest == [Request(rest[0].name, f"bytes={kept}-", len(BIG) - kept)]


@pytest.mark.full
def test_two_processes_download_a_file_once(hub: Hub, tmp_path: Path) -> None:
    processes = [child(hub.address, tmp_path, "*.parquet") for _ in range(2)]
    for process in processes:
        assert process.communicate(timeout=120)[1] == ""
        assert process.returncode == 0
    assert sum(request.num_bytes for request in hub.sent) == len(BIG) + 6


@pytest.mark.full
@pytest.mark.parametrize("more", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["away", "offline"])
def test_a_hub_that_is_away_is_said_in_seconds(tmp_path: Path, more: dict[str, Any]) -> None:
    began = time.monotonic()
    process = child("http://127.0.0.1:9", tmp_path, "*", **more)
    said, complained = process.communicate(timeout=120)
    assert (process.returncode, said, complained.count("\n")) == (1, "", 1)
    assert "'some/sums' was never downloaded whole at main, and http://127.0.0.1:9" in complained
    assert "download it where there is a network" in complained
    assert time.monotonic() - began < 30
