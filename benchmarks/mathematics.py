r"""Judging mathematics: the answers of MATH-500 and hostile ones, one by one through a worker pool.

    python benchmarks/mathematics.py

Every reference answer is judged against itself, other ways to write it, and ten other answers of
the suite; hostile answers are judged against a number, an expression and an interval. A pool of one
worker that is warm gets one response at a time; what is measured is the wall time until its
verdict, and the CPU time that a verdict may take is the default of `Policy`.

Reads math500.jsonl from the folder beside this repository that the tests read real data from.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from archer.types import Problem
from archer.verify.policy import Policy
from archer.verify.pool import WorkerPool

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "math500.jsonl"
OTHERS = 10
"""Other answers that each reference answer is judged against."""
GOLDS = (r"\frac{1}{2}", r"x^{2}+\sqrt{3}", r"(-\infty, 2) \cup [3, \infty)")

HOSTILE = {
    "tower of powers": "9^{9^{9}}",
    "higher tower": "9^{9^{9^{9^{9}}}}",
    "tower of factorials": "((((9!)!)!)!)!",
    "large factorial": "(10^{9})!",
    "large binomial": r"\binom{10^{12}}{10^{11}}",
    "large exponent": "(1+x)^{1000000}",
    "large number in a logarithm": r"\log_{2}(3^{3^{3^{3}}})",
    "tiny number": "2^{-10^{9}}",
    "a million digits": "9" * 10**6,
    "a thousand digits": "9" * 999,
    "a thousand digits and a root": r"\sqrt{" + "9" * 990 + "}",
    "scientific notation": "1e999999999",
    "parentheses, a hundred thousand": "(" * 10**5 + "x" + ")" * 10**5,
    "parentheses, twelve": "(" * 12 + "x+1" + ")" * 12,
    "parentheses that never close": "(" * 900,
    "fractions in each other": r"\frac{1}{1+" * 11 + "x" + "}" * 11,
    "roots in each other": r"\sqrt{1+" * 11 + "x" + "}" * 11,
    "boxes in each other": r"\boxed{" * 10**4 + "5" + "}" * 10**4,
    "minus signs": "-" * 900 + "5",
    "sum of 400 terms": "+".join(["x"] * 400),
    "sum of a hundred roots": "+".join(rf"\sqrt{{{n}}}" for n in range(2, 90)),
    "product of sums": "".join(f"(x+{n})" for n in range(1, 150)),
    "power of a sum": "(a+b+c+d+e+f+g+h)^{50}",
    "sum over a range": r"\sum_{k=1}^{10^{12}} \frac{1}{k^{2}}",
    "product over a range": r"\prod_{k=1}^{10^{9}} k",
    "integral": r"\int_{0}^{\infty} \frac{\sin^{9} x}{x^{9}} e^{-x^{2}} dx",
    "limit": r"\lim_{x \to 0} \frac{\sin(\tan x)-\tan(\sin x)}{x^{7}}",
    "derivative": r"\frac{d^{20}}{dx^{20}} e^{e^{e^{x}}}",
    "matrix, 20 by 20": r"\begin{pmatrix}"
    + r"\\".join(["&".join("1" * 20)] * 20)
    + r"\end{pmatrix}",
    "matrix, 300 by 300": (
        r"\begin{pmatrix}" + r"\\".join(["&".join("1" * 300)] * 300) + r"\end{pmatrix}"
    ),
    "set of 400": r"\{" + ",".join(str(n) for n in range(250)) + r"\}",
    "set of 100 roots": r"\{" + ",".join(rf"\sqrt{{{n}}}" for n in range(100)) + r"\}",
    "union of 60 intervals": r"\cup".join(f"({n},{n + 1})" for n in range(60)),
    "plus and minus, 20 times": r"1\pm 2" + r"\pm 3" * 20,
    "commas": "," * 900,
    "blanks": " " * 10**6,
    "digits and blanks": "1 " * 490,
    "digits and commas": "1," * 490,
    "letters and blanks": "a " * 490,
    "words": "yes and no or " * 60,
    "text in text": r"\text{" * 10 + "a" + "}" * 10,
    "degrees": "5^\\circ" * 120,
    "dollars": "$" * 900,
    "underscores": "x_" * 490,
    "carets": "x^" * 490,
    "dots": "." * 900,
    "backslashes": "\\" * 900,
    "bars": "|" * 900,
    "relations": "x<" * 400 + "x",
    "equations": "1=" * 400 + "1",
    "zero bytes": "\x00" * 900,
    "many letters": "".join(map(chr, range(97, 123))) * 30,
    "periodic functions": r"\sin(\cos(\tan(\sin(\cos(\tan(10^{50}x))))))",
    "absolute values": "|" + "|x-1|-" * 80 + "1|",
    "floor of a large number": r"\lfloor 10^{3000}\sqrt{2} \rfloor",
    "remainder of a large power": r"7^{7^{7^{7}}} \mod 1000",
    "greatest common divisor": r"\gcd(2^{10^{6}}-1, 2^{10^{5}}-1)",
    "zeta": r"\zeta(1+10^{-9})",
    "code": "__import__('os').system('sleep 60')",
    "a long response": "so it goes, " * 10**5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A response with what must become of it; None where any verdict but a right one will do."""

    kind: str
    gold: str
    answer: str
    right: bool


