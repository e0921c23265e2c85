"""Near-duplicates, and problems of a test suite, by N-grams of words."""

from __future__ import annotations

import json
import random
import zlib
from itertools import combinations
from pathlib import Path

import pytest

from archer.cli import main
from archer.data.sources import Dropped
from archer.prepare import prepare, problems_of
from archer.prepare.grams import COVERED, no_near_duplicates, not_in, text_of, words
from archer.prepare.layouts import LAYOUTS, Converted, convert_row
from archer.types import Problem
from tests import held
from tests.real_data import real_file


def problem(prompt: str, id: str = "p", verifier: str = "math") -> Problem:
    return Problem(id=id, prompt=prompt, verifier=verifier, answer="1")


def text(seed: int, length: int = 60) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh", k=6)) for _ in range(length)]


def runs(found: list[str], n: int) -> set[tuple[str, ...]]:
    """All runs of n words, plainly."""
    return {tuple(found[start : start + n]) for start in range(max(1, len(found) - n + 1))}


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("If $x_1 + 2 = 5$, find X.", ["if", "x", "1", "+", "2", "=", "5", "find", "x"]),
        (r"\\frac{1}{2}", ["frac", "1", "2"]),
        ("Ｆｕｌｌ ① Straße", ["full", "1", "strasse"]),
        ("求和 of 12", ["求", "和", "of", "12"]),
        ("", []),
        ("(. , $ {}", []),
    ],
)
def test_words_are_letters_and_digits_in_lower_case_and_signs_of_operations(
    said: str, found: list[str]
) -> None:
    assert words(said) == found


