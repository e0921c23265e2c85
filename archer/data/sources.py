"""Where problems come from: generated tasks by name, problem files by path.

A source is a function that yields problems; `SOURCES` lists them. `load_source` draws a number of
them by seed, `train_and_eval` makes a training set of several sources and an evaluation set that
shares no prompt with it. A generated problem's id is a hash of its question, so the same question
has the same id whatever the seed, the count and the company it is drawn in.

Nothing here scores an answer, and nothing is downloaded.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from itertools import count as numbers_from
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from archer.data.functions import function_tasks
from archer.data.problems import (
    Row,
    digest,
    nearest,
    prompt_key,
    read_problems,
    read_rows,
)
from archer.own import own_function
from archer.randomness import key, permutation, uniforms
from archer.types import Message, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A problem that was left out, and why: the same reason always in the same words.

    Example:
        Dropped(reason="its own reference is not accepted", detail="wrong: 4 is not 5")
    """

    reason: str
    detail: str = ""
    """What is to be said of this one alone."""
    prompt: str | tuple[Message, ...] = ""
    """What a row asks that is no problem for another reason; empty where that is not known."""


Item = Problem | Dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """How a source is drawn from.

    Example:
        Source(items=arithmetic, endless=True)
    """

    items: Callable[..., Iterable[Item]]
    """Called with what follows "name:" (if anything does), `seed` and the source's args."""
    endless: bool
    """True: it never stops and repeats itself, so it needs a count, and repeats are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """One source as a recipe names it.

    Example, a hundred one-digit sums:
        SourceSpec(source="arithmetic", count=100, args={"operations": "+"}, prompt="{question} =")
    """

    source: str
    count: int | None = None
    """How many problems; None: all of a file."""
    seed: int = 0
    args: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    """A text with `{question}` in it; None: the question as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCount:
    """What became of one source.

    Example, two-digit sums of which 20 draws came twice and 3 stand in the evaluation set:
        SourceCount(part="train", source="arithmetic", problems=500,
                    dropped={"repeated prompt": 20, "in the evaluation set": 3})
    """

    part: Literal["train", "evaluate"]
    source: str
    problems: int
    dropped: Mapping[str, int]


REPEATED = "repeated prompt"
EVALUATED = "in the evaluation set"


def train_and_eval(
    train: Sequence[SourceSpec],
    evaluate: Sequence[SourceSpec],
    *,
    verifiers: Collection[str] | None = None,
) -> tuple[list[Problem], list[Problem], tuple[SourceCount, ...]]:
    """Training and evaluation problems that share no question, and what each source left out.

    The evaluation problems are drawn first, so they do not depend on the training set. A training
    problem whose question or finished prompt is one of theirs is passed over and another is drawn.
    ValueError if a source has too few problems left, or if two problems of a part share an id.
    """
    counts: list[SourceCount] = []
    held_out: set[bytes] = set()
    evaluation = _draw_all("evaluate", evaluate, held_out, frozenset(), counts, verifiers)
    training = _draw_all("train", train, set(), held_out, counts, verifiers)
    return training, evaluation, tuple(counts)


def load_source(
    source: str,
    *,
    count: int | None = None,
    seed: int = 0,
    args: Mapping[str, Any] | None = None,
    template: str | None = None,
    verifiers: Collection[str] | None = None,
) -> list[Problem]:
    """`count` problems of a source, drawn by `seed`; all of a file, in its order, without a count.

    `source` is a name of `SOURCES` ("arithmetic", "reasoning_gym:gcd", "gsm8k:train.jsonl"), the
    path of a problem file, or "module:function" with a function that yields problems. A larger
    count only appends to what a smaller one draws. ValueError for anything that cannot be had.
    """
    spec = SourceSpec(source=source, count=count, seed=seed, args=args or {}, prompt=template)
    return draw(spec, verifiers=verifiers)[0]


