import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from archer.data.problems import problems_hash, prompt_key, write_problems
from archer.data.sources import (
    HASH_DEPENDENT,
    REFUSED,
    SourceSpec,
    exact_value,
    in_words,
    load_source,
    train_and_eval,
)
from archer.types import Problem

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k_train.jsonl"

needs_reasoning_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed"
)

SUMS: dict[str, Any] = {"operations": "+"}


def file_of(path: Path, *numbers: int) -> str:
    made = [
        Problem(id=f"q{n}", prompt=f"question {n}", verifier="math", answer="1") for n in numbers
    ]
    write_problems(path, made)
    return str(path)


def ids(problems: list[Problem]) -> list[str]:
    return [problem.id for problem in problems]


# Arithmetic


@pytest.mark.parametrize("digits", [1, 2, 5])
def test_sums_are_right_and_have_so_many_digits(digits: int) -> None:
    for problem in load_source("arithmetic", count=60, args={"digits": digits}):
        match = re.fullmatch(r"What is (\d+) ([-+*]) (\d+)\?", str(problem.prompt))
        assert match is not None
        a, symbol, b = match.groups()
        assert len(a) == len(b) == digits
        answer = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[symbol]
        assert (problem.verifier, problem.answer) == ("math", str(answer))


def test_sums_in_words_are_right_and_ask_for_digits() -> None:
    numbers = {in_words(number): number for number in range(100)}
    for problem in load_source("arithmetic", count=40, args={"digits": 2, "form": "words"}):
        match = re.fullmatch(
            r"What is (.+) (plus|minus|times) (.+)\? Answer in digits\.", str(problem.prompt)
        )
        assert match is not None
        a, b = numbers[match[1]], numbers[match[3]]
        assert problem.answer == str({"plus": a + b, "minus": a - b, "times": a * b}[match[2]])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (20, "twenty"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (342, "three hundred forty-two"),
        (910, "nine hundred ten"),
    ],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert in_words(number) == words


def test_all_hundred_one_digit_sums_can_be_had_and_no_more() -> None:
    assert len(set(ids(load_source("arithmetic", count=100, args=SUMS)))) == 100
    with pytest.raises(ValueError, match="101 problems asked for, but only 100 different ones are"):
        load_source("arithmetic", count=101, args=SUMS)


def test_known_arithmetic_stays_as_it_is() -> None:
    problems = load_source("arithmetic", count=3, seed=5)
    assert [(problem.id, problem.prompt, problem.answer) for problem in problems] == [
        ("arithmetic-c9d29972501fc0dc", "What is 1 - 8?", "-7"),
        ("arithmetic-3f61cac0a50e7483", "What is 9 + 7?", "16"),
        ("arithmetic-caea68da7e677703", "What is 7 * 3?", "21"),
    ]


# Drawing


def test_a_larger_count_only_appends() -> None:
    few, many = (load_source("arithmetic", count=n, seed=2) for n in (20, 50))
    assert many[:20] == few


def test_another_seed_draws_other_problems_and_the_same_question_has_the_same_id() -> None:
    one, other = (load_source("arithmetic", count=60, seed=seed, args=SUMS) for seed in (0, 1))
    assert ids(one) != ids(other)
    by_prompt = {problem.prompt: problem.id for problem in one}
    shared = [problem for problem in other if problem.prompt in by_prompt]
    assert shared and all(by_prompt[problem.prompt] == problem.id for problem in shared)


def test_a_template_is_put_around_the_question_braces_and_all(tmp_path: Path) -> None:
    made = [Problem(id="a", prompt=r"\frac{1}{2}", verifier="math", answer="0.5")]
    write_problems(tmp_path / "p.jsonl", made)
    (problem,) = load_source(str(tmp_path / "p.jsonl"), template="Q: {question} {x}\nA:")
    assert problem.prompt == "Q: \\frac{1}{2} {x}\nA:"
    assert problem.id == "a"


def test_a_file_without_a_count_is_taken_whole_in_its_order(tmp_path: Path) -> None:
    path = file_of(tmp_path / "p.jsonl", 3, 1, 2)
    assert ids(load_source(path, seed=9)) == ["q3", "q1", "q2"]


