"""Layouts of rows: which ones are known, and one function each, from a row to a problem.

Rows of code are read by `archer.data.code_rows`, those of mathematics here. A layout also says what
a row holds as a reference: a response that must be judged correct, or the row is worth nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from archer.data import code_rows
from archer.data.problems import Row, to_line, to_problem, to_row
from archer.data.rows import as_chat, as_json, as_text, some_of
from archer.data.sources import Dropped, Item, gsm8k_problem
from archer.types import Message, Problem
from archer.verify.extract import last_box


def _no_reference(row: Row) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A known shape of rows.

    Example:
        Layout(fits=_has("text", "test_list"), convert=code_rows.mbpp, asks=("text",),
               reference=code_rows.reference)
    """

    fits: Callable[[Row], bool]
    convert: Callable[[Row, str, str], Item]
    """Called with the row, an id for rows that have none, and the file's name for the source."""
    asks: tuple[str, ...]
    """The keys that a question may stand under; the first that a row has counts."""
    reference: Callable[[Row], str | None] = _no_reference
    """A response with the row's own solution; None where it has none."""
    note: str = ""
    """What a reader of the card should know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A problem with the response that its row holds as a reference, if any.

    Example:
        Converted(problem=Problem(id="mbpp-2", ...), reference="```python\\ndef f(x): ...\\n```")
    """

    problem: Problem
    reference: str | None = None


def find_layout(row: Row) -> str | None:
    """The name of the first layout that a row has; None if no layout is known that fits."""
    return next((name for name, layout in LAYOUTS.items() if layout.fits(row)), None)


def convert_row(layout: Layout, row: Row, id: str, source: str) -> Converted | Dropped:
    """A row as a checked problem, or why it is none, and what it asks."""
    item = _convert(layout, row, id, source)
    if isinstance(item, Problem):
        return Converted(problem=item, reference=layout.reference(row))
    question = next((row[key] for key in layout.asks if key in row), "")
    return replace(item, prompt=as_chat(question))


def _convert(layout: Layout, row: Row, id: str, source: str) -> Item:
    if not layout.fits(row):
        return Dropped(reason="not in the layout of the first row")
    try:
        item = layout.convert(row, id, source)
    except ValueError as error:
        return Dropped(reason=str(error))
    if isinstance(item, Problem):
        try:
            to_problem(to_row(item), where="")
            to_line(item)
        except (ValueError, TypeError):  # or a value not JSON's: parquet has dates and bytes
            return Dropped(reason="malformed prompt or answer")
    return item


def _archer(row: Row, id: str, source: str) -> Item:
    """The data sets released with Archer, mathematics and code."""
    origin, model, extra = row["data_source"], row["reward_model"], row.get("extra_info")
    truth = model.get("ground_truth") if isinstance(model, dict) else None
    if isinstance(extra, dict) and isinstance(extra.get("index"), int | str):
        id = f"{origin}-{extra['index']}"
    prompt = _unframed(row["prompt"])
    return _by_ability(prompt, truth, f"{row.get('ability', '')} {origin}", id, str(origin))


# DAPO-Math-17k asks for its answers in a line of their own; how to answer is the recipe's to say.
_FRAME = re.compile(
    r"Solve the following math problem step by step\. The last line of your response should be of "
    r"the form Answer: \$Answer \(without quotes\) where \$Answer is the answer to the problem\.\s+"
    r"(?P<question>.*\S)\s+Remember to put your answer on its own line after \"Answer:\"\.\s*",
    re.DOTALL,
)


def _unframed(prompt: object) -> object:
    """A prompt without the frame of DAPO-Math-17k."""
    match prompt:
        case [{"role": "user", "content": str(content)}]:
            framed = _FRAME.fullmatch(content)
            return framed["question"] if framed else prompt
    return prompt


def _archer_flat(row: Row, id: str, source: str) -> Item:
    """The later data set released with Archer2.0: three texts."""
    return _by_ability(row["prompt"], row["ground_truth"], str(row["ability"]), id, source)


def _by_ability(prompt: object, truth: object, ability: str, id: str, source: str) -> Item:
    prompt = as_chat(prompt)
    if not re.search(r"\b(cod(e|ing)|livecodebench|humaneval|mbpp)", ability):
        return _mathematical(prompt, truth, id, source)
    return code_rows.released(prompt, truth, id, source)


def _olympiadbench(row: Row, id: str, source: str) -> Item:
    """A row of OlympiadBench (open-ended, text only): all of several answers belong to one."""
    if row.get("error"):
        return Dropped(reason="needs a tolerance, which the math verifier has not")
    answers = row["final_answer"]
    if isinstance(answers, list) and row.get("is_multiple_answer"):
        answers = ", ".join(str(answer).replace("$", "") for answer in answers)
    meta = some_of(row, "subfield", "answer_type", "unit")
    id = f"olympiadbench-{row['id']}" if "id" in row else id
    return _mathematical(as_chat(row["question"]), answers, id, "olympiadbench", meta)