def draw(
    spec: SourceSpec,
    *,
    seen: set[bytes] | None = None,
    held_out: Collection[bytes] = frozenset(),
    verifiers: Collection[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Problem], Counter[str]]:
    """Problems of one source, and how many were left out for which reason.

    `seen` holds the prompt keys of problems that are in the set already and takes those of the new
    ones; an endless source does not repeat them. What is in `held_out` is never drawn. `progress`
    is called with the number of problems whenever there is one more.
    """
    source, items = _open(spec, verifiers)
    render = _renderer(spec)
    seen = set() if seen is None else seen
    problems: list[Problem] = []
    dropped: Counter[str] = Counter()
    fruitless = 0
    for item in items:
        if isinstance(item, Dropped):
            reason = item.reason
        elif not isinstance(item, Problem):
            raise ValueError(f"{spec.source}: it yields {item!r:.60}, which is no Problem; mend it")
        else:
            problem = render(item)
            keys = {prompt_key(item.prompt), prompt_key(problem.prompt)}
            in_set = source.endless and not keys.isdisjoint(seen)
            reason = REPEATED if in_set else EVALUATED if not keys.isdisjoint(held_out) else ""
            # A held-out problem is counted once, however often an endless source comes back to it.
            seen |= keys
        if reason:
            dropped[reason] += 1
            fruitless += 1
            # Of N equally likely questions, one in exp(20) misses its last one in 20 N draws.
            if source.endless and fruitless > 20 * (50 + len(seen) + len(held_out)):
                break
            continue
        fruitless = 0
        problems.append(problem)
        if progress is not None:
            progress(len(problems))
        if len(problems) == spec.count:
            break
    if not problems or (spec.count is not None and len(problems) < spec.count):
        raise ValueError(_too_few(spec, len(problems), dropped))
    return problems, dropped


def arithmetic(
    *, seed: int, operations: Sequence[str] = "+-*", digits: int = 1, form: str = "digits"
) -> Iterator[Problem]:
    """Two numbers of so many digits, added, subtracted or multiplied: "What is 3 + 4?".

    `operations` are any of + - *. `form` "words" writes the numbers out (up to three digits):
    "What is three plus four? Answer in digits." Every pair of numbers is equally likely; 0 counts
    as a number of one digit.
    """
    given = list(operations) if isinstance(operations, Sequence) else []
    symbols = [symbol for symbol in OPERATIONS if symbol in given]
    if not symbols or len(symbols) != len(given):
        raise ValueError(f"arithmetic: operations is {operations!r}; use any of + - *, each once")
    if form not in ("digits", "words"):
        raise ValueError(f'arithmetic: form is {form!r}; make it "digits" or "words"')
    most = 3 if form == "words" else 12
    if type(digits) is not int or not 1 <= digits <= most:
        raise ValueError(f"arithmetic: digits is {digits!r}; make it a number from 1 to {most}")
    low = 0 if digits == 1 else 10 ** (digits - 1)
    width = 10**digits - low
    label = f"arithmetic:{digits}-digit" + ("-words" if form == "words" else "")
    for block in numbers_from():
        names = ("arithmetic", seed, "".join(symbols), digits, form, block)
        for pick, left, right in uniforms(3 * 256, *names).reshape(256, 3):
            symbol = symbols[int(pick * len(symbols))]
            a, b = low + int(left * width), low + int(right * width)
            word, value = OPERATIONS[symbol]
            if form == "words":
                question = f"What is {in_words(a)} {word} {in_words(b)}? Answer in digits."
            else:
                question = f"What is {a} {symbol} {b}?"
            yield _generated("arithmetic", question, str(value(a, b)), source=label)


OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "+": ("plus", int.__add__),
    "-": ("minus", int.__sub__),
    "*": ("times", int.__mul__),
}


def functions(*, seed: int, about: object = ("numbers", "texts", "lists")) -> Iterator[Problem]:
    """One-line Python functions of numbers, texts and lists, to be written as code.

    "Write a Python function add_3(x) that returns x plus 3. Answer with …". All of them stand in
    `archer.data.functions`.
    """
    for task in function_tasks(seed, about):
        source = f"functions:{task.about}"
        yield _generated("functions", task.question, task.answer, source=source, verifier="code")