def test_with_a_count_the_seed_draws_from_a_file(tmp_path: Path) -> None:
    path = file_of(tmp_path / "p.jsonl", *range(50))
    one, same, other = (ids(load_source(path, count=10, seed=seed)) for seed in (0, 0, 1))
    assert one == same != other
    assert len(set(one)) == 10
    assert ids(load_source(path, count=20, seed=0))[:10] == one


def test_a_chat_takes_no_template(tmp_path: Path) -> None:
    chat = ({"role": "user", "content": "2+3?"},)
    write_problems(
        tmp_path / "p.jsonl", [Problem(id="a", prompt=chat, verifier="math", answer="5")]
    )
    with pytest.raises(ValueError, match="'a' is a chat, which no prompt can be put around"):
        load_source(str(tmp_path / "p.jsonl"), template="{question}")


def own_source(*, seed: int, word: str = "own") -> Iterator[Problem]:
    for number in range(seed, seed + 3):
        yield Problem(id=f"{word}-{number}", prompt=f"{number}?", verifier="math", answer="1")


def rows_source(*, seed: int) -> Iterator[dict[str, int]]:
    yield {"id": seed + 1}


def test_a_function_of_ones_own_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_tasks", sys.modules[__name__])
    problems = load_source("own_tasks:own_source", seed=4, args={"word": "w"})
    assert ids(problems) == ["w-4", "w-5", "w-6"]
    assert ids(load_source("own_tasks:own_source", count=2, seed=4)) == ["own-4", "own-5"]
    with pytest.raises(ValueError, match='unknown arg "wrd"; did you mean "word"'):
        load_source("own_tasks:own_source", args={"wrd": 1})
    with pytest.raises(ValueError, match=r"own_tasks:rows_source: it yields {'id': 1}, which is"):
        load_source("own_tasks:rows_source")


