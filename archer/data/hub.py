"""Files of a data set on the Hugging Face hub: of one commit, whole, and checked.

    fetch("openai/gsm8k", ["main/train-*.parquet"], revision="main").paths

They lie in the hub library's own cache, where other tools find them. Token, address and cache are
the library's: HF_TOKEN or `hf auth login`, HF_ENDPOINT, HF_HOME or HF_HUB_CACHE, HF_HUB_OFFLINE.

The bytes are fetched here. The library begins a file anew when its download broke off: it writes
to a name of the moment (huggingface_hub 1.31 to 2.4), over Xet as well, whose chunk cache may or
may not help. Here they come by plain HTTP, which the hub offers for files in Xet too, into a file
that the next call goes on with. It enters the cache when it has the checksum that the hub gives.

Left out: files above 50 GB, which the hub sends by Xet alone, several connections at once, and
what the files hold, which is the matter of `archer.data.rows`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from filelock import FileLock
from huggingface_hub import (
    HfApi,
    constants,
    get_session,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from archer.files import written_whole

Progress = Callable[[int, int], None]

WAITS = (1.0, 2.0, 4.0)
"""Seconds before the next tries. The library tries again in parts of its calls only."""

BUSY = {408, 429, 500, 502, 503, 504}
"""What a hub answers that may do better in a moment."""

HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
"""What the library's HTTP client raises: httpx's or httpx2's, by the library's version."""

COMMIT = re.compile(r"[0-9a-f]{40}")
CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What `fetch` found.

    Example, one file of two:
        Fetched(repo="some/sums", revision="3f…", licence="mit", names=("README.md", "a.jsonl"),
                paths=(Path("…/snapshots/3f…/a.jsonl"),), offline=False)
    """

    repo: str
    revision: str
    """The commit, 40 hexadecimal digits, that everything was taken from."""
    licence: str
    """As the data set's card names it; empty if it doesn't, or is not known offline."""
    names: tuple[str, ...]
    """All files of the repository, in natural order."""
    paths: tuple[Path, ...]
    """The files that were asked for: by pattern, each pattern's in natural order, none twice."""
    offline: bool
    """Whether the hub could not be asked, so that a branch may be further on by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file as the hub describes it.

    Example:
        RemoteFile(size=6, checksum="b1946ac9…")
    """

    size: int
    checksum: str
    """Its name among the cache's blobs: 64 digits are the sha256, 40 are git's sha1 of a blob.
    Empty where it is not known: in a cache without links that another tool filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a repository holds at one commit.

    Example:
        Listing(commit="3f…", licence="mit", files={"a.jsonl": RemoteFile(size=6, checksum="b1…")})
    """

    commit: str
    licence: str
    files: Mapping[str, RemoteFile]