def reasoning_gym_task(task: str, *, seed: int, **args: Any) -> Iterator[Item]:
    """A procedural task of the library reasoning-gym; `args` are the fields of its config.

    A whole number as the answer is verified as mathematics, anything else by the task's own
    scorer. The library seeds its item i with seed + i, so neighbouring seeds share their items;
    here each block of 500 has a seed hashed from the task, our seed and the block's number.
    """
    library = _import_reasoning_gym()
    _check_task(library, task, args)
    for block in numbers_from():
        block_seed = key("reasoning_gym", task, seed, block) % 2**31
        with _blaming_args(task):
            dataset = library.create_dataset(task, size=500, seed=block_seed, **args)
        for place in range(500):
            with _blaming_args(task):
                entry = dataset[place]
            yield _gym_problem(dataset, task, entry)


@contextmanager
def _blaming_args(task: str) -> Iterator[None]:
    """Whatever the library raises: each task has its own way to fail on args that it did not check.

    Many fail not before an entry is made.
    """
    try:
        yield
    except Exception as error:
        fact = str(error) or type(error).__name__
        raise ValueError(f"reasoning_gym:{task}: {fact}; change the source's args") from error


def gsm8k(path: str, *, seed: int) -> Iterator[Problem]:
    """The official JSONL of GSM8K (`question`, and `answer` with the result behind ####)."""
    del seed  # The rows are all there is; drawing some of them by seed is `draw`'s.
    for number, row in read_rows(path):
        problem = gsm8k_problem(row, id=f"{Path(path).stem}-{number:06d}")
        if isinstance(problem, Dropped):
            raise ValueError(
                f"{path}:{number}: no row of GSM8K, {problem.reason}; a row has "
                '"question" and "answer", two texts, and the result stands behind ####'
            )
        yield problem


SOURCES: dict[str, Source] = {
    "arithmetic": Source(items=arithmetic, endless=True),
    "functions": Source(items=functions, endless=True),
    "reasoning_gym": Source(items=reasoning_gym_task, endless=True),
    "gsm8k": Source(items=gsm8k, endless=False),
}
"""The sources with a name. "name:detail" hands the detail on: a task, or the path of a file."""


def gsm8k_problem(row: Row, *, id: str) -> Item:
    """A row of GSM8K: the result without thousands commas, the solution without <<sums>>."""
    question, answer = row.get("question"), row.get("answer")
    if not (isinstance(question, str) and isinstance(answer, str) and question.strip()):
        return Dropped(reason="no question or no answer")
    solution, mark, result = answer.rpartition("####")
    result = result.replace(",", "").strip()
    if not mark or not result:
        return Dropped(reason="no result behind ####")
    solution = re.sub(r"<<[^<>]*>>", "", solution).strip()
    return Problem(
        id=id,
        prompt=question,
        verifier="math",
        answer=result,
        source="gsm8k",
        meta={"solution": solution},
    )


def in_words(number: int) -> str:
    """A number below a thousand in English: 342 is "three hundred forty-two"."""
    assert 0 <= number < 1000
    if number >= 100:
        rest = f" {in_words(number % 100)}" if number % 100 else ""
        return f"{SMALL[number // 100]} hundred{rest}"
    if number < 20:
        return SMALL[number]
    return TENS[number // 10 - 2] + (f"-{SMALL[number % 10]}" if number % 10 else "")


# fmt: off
SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]
# fmt: on
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


REFUSED = {
    "codeio": "runs code that draws from the global random state; use another task",
    "composite": "is a mix of other tasks; name each of them as a source of its own",
}
"""Tasks that cannot be drawn by seed and name, and what to do (reasoning-gym 0.1.25)."""

HASH_DEPENDENT = (
    "isomorphic_strings",
    "knight_swap",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
)
"""Tasks whose items change with PYTHONHASHSEED (reasoning-gym 0.1.25)."""