@pytest.mark.parametrize(
    ("source", "knobs", "message"),
    [
        ("arithmetic", {}, "arithmetic: it has no end; give it a count"),
        ("arithmetic", {"count": 0}, "arithmetic: count is 0; make it at least 1"),
        ("arithmetic:sums", {"count": 1}, 'unknown source "arithmetic:sums"; write "arithmetic"'),
        (
            "reasoning_gym",
            {"count": 1},
            'unknown source "reasoning_gym"; write "reasoning_gym:TASK"',
        ),
        ("gsm8k", {}, 'unknown source "gsm8k"; write "gsm8k:PATH"'),
        ("arithmetics", {}, 'unknown source "arithmetics"; did you mean "arithmetic"?'),
        (
            "no_module:f",
            {},
            'unknown source "no_module:f": no_module:f cannot be imported (No module',
        ),
        ("math:no_function", {}, 'unknown source "math:no_function": math:no_function cannot be'),
        ("os:path", {}, 'unknown source "os:path": os:path is a module, not a function; known: '),
        ("math:hypot", {}, 'the source "math:hypot" is no function that takes a seed; '),
        ("none.jsonl", {}, "none.jsonl: No such file or directory; give the path of a JSONL file"),
        ("none.jsonl", {"args": {"a": 1}}, "none.jsonl: a problem file has no args; remove a"),
        (
            "arithmetic",
            {"count": 1, "args": {"digit": 2}},
            'arithmetic: unknown arg "digit"; did you mean "digits"? known: operations, ',
        ),
        (
            "arithmetic",
            {"count": 1, "args": {"operations": "+/"}},
            "arithmetic: operations is '+/'; use any of + - *",
        ),
        (
            "arithmetic",
            {"count": 1, "args": {"digits": 0}},
            "arithmetic: digits is 0; make it a number from 1 to 12",
        ),
        (
            "arithmetic",
            {"count": 1, "args": {"form": "roman"}},
            'arithmetic: form is \'roman\'; make it "digits" or "words"',
        ),
        (
            "arithmetic",
            {"count": 1, "template": "Solve:"},
            "arithmetic: the prompt 'Solve:' has no {question}; write {question} where",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_cure(
    source: str, knobs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        load_source(source, **knobs)
    assert "\n" not in str(caught.value)


def test_an_unknown_verifier_in_a_file_is_named_by_its_line(tmp_path: Path) -> None:
    path = file_of(tmp_path / "p.jsonl", 1)
    with pytest.raises(ValueError, match=r'p\.jsonl:1: unknown verifier "math"; known: exact'):
        load_source(path, verifiers=("exact",))


# Training and evaluation


def spec(source: str = "arithmetic", **knobs: Any) -> SourceSpec:
    return SourceSpec(source=source, **knobs)


def prompts(problems: list[Problem]) -> set[bytes]:
    return {prompt_key(problem.prompt) for problem in problems}


def test_training_and_evaluation_share_no_prompt_even_in_a_small_space() -> None:
    train, evaluate, counts = train_and_eval(
        [spec(count=60, args=SUMS)], [spec(count=40, seed=1, args=SUMS)]
    )
    assert (len(train), len(evaluate)) == (60, 40)
    assert prompts(train).isdisjoint(prompts(evaluate))
    # Together they are all the sums that there are, so the draw met all but a few of the 40.
    assert len(prompts(train) | prompts(evaluate)) == 100
    assert [(count.part, count.problems) for count in counts] == [("evaluate", 40), ("train", 60)]
    assert 30 < counts[1].dropped["in the evaluation set"] <= 40


def test_too_small_a_space_says_what_is_left() -> None:
    message = (
        "arithmetic: 61 problems asked for, but only 60 different ones are left "
        "(40 in the evaluation set); ask for at most 60"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        train_and_eval([spec(count=61, args=SUMS)], [spec(count=40, seed=1, args=SUMS)])


def test_the_evaluation_set_does_not_depend_on_the_training_set() -> None:
    held = [spec(count=30, seed=1)]
    one = train_and_eval([spec(count=50)], held)[1]
    assert one == train_and_eval([spec(count=70, seed=4, args=SUMS)], held)[1]
    assert one == load_source("arithmetic", count=30, seed=1)


def test_the_same_question_in_another_template_is_held_out() -> None:
    train, evaluate, _ = train_and_eval(
        [spec(count=60, args=SUMS, prompt="Compute.\n{question}")],
        [spec(count=40, args=SUMS, prompt="{question} Think first.")],
    )
    assert set(ids(train)).isdisjoint(ids(evaluate))


def test_a_file_shares_nothing_with_what_is_held_out_of_it(tmp_path: Path) -> None:
    path = file_of(tmp_path / "p.jsonl", *range(20))
    train, evaluate, counts = train_and_eval([spec(path)], [spec(path, count=5)])
    assert sorted(ids(train) + ids(evaluate)) == sorted(f"q{n}" for n in range(20))
    assert counts[1].dropped == {"in the evaluation set": 5}


def test_generated_problems_of_two_sources_are_distinct() -> None:
    train, _, counts = train_and_eval(
        [spec(count=80, args=SUMS), spec(count=60, args={"operations": "+*"})], []
    )
    assert len(prompts(train)) == len(set(ids(train))) == 140
    assert counts[1].dropped["repeated prompt"] > 0


def test_two_problems_with_one_id_are_refused_by_both_sources(tmp_path: Path) -> None:
    one, other = file_of(tmp_path / "a.jsonl", 1), file_of(tmp_path / "b.jsonl", 1)
    with pytest.raises(ValueError, match=r"the id 'q1' comes from .*a\.jsonl and again from .*b\."):
        train_and_eval([spec(one), spec(other)], [])


def test_a_training_file_that_is_wholly_held_out_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path / "p.jsonl", 1, 2)
    with pytest.raises(ValueError, match=r"only 0 different ones are left \(2 in the evaluation"):
        train_and_eval([spec(path)], [spec(path)])


def test_what_is_drawn_depends_on_no_hash_seed_and_no_global_state() -> None:
    program = (
        "import random, numpy, sys; random.seed(int(sys.argv[1])); numpy.random.seed(1)\n"
        "from archer.data.problems import problems_hash\n"
        "from archer.data.sources import load_source\n"
        "print(problems_hash(load_source('arithmetic', count=200)))\n"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program, seed],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert hashes == {f"{problems_hash(load_source('arithmetic', count=200))}\n".encode()}


# GSM8K


def gsm8k_file(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"gsm8k:{path}"


def test_gsm8k_results_lose_their_commas_and_solutions_their_sums(tmp_path: Path) -> None:
    answer = "She pays 3*400=$<<3*400=1200>>1,200.\n#### 1,200"
    source = gsm8k_file(tmp_path / "g.jsonl", {"question": "How much?", "answer": answer})
    assert load_source(source) == [
        Problem(
            id="g-000001",
            prompt="How much?",
            verifier="math",
            answer="1200",
            source="gsm8k",
            meta={"solution": "She pays 3*400=$1,200."},
        )
    ]


@pytest.mark.parametrize("row", [{"question": "a?", "answer": "5"}, {"question": 5, "answer": "#"}])
def test_a_row_that_is_not_gsm8k_is_named_by_its_line(
    tmp_path: Path, row: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=r"g\.jsonl:1: no row of GSM8K, no "):
        load_source(gsm8k_file(tmp_path / "g.jsonl", row))


@pytest.mark.skipif(not GSM8K.exists(), reason=f"{GSM8K.name} does not lie in ../shared/data")
def test_all_of_gsm8k_is_read() -> None:
    problems = load_source(f"gsm8k:{GSM8K}")
    assert len(problems) == 7473
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", str(problem.answer)) for problem in problems)
    assert not any("<<" in problem.meta["solution"] for problem in problems)


# reasoning-gym


def library() -> Any:
    return importlib.import_module("reasoning_gym")


@needs_reasoning_gym
@pytest.mark.parametrize("task", ["gcd", "chain_sum", "simple_equations", "basic_arithmetic"])
def test_whole_numbers_are_verified_as_mathematics(task: str) -> None:
    for problem in load_source(f"reasoning_gym:{task}", count=30):
        assert problem.verifier == "math"
        assert re.fullmatch(r"-?\d+", problem.answer)
        assert re.fullmatch(rf"{task}-[0-9a-f]{{16}}", problem.id)


@needs_reasoning_gym
def test_other_answers_keep_the_entry_that_the_task_scores() -> None:
    dataset = library().create_dataset("spell_backward", seed=0)
    for problem in load_source("reasoning_gym:spell_backward", count=10):
        assert problem.verifier == "reasoning_gym"
        assert problem.answer["task"] == "spell_backward"
        entry = json.loads(json.dumps(problem.answer["entry"]))
        assert entry["question"] == problem.prompt
        assert dataset.score_answer(entry["answer"], entry) == 1.0


@needs_reasoning_gym
def test_wrong_oracle_answers_of_basic_arithmetic_are_left_out_and_counted() -> None:
    # Without parentheses the task's answers ignore precedence: "4 + 2 * 2" is 12 to it.
    args = {"allow_parentheses": False, "max_digits": 1, "max_terms": 3}
    train, _, counts = train_and_eval(
        [spec("reasoning_gym:basic_arithmetic", count=100, args=args)], []
    )
    reason = "the task's own answer is not the value of its expression"
    assert counts[0].dropped[reason] > 20
    for problem in train:
        expression = str(problem.prompt).removeprefix("Calculate ").removesuffix(".")
        assert eval(compile(ast.parse(expression, mode="eval"), "", "eval")) == int(problem.answer)


def test_expressions_are_computed_exactly() -> None:
    assert exact_value("4 + 2 * 2") == 8
    assert exact_value("-( 1 - 7 ) / 4") == Fraction(3, 2)
    assert exact_value("1 / ( 2 - 2 )") is None


@needs_reasoning_gym
def test_neighbouring_seeds_do_not_share_their_problems() -> None:
    # In the library itself, item i of seed 1 is item i + 1 of seed 0.
    one, other = (set(ids(load_source("reasoning_gym:gcd", count=300, seed=s))) for s in (0, 1))
    assert len(one & other) < 5


@needs_reasoning_gym
def test_a_small_task_space_ends_with_its_size() -> None:
    args = {"max_value": 3}
    assert len(load_source("reasoning_gym:gcd", count=9, args=args)) == 9
    with pytest.raises(ValueError, match="10 problems asked for, but only 9 different ones are"):
        load_source("reasoning_gym:gcd", count=10, args=args)


# The library leaves files of its own open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@needs_reasoning_gym
@pytest.mark.parametrize(
    ("task", "args", "message"),
    [
        ("gdc", {}, 'unknown reasoning_gym task "gdc"; near to it: gcd'),
        ("gcd", {"max": 3}, 'reasoning_gym:gcd: unknown arg "max"; '),
        ("gcd", {"seed": 3}, 'reasoning_gym:gcd: unknown arg "seed"; '),
        ("gcd", {"max_value": -3}, "reasoning_gym:gcd: max_value must be > min_value; change"),
        ("gcd", {"max_value": "x"}, "reasoning_gym:gcd: '>' not supported between"),
        ("dice", {"num_dice": 2.5}, "reasoning_gym:dice: 'float' object cannot be"),
        ("simple_integration", {"operators": []}, "reasoning_gym:simple_integration: "),
        ("composite", {}, "reasoning_gym:composite is a mix of other tasks; name each of them"),
        ("codeio", {}, "reasoning_gym:codeio runs code that draws from the global random state"),
        ("arc_agi", {}, "reasoning_gym:arc_agi: its scorer cannot read its entries from a file"),
    ],
)
def test_a_task_that_cannot_be_had_is_refused(
    task: str, args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        load_source(f"reasoning_gym:{task}", count=1, args=args)


PROBE = (
    "import random, sys, warnings; warnings.simplefilter('ignore'); random.seed(sys.argv[1])\n"
    "import numpy; numpy.random.seed(int(sys.argv[1]))\n"
    "from archer.data.problems import problems_hash\n"
    "from archer.data.sources import load_source\n"
    "for task in sys.argv[2:]:\n"
    "    try: print('>', task, problems_hash(load_source(f'reasoning_gym:{task}', count=20)))\n"
    "    except ValueError as error: print('>', task, error)\n"
)


def probe(hash_seed: str, *tasks: str) -> dict[str, str]:
    """Hash or complaint of each task, drawn in a process with a hash seed and global seeds."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, hash_seed, *tasks],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
        text=True,
    )
    return dict(re.findall(r"> (\w+) (.*)", done.stdout))


@needs_reasoning_gym
def test_tasks_that_depend_on_the_hash_seed_need_a_fixed_one() -> None:
    free, fixed = probe("1", "ransom_note"), probe("0", "ransom_note")
    assert free["ransom_note"].endswith("set PYTHONHASHSEED=0 in the environment")
    assert re.fullmatch(r"[0-9a-f]{32}", fixed["ransom_note"])


@needs_reasoning_gym
@pytest.mark.full
def test_every_other_task_is_drawn_alike_in_every_process() -> None:
    tasks = sorted(set(library().factory.DATASETS) - set(REFUSED))
    one, other = probe("1", *tasks), probe("2", *tasks)
    assert one == other
    refused = {task for task, found in one.items() if not re.fullmatch(r"[0-9a-f]{32}", found)}
    assert refused == {*HASH_DEPENDENT, "arc_agi", "rearc"}
    assert set(one) == set(tasks)


@needs_reasoning_gym
def test_without_the_part_that_must_be_compiled_all_other_tasks_are_there() -> None:
    program = (
        "import importlib.util as util, sys; find = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'pycosat' else find(name)\n"
        "from archer.data.sources import load_source\n"
        "print(len(load_source('reasoning_gym:gcd', count=5)), 'pycosat' in sys.modules)\n"
        "try: load_source('reasoning_gym:zebra_puzzles', count=1)\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.splitlines()[-2:] == [
        "5 False",
        "reasoning_gym:zebra_puzzles needs pycosat; pip install pycosat",
    ]


def test_reasoning_gym_is_imported_only_when_it_is_drawn_from() -> None:
    program = (
        "import sys; from archer.data.sources import load_source\n"
        "load_source('arithmetic', count=1)\n"
        "print('reasoning_gym' in sys.modules, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout == "False False\n"