def fetch(
    repo: str,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """The files of a data set that match the patterns, downloaded as far as they are not here.

    patterns: names, or patterns as in a shell where `*` also stands for a slash.
    revision: branch, tag or commit, resolved once; None is the branch main.
    progress: called with the bytes that are here and the bytes of all files asked for.
    ValueError for whatever is wrong with the names, the hub, the network, the disk or the bytes.
    """
    with _plain_errors(repo, revision):
        listing, offline = _listing(repo, revision)
        names = _chosen(repo, patterns, listing)
        total, done = sum(listing.files[name].size for name in names), 0

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            if progress is not None:
                progress(done, total)

        paths = tuple(_take(repo, name, listing, offline, advance) for name in names)
        if not offline:
            _point(repo, revision, listing.commit)
    return Fetched(
        repo=repo,
        revision=listing.commit,
        licence=listing.licence,
        names=tuple(sorted(listing.files, key=_natural)),
        paths=paths,
        offline=offline,
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts part-2 before part-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _PARTS.findall(name)]


_PARTS = re.compile(r"\d+|\D+")


def _chosen(repo: str, patterns: Sequence[str], listing: Listing) -> list[str]:
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [name for name in listing.files if name == pattern or fnmatchcase(name, pattern)]
        if not found:
            names = sorted(listing.files, key=_natural)
            near = get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
            raise ValueError(
                f"{repo!r} has no file {pattern!r} at commit {listing.commit[:12]}: correct the "
                f"name; there are {', '.join(near) or 'no files'}"
            )
        chosen |= dict.fromkeys(sorted(found, key=_natural))
    return list(chosen)


# What there is: asked of the hub, or remembered


def _listing(repo: str, revision: str | None) -> tuple[Listing, bool]:
    """What the repository holds, and whether that had to be taken from memory."""
    if revision is not None and COMMIT.fullmatch(revision):
        known = _remembered(repo, revision)
        if known is not None:  # a commit never changes
            return known, constants.HF_HUB_OFFLINE
    try:
        return _ask(repo, revision), False
    except (HTTPError, OSError, ValueError, KeyError, TypeError) as error:  # or no hub's answer
        if _refused(error):
            raise
        known = _kept(repo, revision)
        if known is None:
            raise ValueError(
                f"{repo!r} was never downloaded whole at {revision or 'main'}, and "
                f"{constants.ENDPOINT} cannot be reached ({_one_line(error)}): download it where "
                "there is a network and set HF_HOME to that cache, or give the path of a file"
            ) from error
        return known, True


def _ask(repo: str, revision: str | None) -> Listing:
    waits = iter(WAITS)
    while True:
        try:
            # In seconds: without a limit the library waits for ever.
            info = HfApi().dataset_info(repo, revision=revision, timeout=10, files_metadata=True)
            break
        except HfHubHTTPError as error:
            wait = next(waits, None)
            if wait is None or error.response.status_code not in BUSY:
                raise
        time.sleep(wait)
    files = {}
    for sibling in info.siblings or []:
        checksum = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if sibling.size is None or not CHECKSUM.fullmatch(checksum or ""):
            _no_listing(f"gives no checksum of {sibling.rfilename!r}")
        files[sibling.rfilename] = RemoteFile(size=sibling.size, checksum=checksum or "")
    if not COMMIT.fullmatch(info.sha or ""):
        _no_listing("gives no commit")
    named = info.card_data.license if info.card_data else None
    licence = ", ".join(map(str, named)) if isinstance(named, list) else str(named or "")
    listing = Listing(commit=info.sha or "", licence=licence, files=files)
    _remember(repo, listing)
    return listing


class _Unfit(ValueError):
    """The hub answers, but not as a hub does."""


def _no_listing(fact: str) -> NoReturn:
    raise _Unfit(f"{constants.ENDPOINT} {fact}: set HF_ENDPOINT to a hub that does")


def _refused(error: Exception) -> bool:
    """Whether the hub said no, and not just nothing."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code not in BUSY
    return isinstance(error, HFValidationError | _Unfit)


def _folder(repo: str) -> Path:
    """Where the library keeps a data set."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="dataset")


def _memory(repo: str, commit: str) -> Path:
    return _folder(repo) / "archer" / f"{commit}.json"


def _remember(repo: str, listing: Listing) -> None:
    """Keeps the listing, so that part of a data set is not taken for the whole when offline."""
    place = _memory(repo, listing.commit)
    if place.is_file():
        return
    files = {name: [file.size, file.checksum] for name, file in listing.files.items()}
    text = json.dumps({"licence": listing.licence, "files": files}, indent=1)
    with suppress(OSError), written_whole(place) as out:  # a cache may be there to read only
        out.write(text.encode())


def _remembered(repo: str, commit: str) -> Listing | None:
    place = _memory(repo, commit)
    if not place.is_file():
        return None
    told = json.loads(place.read_bytes())
    files = {name: RemoteFile(size=n, checksum=sum) for name, (n, sum) in told["files"].items()}
    return Listing(commit=commit, licence=told["licence"], files=files)


def _point(repo: str, revision: str | None, commit: str) -> None:
    """Says in the library's cache which commit a branch was at when all files had come."""
    if revision is not None and COMMIT.fullmatch(revision):
        return
    place = _folder(repo) / "refs" / (revision or constants.DEFAULT_REVISION)
    with suppress(OSError):
        if not place.is_file() or place.read_text() != commit:
            with written_whole(place) as out:
                out.write(commit.encode())


def _kept(repo: str, revision: str | None) -> Listing | None:
    """What the cache holds of a revision, whoever downloaded it."""
    commit = revision or constants.DEFAULT_REVISION
    with suppress(OSError):
        commit = (_folder(repo) / "refs" / commit).read_text().strip()
    if not COMMIT.fullmatch(commit):
        return None
    return _remembered(repo, commit) or _snapshot(repo, commit)


def _snapshot(repo: str, commit: str) -> Listing | None:
    """What another tool downloaded; which files it left out is not known."""
    folder = _folder(repo) / "snapshots" / commit
    files = {}
    for path in folder.rglob("*"):
        if path.is_file():
            # One step of the link, no more: the blob may in its turn lead to a shared store.
            blob = Path(os.readlink(path)).name if path.is_symlink() else ""
            checksum = blob if CHECKSUM.fullmatch(blob) else ""
            name = path.relative_to(folder).as_posix()
            files[name] = RemoteFile(size=path.stat().st_size, checksum=checksum)
    return Listing(commit=commit, licence="", files=files) if files else None


# One file: from the hub, through a partial file, into the cache


def _take(
    repo: str, name: str, listing: Listing, offline: bool, advance: Callable[[int], None]
) -> Path:
    file, commit = listing.files[name], listing.commit
    blob = _folder(repo) / "blobs" / file.checksum
    cached = try_to_load_from_cache(repo, name, repo_type="dataset", revision=commit)
    if isinstance(cached, str):
        path = Path(cached)
    elif offline:
        raise ValueError(
            f"{name} of {repo!r} was not downloaded at commit {commit[:12]}, and the hub is not "
            "asked (HF_HUB_OFFLINE) or cannot be reached: download it where there is a network"
        )
    else:
        if not blob.exists():
            _download(repo, name, commit, file, blob, advance)
            return _link(repo, name, commit)
        path = _link(repo, name, commit)
    # Each time: hashing takes a tenth of what `read_file` takes for JSONL, a fifth for parquet.
    _check(f"{name} of {repo!r}", path, file, [path, Path(os.path.realpath(path)), blob])
    advance(file.size)
    return path


def _link(repo: str, name: str, commit: str) -> Path:
    """Makes the blob a file of the commit; the library downloads nothing, for the blob is there."""
    return Path(hf_hub_download(repo, name, repo_type="dataset", revision=commit))


def _download(
    repo: str,
    name: str,
    commit: str,
    file: RemoteFile,
    blob: Path,
    advance: Callable[[int], None],
) -> None:
    """Leaves a checked blob in the cache."""
    partial = _folder(repo) / "archer" / f"{file.checksum}.partial"
    partial.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{partial}.lock"):
        if blob.exists():  # another process was faster
            advance(file.size)
            return
        if _size(partial) > file.size:
            partial.unlink()
        partial.touch()
        url = hf_hub_url(repo, name, repo_type="dataset", revision=commit)
        _fill(partial, url, file.size, advance)
        _check(f"{name} of {repo!r}", partial, file, [partial])
        blob.parent.mkdir(exist_ok=True)
        os.replace(partial, blob)


def _fill(partial: Path, url: str, size: int, advance: Callable[[int], None]) -> None:
    """Appends until the size is reached; gives up when several tries in turn bring nothing."""
    advance(_size(partial))
    waits = iter(WAITS)
    while (before := _size(partial)) < size:
        failure: Exception = ConnectionError("the answer ended early")
        try:
            _append(partial, url, advance)
        except (HTTPError, OSError) as error:
            if _lasts(error):
                raise
            failure = error
        if (now := _size(partial)) >= size:
            break
        if now > before:
            waits = iter(WAITS)
        wait = next(waits, None)
        if wait is None:
            raise _BrokenOff(now, size, failure) from failure
        time.sleep(wait)


class _BrokenOff(Exception):
    """Some of a file has come and is kept."""

    def __init__(self, num_bytes: int, size: int, failure: Exception) -> None:
        super().__init__(f"{num_bytes:,} of {size:,} bytes have come: {_one_line(failure)}")


def _lasts(error: Exception) -> bool:
    """Whether the next try would fail in the same way: a refusal, or this machine's own trouble."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code not in BUSY
    return isinstance(error, OSError)


def _append(partial: Path, url: str, advance: Callable[[int], None]) -> None:
    before = _size(partial)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # positions of the file's own
    if before:
        headers["Range"] = f"bytes={before}-"
    limit = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=limit) as answer:
        hf_raise_for_status(answer)
        with open(partial, "ab") as out:
            if before and answer.status_code != 206:  # all of it comes again
                out.truncate(0)
                advance(-before)
            for block in answer.iter_bytes():
                out.write(block)
                advance(len(block))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check(what: str, path: Path, file: RemoteFile, copies: Sequence[Path]) -> None:
    """ValueError for bytes that are not the hub's; their copies go, so that new ones can come."""
    if not file.checksum or _digest(path, file.checksum) == file.checksum:
        return
    for copy in copies:
        copy.unlink(missing_ok=True)
    raise ValueError(
        f"{what} does not have the checksum {file.checksum[:12]} that the hub gives and was "
        "removed: run the same command again, which downloads it anew"
    )


def _digest(path: Path, like: str) -> str:
    """The checksum of a file, of the kind that another one is."""
    with open(path, "rb") as content:
        if len(like) == 64:
            return hashlib.file_digest(content, "sha256").hexdigest()
        head = b"blob %d\0" % _size(path)  # as git counts
        return hashlib.file_digest(content, lambda: hashlib.sha1(head)).hexdigest()


# What a person is told


@contextmanager
def _plain_errors(repo: str, revision: str | None) -> Iterator[None]:
    """One line with fact and cure for whatever the hub, the network or the disk says."""
    hub = constants.ENDPOINT
    try:
        yield
    except GatedRepoError as error:
        raise ValueError(
            f"{repo!r} is gated: accept its terms at {hub}/datasets/{repo} and set HF_TOKEN to a "
            "token of that account, or log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{hub} shows no data set {repo!r}: correct the name, or set HF_TOKEN to the token of "
            "an account that may read it if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(
            f"{repo!r} has no revision {revision!r}: give a branch, a tag or a commit that it has"
        ) from error
    except HFValidationError as error:
        raise ValueError(f"{repo!r} cannot be a name on the hub: {_one_line(error)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        cure = "set HF_TOKEN to a token that may read it" if status in (401, 403) else "try later"
        said = error.server_message or error.response.reason_phrase
        raise ValueError(f"{hub} answers {status} for {repo!r} ({said}): {cure}") from error
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, _BrokenOff) as error:
        raise ValueError(
            f"the download of {repo!r} broke off ({_one_line(error)}): run the same command again, "
            "which goes on from there"
        ) from error
    except OSError as error:
        said = error.strerror or _one_line(error)
        raise ValueError(
            f"{error.filename or constants.HF_HUB_CACHE}: {said}; make room or get the rights "
            "there, or set HF_HOME to a folder that has them, and run the same command again"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