def _check_task(library: ModuleType, task: str, args: Mapping[str, Any]) -> None:
    known = library.factory.DATASETS
    if task not in known:
        raise ValueError(f'unknown reasoning_gym task "{task}"; {nearest(task, sorted(known))}')
    if task in REFUSED:
        raise ValueError(f"reasoning_gym:{task} {REFUSED[task]}")
    if task == "zebra_puzzles" and importlib.util.find_spec("pycosat") is None:
        raise ValueError("reasoning_gym:zebra_puzzles needs pycosat; pip install pycosat")
    if task in HASH_DEPENDENT and sys.flags.hash_randomization:
        raise ValueError(
            f"reasoning_gym:{task} depends on Python's hash seed, which is random now; "
            "set PYTHONHASHSEED=0 in the environment"
        )
    names = [item.name for item in fields(known[task][1]) if item.name not in ("seed", "size")]
    for name in args:
        if name not in names:
            raise ValueError(f'reasoning_gym:{task}: unknown arg "{name}"; {nearest(name, names)}')


def _gym_problem(dataset: Any, task: str, entry: Row) -> Item:
    answer = entry["answer"]
    if task == "basic_arithmetic" and exact_value(entry["metadata"]["expression"]) != int(answer):
        # The library rounds quotients down, and without parentheses ignores precedence.
        return Dropped(reason="the task's own answer is not the value of its expression")
    source = f"reasoning_gym:{task}"
    if isinstance(answer, str) and re.fullmatch(r"0|-?[1-9]\d*", answer):
        return _generated(task, entry["question"], answer, source=source)
    stored = json.dumps(entry)
    if answer is not None and dataset.score_answer(answer, json.loads(stored)) < 1:
        if dataset.score_answer(answer, entry) < 1:
            return Dropped(reason="the task's own scorer refuses the task's own answer")
        raise ValueError(f"{source}: its scorer cannot read its entries from a file; use another")
    whole = {"task": task, "entry": json.loads(stored)}
    return _generated(task, entry["question"], whole, source=source, verifier="reasoning_gym")


