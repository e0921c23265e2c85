"""`archer grade`: verdicts on stored responses, by the verifiers of training.

A row is a problem with one more key, "response", and perhaps "in_thought"; the lines of a run's
`rollouts/` and `eval/` are such rows. One verdict a line comes out, in the order of the rows. The
whole file is checked before the first verdict. Every verdict is written as it comes, so that an
interrupted grading goes on where it stopped; a card beside the verdicts (OUT.card.json) says which
input and settings they belong to. Rows may come with an outcome, a run's or another grader's; what
differs from it is said at the end. Nothing here samples, and no torch is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from archer.cores import num_cores
from archer.data.problems import Row, read_rows, shown, to_problem
from archer.files import written_whole
from archer.records import verdict_row
from archer.terminal import Terminal, table
from archer.types import OUTCOMES, Problem, Verdict
from archer.verify.code import below_full, check_sandbox
from archer.verify.policy import Policy
from archer.verify.pool import Ticket, WorkerPool
from archer.verify.verifiers import VERIFIERS

ROLLOUT_KEYS = frozenset(
    "group sample outcome score detail seconds sandbox reward advantage tokens stop logp "
    "entropy".split()
)
"""What the lines of a run say beside problem and response: read past, but for the outcome."""

IN_FLIGHT = 64
"""Responses that wait for their verdicts at a time, per worker: memory is bounded by them."""
MAX_LINE = 1 << 16
"""Longer than any verdict."""
MOST_CHANGED, CHANGE_WIDTH = 20, 100
"""Problems with changed verdicts that are told, and characters of each; the card has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A problem with a stored response to it.

    Example:
        Answered(problem=Problem(id="sum-1", ...), response="\\boxed{5}", in_thought=False)
    """

    problem: Problem
    response: str
    in_thought: bool


def grade(
    file: Path,
    out: Path,
    terminal: Terminal,
    *,
    workers: int,
    policy: Policy,
) -> str:
    """Judges every response of `file` into `out`; returns the counts as a text.

    Raises ValueError for a row that is wrong, before any is judged, and for an `out` that holds
    something else.
    """
    if file.exists() and not (file.is_file() or file.is_dir()):  # it is read three times
        raise ValueError(f"{file}: no regular file; save the rows in one and give its path")
    if out.exists() and not out.is_file():
        raise ValueError(f"{out} is no regular file; give another --out")
    verifiers = Counter(row.problem.verifier for row in read_answered(file))
    total = verifiers.total()
    if not total:
        raise ValueError(f"{file}: the file is empty; write at least one row into it")
    if verifiers["code"] and (said := below_full(check_sandbox(policy.sandbox))):
        terminal.say(said)
    # As the card gives them back, with lists for tuples, or no grading would go on.
    facts = json.loads(json.dumps({"input_hash": _hash(file), **asdict(policy)}))
    card = out.with_name(f"{out.name}.card.json")
    done = _done(out, card, file, facts, total)
    if done:
        terminal.say(f"{out}: {done} of {total} are judged already")
    pool = WorkerPool(workers=workers or num_cores(), policy=policy)
    out.parent.mkdir(parents=True, exist_ok=True)
    facts.update(input=str(file), rows=total)
    _write_card(card, facts)
    with pool, open(out, "ab") as lines, terminal.bar("grade", total) as advance:
        rest = islice(read_answered(file), done, None)
        window = IN_FLIGHT * (workers or num_cores())
        for place, (id, verdict) in enumerate(_verdicts(pool, rest, window), start=done + 1):
            line = {"id": id, **verdict_row(verdict)}
            lines.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            lines.flush()
            advance(place, 0)
        os.fsync(lines.fileno())
    outcomes, score, fault = _tally(out)
    found: dict[str, Any] = {"outcomes": outcomes, "score": score}
    text = _describe(outcomes, score, fault)
    compared, changed = _changes(file, out)
    if compared:
        found["before"] = {"compared": compared, "changed": changed}
        text += f"\n\n{_describe_changes(compared, changed)}"
    _write_card(card, facts | found)
    return f"{text}\n\n{out}, and its card {card}"


def _verdicts(
    pool: WorkerPool, rows: Iterable[Answered], window: int
) -> Iterator[tuple[str, Verdict]]:
    """Ids and verdicts in the order of the rows, with at most `window` responses on their way."""
    waiting: deque[tuple[str, Ticket]] = deque()
    for place, row in enumerate(rows):
        if len(waiting) == window:
            id, ticket = waiting.popleft()
            yield id, ticket.result()
        if place % window == 0:
            pool.ledger()  # or it would remember every response
        waiting.append((row.problem.id, pool.submit(row.problem, row.response, row.in_thought)))
    for id, ticket in waiting:
        yield id, ticket.result()


def read_answered(path: Path) -> Iterator[Answered]:
    """The rows of a file of responses; ValueError, beginning with FILE:LINE, for a wrong one."""
    for line, row in read_rows(path):
        yield to_answered(row, where=f"{path}:{line}")


def to_answered(row: Row, *, where: str) -> Answered:
    """A checked problem with its response, from one row."""
    if "response" not in row:
        raise ValueError(f'{where}: the key "response" is missing; a row to be graded needs it')
    response, in_thought = row["response"], row.get("in_thought", False)
    if not isinstance(response, str):
        raise ValueError(f'{where}: "response" is {shown(response)}; make it a text')
    if not isinstance(in_thought, bool):
        raise ValueError(f'{where}: "in_thought" is {shown(in_thought)}; make it true or false')
    own = {
        key: value
        for key, value in row.items()
        if key not in ROLLOUT_KEYS and key not in ("response", "in_thought")
    }
    problem = to_problem(own, where=where, verifiers=VERIFIERS)
    return Answered(problem=problem, response=response, in_thought=in_thought)


def _done(out: Path, card: Path, file: Path, facts: Mapping[str, Any], total: int) -> int:
    """How many verdicts of just this grading are in `out`; a line that a kill tore is cut off."""
    if not out.exists() or out.stat().st_size == 0:
        return 0
    count, end = 0, 0
    if _stored_facts(card).items() >= facts.items():
        with open(out, "rb") as lines:
            for line, row in zip(lines, read_answered(file), strict=False):
                if _verdict_id(line) != row.problem.id:
                    break
                count, end = count + 1, end + len(line)
            lines.seek(end)
            rest = lines.read(MAX_LINE)
        if b"\n" not in rest and len(rest) < MAX_LINE and (count < total or not rest):
            os.truncate(out, end)
            return count
    raise ValueError(
        f"{out} is there and does not hold verdicts on {file} with these settings; "
        "give another --out"
    )


def _stored_facts(card: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(card.read_bytes()))
    except (OSError, ValueError):
        return {}


def _verdict_id(line: bytes) -> str | None:
    """The id in a whole line of verdicts."""
    try:
        return str(json.loads(line)["id"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _write_card(path: Path, facts: dict[str, Any]) -> None:
    with written_whole(path) as file:
        file.write((json.dumps(facts, indent=1) + "\n").encode())


def _tally(out: Path) -> tuple[dict[str, int], float | None, str]:
    """Outcomes of all verdicts, the mean score of those that are no grader errors, and the
    commonest of these; "" without any."""
    found: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    total = 0.0
    for _, row in read_rows(out):
        found[row["outcome"]] += 1
        if row["outcome"] == "error":
            faults[" ".join(row["detail"].split())] += 1
        else:
            total += row["score"]
    judged = found.total() - found["error"]
    outcomes: dict[str, int] = {name: found[name] for name in OUTCOMES}
    score = total / judged if judged else None
    return outcomes, score, "".join(f"{n} times: {said}" for said, n in faults.most_common(1))


def _changes(file: Path, out: Path) -> tuple[int, dict[str, list[str]]]:
    """How many rows came with an outcome, and by problem the verdicts that differ from it.

    What counts is right or not right. Where the grader failed, then or now, nothing is compared.

    Example: (800, {"abc301_a": ["correct, now wrong: test 2 of 9: '1 2' is not '1 3'"]})
    """
    compared = 0
    changed: dict[str, list[str]] = {}
    for (_, row), (_, verdict) in zip(read_rows(file), read_rows(out), strict=True):
        before, now = row.get("outcome"), verdict["outcome"]
        if before not in OUTCOMES or "error" in (before, now):
            continue
        compared += 1
        if (before == "correct") != (now == "correct"):
            said = f"{before}, now {now}: {verdict['detail']}"
            changed.setdefault(verdict["id"], []).append(said)
    return compared, changed


def _describe_changes(compared: int, changed: Mapping[str, list[str]]) -> str:
    number = sum(map(len, changed.values()))
    lines = [f"{number} of {compared} verdicts differ from the outcome that the row came with"]
    for id, said in list(changed.items())[:MOST_CHANGED]:
        line = " ".join(f"{id} ({len(said)}): {said[0]}".split())
        lines.append(line if len(line) <= CHANGE_WIDTH else line[: CHANGE_WIDTH - 3] + "...")
    if len(changed) > MOST_CHANGED:
        lines.append(f"and {len(changed) - MOST_CHANGED} more problems, see the card")
    return "\n".join(lines)


def _describe(outcomes: Mapping[str, int], score: float | None, fault: str) -> str:
    rows: list[tuple[str, ...]] = [(name, str(count)) for name, count in outcomes.items() if count]
    rows.append(("mean score", "-" if score is None else f"{score:.4f}"))
    text = table(rows, ("verdict", "responses"))
    if outcomes["error"]:
        text += f"\n\nerror: the grader itself failed; such a response is in no score\n{fault}"
    return text


def _hash(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