def main() -> None:
    """Judges everything and prints a line per kind."""
    if not DATA.is_file():
        raise SystemExit(f"{DATA} is missing: put the test set of MATH-500 there")
    golds = sorted({json.loads(row)["answer"] for row in DATA.read_text("utf-8").splitlines()})
    cases = [*cases_of(golds), *hostile_cases()]
    policy = Policy()
    kinds = list(dict.fromkeys(case.kind for case in cases))
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    outcomes: dict[str, list[tuple[Case, str]]] = {kind: [] for kind in kinds}
    with WorkerPool(workers=1, policy=policy) as pool:
        judged(pool, Case(kind="", gold=r"\sqrt{2}", answer=r"\frac{2}{\sqrt{2}}", right=True))
        for case in cases:
            begin = time.perf_counter()
            outcome = judged(pool, case)
            times[case.kind].append(time.perf_counter() - begin)
            outcomes[case.kind].append((case, outcome))
    print(
        f"{'':16}{'pairs':>7}{'median':>10}{'p99':>10}{'max':>10}{'late':>6}{'right':>9}{'false':>7}"
    )
    for kind in kinds:
        print(line(kind, times[kind], outcomes[kind], policy.cpu_seconds))
    everything = [taken for kind in kinds for taken in times[kind]]
    print(
        line("all", everything, [pair for k in kinds for pair in outcomes[k]], policy.cpu_seconds)
    )
    print("times in ms; late: over the CPU seconds of the policy; false: wrong answers accepted")
    for case, outcome in (pair for kind in kinds for pair in outcomes[kind]):
        if outcome == "error" or (outcome == "correct") is not case.right:
            print(f"  {outcome}: {case.answer[:60]!r} for {case.gold[:60]!r}")


def judged(pool: WorkerPool, case: Case) -> str:
    """The outcome of the case's answer in a box."""
    problem = Problem(id="p", prompt="?", verifier="math", answer=case.gold)
    pool.ledger()  # forgets earlier verdicts, so that none is taken from them
    response = f"All in all, it is $\\boxed{{{case.answer}}}$."
    return pool.submit(problem, response, False).result().outcome


def line(kind: str, times: list[float], judged: list[tuple[Case, str]], deadline: float) -> str:
    """One row of the table."""
    ordered = sorted(1000 * taken for taken in times)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    right = sum((outcome == "correct") is case.right for case, outcome in judged) / len(judged)
    false = sum(outcome == "correct" and not case.right for case, outcome in judged)
    late = sum(taken > deadline for taken in times)
    return (
        f"{kind:16}{len(ordered):7}{ordered[len(ordered) // 2]:10.3f}{p99:10.1f}{ordered[-1]:10.1f}"
        f"{late:6}{right:9.2%}{false:7}"
    )


def cases_of(golds: list[str]) -> Iterator[Case]:
    """Reference answers with themselves, their other forms, and other answers."""
    rng = random.Random(0)
    for gold in golds:
        yield Case(kind="itself", gold=gold, answer=gold, right=True)
        for form in dict.fromkeys(other_forms(gold)):
            if form != gold:
                yield Case(kind="rewritten", gold=gold, answer=form, right=True)
        for other in rng.sample(golds, OTHERS):
            if letters(other) != letters(gold):
                yield Case(kind="other answers", gold=gold, answer=other, right=False)


def other_forms(gold: str) -> Iterator[str]:
    """The same in other LaTeX; fractions, also as quotients and not in lowest terms."""
    yield gold.replace(r"\frac", r"\dfrac").replace(r"\left", "").replace(r"\right", "")
    if "text" not in gold and "mbox" not in gold:
        yield re.sub(r"(?<=[\w)}])([-+=])(?=[\w(\\])", r" \1 ", gold)
    if fraction := re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", gold):
        sign, top, bottom = fraction[1], int(fraction[2]), int(fraction[3])
        yield f"{sign}{top}/{bottom}"
        yield rf"{sign}\frac{{{7 * top}}}{{{7 * bottom}}}"
    if re.fullmatch(r"-?\d+", gold):
        yield f"{gold}.0"
        yield rf"\frac{{{3 * int(gold)}}}{{3}}"
    if re.fullmatch(r"[-\d]+(, ?[-\d]+)+", gold) and not re.fullmatch(r"\d{1,3}(,\d{3})+", gold):
        yield ", ".join(reversed(re.split(r", ?", gold)))


def letters(text: str) -> str:
    """What an answer says, told by its letters alone: 36 and 36 degrees say the same."""
    return re.sub(r"\\mbox\{.*|\\text\{ .*|,\\!|\\left|\\right|circ|x=|[\\$^{}% ]", "", text)


def hostile_cases() -> Iterator[Case]:
    """Answers made to take long, or to end whoever reads them."""
    for answer in HOSTILE.values():
        for gold in GOLDS:
            yield Case(kind="hostile", gold=gold, answer=answer, right=False)


if __name__ == "__main__":
    main()