def _gsm8k(row: Row, id: str, source: str) -> Item:
    return gsm8k_problem(row, id=id)


def _plain_mathematics(row: Row, id: str, source: str) -> Item:
    """MATH-500, AIME, AMC23, DeepScaleR: a problem and its answer."""
    if isinstance(row.get("unique_id"), str):
        id = row["unique_id"]
    elif isinstance(row.get("id"), str | int):
        id = f"{source}-{row['id']}"
    meta = some_of(row, "subject", "type", "level", "difficulty")
    question = row["problem"] if "problem" in row else row["question"]
    return _mathematical(as_chat(question), row["answer"], id, source, meta)


def _boxed_solution(row: Row) -> str | None:
    """The worked solution, where it ends in a box: AIME's and MATH's do."""
    solution = as_text(row.get("solution"))
    return solution if last_box(solution) else None


def _has(*keys: str) -> Callable[[Row], bool]:
    return lambda row: all(key in row for key in keys)


def _is_gsm8k(row: Row) -> bool:
    return "question" in row and "####" in as_text(row.get("answer"))


def _is_mathematics(row: Row) -> bool:
    return "answer" in row and ("problem" in row or "question" in row)


LAYOUTS: dict[str, Layout] = {
    "archer": Layout(
        fits=_has("prompt", "data_source", "reward_model"), convert=_archer, asks=("prompt",)
    ),
    "archer-flat": Layout(
        fits=_has("prompt", "ground_truth", "ability"), convert=_archer_flat, asks=("prompt",)
    ),
    "livecodebench": Layout(
        fits=_has("question_content", "public_test_cases"),
        convert=code_rows.livecodebench,
        asks=("question_content",),
        note="rows without private tests have public ones only: too few to trust a score",
    ),
    # Its rows have the keys of HumanEval's too.
    "leetcodedataset": Layout(
        fits=_has("problem_description", "starter_code", "entry_point", "test"),
        convert=code_rows.leetcodedataset,
        asks=("problem_description",),
        reference=code_rows.reference,
    ),
    "humaneval": Layout(
        fits=_has("prompt", "entry_point", "test"),
        convert=code_rows.humaneval,
        asks=("prompt",),
        reference=code_rows.reference,
    ),
    "mbpp": Layout(
        fits=_has("text", "test_list"),
        convert=code_rows.mbpp,
        asks=("text",),
        reference=code_rows.reference,
    ),
    "mbppplus": Layout(
        fits=_has("prompt", "test_list", "test"),
        convert=code_rows.mbppplus,
        asks=("prompt",),
        reference=code_rows.reference,
    ),
    "deepmind_code_contests": Layout(
        fits=_has("description", "public_tests"),
        convert=code_rows.deepmind_code_contests,
        asks=("description",),
        reference=code_rows.reference,
        note="where several outputs are right, the tests know one of them",
    ),
    "code_contests": Layout(
        fits=_has("content", "labels", "test"),
        convert=code_rows.code_contests,
        asks=("content",),
        note="where several outputs are right, the tests know one of them",
    ),
    "olympiadbench": Layout(
        fits=_has("question", "final_answer"), convert=_olympiadbench, asks=("question",)
    ),
    "gsm8k": Layout(fits=_is_gsm8k, convert=_gsm8k, asks=("question",)),
    "mathematics": Layout(
        fits=_is_mathematics,
        convert=_plain_mathematics,
        asks=("problem", "question"),
        reference=_boxed_solution,
    ),
}
"""The foreign layouts by name; the first that fits a file's first row is taken."""

NO_ANSWER = "no answer"


def _mathematical(
    prompt: str | tuple[Message, ...],
    truth: object,
    id: str,
    source: str,
    meta: Mapping[str, Any] | None = None,
) -> Item:
    if not prompt:
        return Dropped(reason=code_rows.NO_PROMPT)
    if isinstance(truth, str) and truth.startswith('["'):  # Skywork-OR1 writes lists as JSON
        truth = listed if isinstance(listed := as_json(truth), list) else truth
    answers = [_plain(answer) for answer in (truth if isinstance(truth, list) else [truth])]
    if not answers or not all(answers):
        return Dropped(reason=NO_ANSWER)
    return Problem(
        id=id,
        prompt=prompt,
        verifier="math",
        answer=answers if len(answers) > 1 else answers[0],
        source=source,
        meta=meta or {},
    )


def _plain(answer: object) -> str:
    """An answer without its box, its dollars and leading zeros: "025" is "25", 70.0 is "70"."""
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return ""
    text = (last_box(str(answer)) or str(answer)).strip()
    if re.fullmatch(r"\$[^$]+\$", text):
        text = text[1:-1].strip()
    return re.sub(r"^(-?)0+(\d+)$", r"\1\2", text)