def test_of_messages_only_the_users_count() -> None:
    asked = Problem(
        id="p",
        prompt=(
            {"role": "system", "content": "You are wise."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ),
        verifier="math",
        answer="1",
    )
    assert text_of(asked) == "one\nthree"


# --- near-duplicates ---


def test_a_near_duplicate_is_told_by_the_share_of_its_5_grams() -> None:
    """20 words have 16 5-grams. The last word changed spoils one: 15 of 17 are shared, 88 %. One
    in the middle spoils five: 11 of 21, 52 %."""
    base = text(0, 20)
    end, middle = [*base[:-1], "other"], [*base[:10], "other", *base[11:]]
    for changed, share in ((end, 15 / 17), (middle, 11 / 21)):
        for least, is_left_out in ((share - 0.01, True), (share + 0.01, False)):
            reject = no_near_duplicates(least)
            assert reject(problem(" ".join(base), "first")) is None
            found = reject(problem(" ".join(changed), "second"))
            assert (found is not None) == is_left_out
            if found is not None:
                assert found.reason == "nearly repeats another problem"
                assert found.detail == f"{share:.0%} as first"


def test_other_numbers_make_another_problem_but_not_of_code() -> None:
    base = text(1)
    for verifier, is_left_out in (("math", False), ("code", True)):
        reject = no_near_duplicates(0.8)
        assert reject(problem(" ".join([*base, "17"]), "first", verifier)) is None
        found = reject(problem(" ".join([*base, "18"]), "second", verifier))
        assert (found is not None) == is_left_out


@pytest.mark.parametrize(
    ("one", "other"), [("3x", "5x"), ("5cm", "7cm"), ("x2", "x3"), ("x²", "x³"), ("2x3", "23x")]
)
def test_numbers_beside_letters_are_numbers_too(one: str, other: str) -> None:
    base = text(1)
    reject = no_near_duplicates(0.7)
    assert reject(problem(" ".join([*base, one]), "first")) is None
    assert reject(problem(" ".join([*base, other]), "second")) is None
    assert reject(problem(" ".join([*base, one, "indeed"]), "third")) is not None


def test_near_duplicates_are_those_of_all_pairs_compared_one_by_one() -> None:
    """The plain twin compares every problem with every one that stayed."""
    draw, least = random.Random(2), 0.7
    problems: list[Problem] = []
    for number in range(300):
        found = text(number) if number % 3 == 0 else words(problems[-1].prompt)  # type: ignore[arg-type]
        for _ in range(draw.randrange(4)):
            found[draw.randrange(len(found))] = "changed" + "abcd"[draw.randrange(4)]
        problems.append(problem(" ".join(found), f"p{number}"))
    stayed: list[Problem] = []
    for each in problems:
        own = runs(words(text_of(each)), 5)
        others = [runs(words(text_of(other)), 5) for other in stayed]
        if not any(len(own & other) / len(own | other) >= least for other in others):
            stayed.append(each)
    reject = no_near_duplicates(least)
    assert [p.id for p in problems if reject(p) is None] == [p.id for p in stayed]
    assert 100 < len(stayed) < 290


def test_a_text_without_words_repeats_nothing() -> None:
    reject = no_near_duplicates(0.7)
    assert reject(problem("( (")) is None
    assert reject(problem(") )")) is None


@pytest.mark.parametrize("share", [0.0, 0.4, 1.1, float("nan")])
def test_a_share_of_less_than_half_tells_nothing(share: float) -> None:
    with pytest.raises(ValueError, match=r"make it 0\.5 to 1"):
        no_near_duplicates(share)


def test_the_problems_of_math_500_are_not_alike() -> None:
    reject = no_near_duplicates(0.7)
    problems = problems_of(str(real_file("math500.jsonl")))
    assert [each.id for each in problems if reject(each) is not None] == []


# --- test suites ---


def test_a_problem_of_a_suite_is_known_where_more_than_half_of_it_stands() -> None:
    """Of 40 words, runs of 8 cover as many as are copied in one piece."""
    asked = text(3, 40)
    reject = not_in("suite", [problem(" ".join(asked), "theirs")])
    for copied in range(7, 41):
        own = [*text(4, 30), *asked[:copied], *text(5, 30)]
        found = reject(problem(" ".join(own)))
        assert (found is not None) == (copied > COVERED * 40)
        if found is not None:
            assert found.reason == "stands in suite too"
            assert found.detail == f"{copied / 40:.0%} of theirs"


def test_a_short_problem_of_a_suite_is_known_as_a_whole() -> None:
    reject = not_in("suite", [problem("What is two plus two?")])
    assert reject(problem("what is TWO plus two")) is not None
    assert reject(problem("what is two plus two and some more of it all")) is None
    assert reject(problem("")) is None


def test_words_are_compared_and_not_their_checksums() -> None:
    """These two have the same CRC-32; of 30 million runs a few agree with one of a suite."""
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    reject = not_in("suite", [problem("plumless")])
    assert reject(problem("buckeroo")) is None
    assert reject(problem("Plumless!")) is not None


def test_the_frame_of_a_suite_says_nothing() -> None:
    """Words that every problem of the suite has, and ours too."""
    frame = text(6, 50)
    suite = [problem(" ".join([*text(100 + n, 20), *frame]), f"s{n}") for n in range(10)]
    reject = not_in("suite", suite)
    assert reject(problem(" ".join([*text(7, 20), *frame]))) is None
    assert reject(problem(" ".join([*text(103, 20), *frame]))) is not None
    assert reject(problem(" ".join([*text(103, 20), *text(8, 50)]))) is not None


def test_a_suite_that_repeats_its_problems_is_the_suite_itself() -> None:
    texts = [" ".join(text(200 + n, 40)) for n in range(10)]
    once = [problem(asked, str(n)) for n, asked in enumerate(texts)]
    shouted = [problem(f"({asked.upper()})", "again") for asked in texts]
    for suite in (once, [*once, *shouted * 7]):
        reject = not_in("suite", suite)
        found = [reject(problem(asked)) for asked in texts]
        assert [each and each.detail for each in found] == [f"100% of {n}" for n in range(10)]


def test_a_suite_that_tells_nothing_is_refused() -> None:
    """Each run of the rotated words stands in 13 of the 20 problems at least: it is frame."""
    own = text(6, 30)
    rotated = [" ".join(own[n:] + own[:n]) for n in range(20)]
    for asked in ([], ["( ("], rotated):
        with pytest.raises(ValueError, match=f"^suite: none of its {len(asked)} .*; name another"):
            not_in("suite", [problem(each) for each in asked])


def test_each_problem_of_a_suite_is_known_and_hardly_any_other() -> None:
    """AIME 2024 and MATH-500 have nothing in common. Three of GSM8K's training problems are those
    of its test with other names and numbers."""
    files = {n: list(problems_of(str(real_file(f"{n}.jsonl")))) for n in ("aime2024", "math500")}
    for name, other in (("aime2024", "math500"), ("math500", "aime2024")):
        reject = not_in(name, files[name])
        assert all(reject(each) is not None for each in files[name])
        assert [each.id for each in files[other] if reject(each) is not None] == []
    halves = [
        list(problems_of(str(real_file(f"gsm8k_{half}.jsonl")))) for half in ("train", "test")
    ]
    reject = not_in("gsm8k", halves[1])
    assert sum(reject(each) is not None for each in halves[0]) == 3


# --- on the command line ---


def rows(path: Path, prompts: list[str]) -> Path:
    made = [
        {"id": f"{path.stem}-{n}", "prompt": prompt, "verifier": "math", "answer": "1"}
        for n, prompt in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def test_the_card_counts_and_names_what_is_left_out(tmp_path: Path) -> None:
    first, second, third = (" ".join(text(seed)) for seed in (10, 11, 12))
    raw = rows(tmp_path / "raw.jsonl", [first, first + " indeed", second, third])
    suite = rows(tmp_path / "suite.jsonl", [second + " please"])
    out = tmp_path / "out.jsonl"
    asked = ["--near-duplicates", "0.8", "--without", str(suite)]
    assert main(["prepare", str(raw), "--out", str(out), *asked]) == 0
    kept = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert kept == ["raw-0", "raw-3"]
    card = out.with_suffix(".card.md").read_text()
    assert "| filters | not in suite, less than 80% as one before |" in card
    assert "| nearly repeats another problem | 1 | 2 |" in card
    assert "| 2 | raw-1 | 98% as raw-0 |" in card
    assert "| stands in suite too | 1 | 3 |" in card
    assert "| 3 | raw-2 | 98% of suite-0 |" in card


def test_what_a_suite_asks_without_an_answer_is_left_out_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [" ".join(text(seed)) for seed in range(10, 14)]
    raw, out = rows(tmp_path / "raw.jsonl", asked), tmp_path / "out.jsonl"
    suite = tmp_path / "suite.jsonl"
    hidden: list[dict[str, object]] = [
        {"question": asked[0], "answer": ""},
        {"question": asked[1], "answer": None},
        {"question": "", "answer": "1"},
        {"question": asked[2], "answer": "1"},
    ]
    suite.write_text("".join(json.dumps(row) + "\n" for row in hidden))
    assert main(["prepare", str(raw), "--out", str(out), "--without", str(suite)]) == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["raw-3"]
    assert "| 1 | raw-0 | 100% of suite.jsonl:1 |" in out.with_suffix(".card.md").read_text()
    said = f"{suite}: rows that ask nothing are passed over (1 no prompt)\n"
    assert said in capsys.readouterr().out
    suite.write_text(json.dumps(hidden[2]) + "\n")
    assert main(["prepare", str(raw), "--out", str(out), "--without", str(suite)]) == 2
    said = f"{suite}: no row asks anything (1 no prompt); name another suite\n"
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_row_that_lost_all_else_still_asks_what_it_asked(name: str) -> None:
    layout, row = LAYOUTS[name], held.rows(name)[0]
    question = next(key for key in layout.asks if key in row)
    bare = {key: row[key] if key == question else "" for key in row}
    item, whole = (convert_row(layout, each, "id", "source") for each in (bare, row))
    assert isinstance(item, Dropped) and item.prompt
    assert isinstance(whole, Converted)
    asked = Problem(id="p", prompt=item.prompt, verifier="", answer=None)
    assert set(words(text_of(asked))) <= set(words(text_of(whole.problem)))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--near-duplicates", "2"], "near-duplicates share 2.0 of their N-grams; make it 0.5"),
        (["--without", "missing.jsonl"], "missing.jsonl: No such file or directory"),
        (["--without", "reasoning_gym:gcd"], "reasoning_gym:gcd is generated; name a data set"),
        (["--without", "math50"], "math50"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str], said: str
) -> None:
    raw = rows(tmp_path / "raw.jsonl", ["1+1?"])
    assert main(["prepare", str(raw), "--out", str(tmp_path / "out.jsonl"), *asked]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_the_same_problems_are_left_out_each_time(tmp_path: Path) -> None:
    raw = rows(
        tmp_path / "raw.jsonl",
        [" ".join(text(seed // 3)) + " indeed" * (seed % 3) for seed in range(30)],
    )
    for name in ("a", "b"):
        prepare(str(raw), tmp_path / f"{name}.jsonl", near_duplicates=0.8)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 10


def test_pairs_that_are_less_alike_than_asked_stay() -> None:
    """Whatever the sketches say, the share itself decides."""
    texts = [" ".join([*text(20, 30), *text(seed, 30)]) for seed in range(21, 31)]
    for one, other in combinations(texts, 2):
        reject = no_near_duplicates(0.5)
        assert reject(problem(one)) is None and reject(problem(other)) is None