def exact_value(expression: str) -> Fraction | None:
    """The value of a sum of whole numbers, + - * / and parentheses; None if it divides by 0."""

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int(number)):
                return Fraction(number)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return value(left) + value(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return value(left) - value(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return value(left) * value(right)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                return value(left) / value(right)
        raise AssertionError(f"{ast.dump(node)} in {expression!r}")

    try:
        return value(ast.parse(expression, mode="eval").body)
    except ZeroDivisionError:
        return None


def _generated(
    name: str, question: str, answer: object, *, source: str, verifier: str = "math"
) -> Problem:
    return Problem(
        id=f"{name}-{digest(question).hex()[:16]}",
        prompt=question,
        verifier=verifier,
        answer=answer,
        source=source,
    )


def _draw_all(
    part: Literal["train", "evaluate"],
    specs: Sequence[SourceSpec],
    seen: set[bytes],
    held_out: Collection[bytes],
    counts: list[SourceCount],
    verifiers: Collection[str] | None,
) -> list[Problem]:
    everything: list[Problem] = []
    sources: dict[str, str] = {}
    for spec in specs:
        problems, dropped = draw(spec, seen=seen, held_out=held_out, verifiers=verifiers)
        for problem in problems:
            if problem.id in sources:
                raise ValueError(
                    f"{part}: the id {problem.id!r} comes from {sources[problem.id]} and again "
                    f"from {spec.source}; give each problem of a set an id of its own"
                )
            sources[problem.id] = spec.source
        counts.append(
            SourceCount(
                part=part, source=spec.source, problems=len(problems), dropped=dict(dropped)
            )
        )
        everything += problems
    return everything


def _open(spec: SourceSpec, verifiers: Collection[str] | None) -> tuple[Source, Iterable[Item]]:
    """The source of a spec and its items, in an order that the seed decides if it has a count."""
    if spec.count is not None and spec.count < 1:
        raise ValueError(f"{spec.source}: count is {spec.count}; make it at least 1")
    name, colon, detail = spec.source.partition(":")
    args = dict(spec.args)
    if name in SOURCES:
        source = SOURCES[name]
        _check_args(spec, source, detail)
        details = [detail] if colon else []
        items = source.items(*details, seed=spec.seed, **args)
    elif spec.source.endswith(".jsonl"):
        if args:
            raise ValueError(f"{spec.source}: a problem file has no args; remove {', '.join(args)}")
        source = Source(items=read_problems, endless=False)
        items = read_problems(spec.source, verifiers=verifiers)
    elif colon:
        source = Source(items=_import_function(spec.source), endless=spec.count is not None)
        _check_args(spec, source, "")
        items = source.items(seed=spec.seed, **args)
    else:
        raise ValueError(
            f'unknown source "{spec.source}"; {nearest(spec.source, list(SOURCES))}, the path of a '
            'problem file that ends in .jsonl (archer prepare makes one), or "module:function"'
        )
    if source.endless and spec.count is None:
        raise ValueError(f"{spec.source}: it has no end; give it a count")
    if not source.endless and spec.count is not None:
        rows = list(items)
        items = (rows[place] for place in permutation(len(rows), "draw", spec.seed))
    return source, items


def _check_args(spec: SourceSpec, source: Source, detail: str) -> None:
    parameters = inspect.signature(source.items).parameters.values()
    leading = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if bool(leading) != bool(detail):
        name = spec.source.partition(":")[0]
        form = f"{name}:{leading[0].upper()}" if leading else name
        raise ValueError(f'unknown source "{spec.source}"; write "{form}"')
    keywords = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    names = [name for name in keywords if name != "seed"]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    for name in spec.args:
        if name not in names and (name == "seed" or not takes_any):
            cure = "it is a key of the source, not of its args" if name == "seed" else ""
            cure = cure or (nearest(name, names) if names else "it has none")
            raise ValueError(f'{spec.source}: unknown arg "{name}"; {cure}')


def _renderer(spec: SourceSpec) -> Callable[[Problem], Problem]:
    template = spec.prompt
    if template is None:
        return lambda problem: problem
    if "{question}" not in template:
        raise ValueError(
            f"{spec.source}: the prompt {template!r} has no {{question}}; "
            "write {question} where the question belongs"
        )

    def render(problem: Problem) -> Problem:
        if not isinstance(problem.prompt, str):
            raise ValueError(
                f"{spec.source}: {problem.id!r} is a chat, which no prompt can be put around; "
                "remove the source's prompt"
            )
        return replace(problem, prompt=template.replace("{question}", problem.prompt))

    return render


def _too_few(spec: SourceSpec, found: int, dropped: Counter[str]) -> str:
    asked = "" if spec.count is None else f"{spec.count} problems asked for, but "
    left_out = [f"{n} {reason}" for reason, n in dropped.items() if reason != REPEATED]
    fact = f"{spec.source}: {asked}only {found} different ones are left"
    cure = f"ask for at most {found}" if found else "hold out fewer, or name another source"
    return fact + (f" ({', '.join(left_out)})" if left_out else "") + f"; {cure}"


def _import_reasoning_gym() -> ModuleType:
    """The library, imported only when a task of it is drawn: that takes about two seconds."""
    # pycosat has to be compiled and may be missing. Only zebra_puzzles calls it, but the import of
    # the library wants it, so an empty module stands in for that long.
    missing = importlib.util.find_spec("pycosat") is None
    if missing:
        sys.modules["pycosat"] = ModuleType("pycosat")
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise ValueError(f'reasoning_gym: {error}; pip install "archer-rl[tasks]"') from error
    finally:
        if missing:
            del sys.modules["pycosat"]


def _import_function(name: str) -> Callable[..., Iterable[Item]]:
    try:
        found: Callable[..., Iterable[Item]] = own_function(name)
    except ValueError as error:
        raise ValueError(
            f'unknown source "{name}": {error}; known: {", ".join(SOURCES)}'
        ) from error
    if not _takes_seed(found):
        cure = "name one of the form def problems(*, seed) that yields problems"
        raise ValueError(f'the source "{name}" is no function that takes a seed; {cure}')
    return found


def _takes_seed(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # no function, or one that is not written in Python
        return False
    kinds = {p.name: p.kind for p in parameters}
    return kinds.get("seed") is inspect.Parameter.KEYWORD_ONLY or (
        inspect.Parameter.VAR_KEYWORD in kinds.values()
    )
