r"""Expressions: equal only if they are equal to the last digit that anyone could write down."""

from __future__ import annotations

import pytest

from archer.verify.latex import TooLarge
from archer.verify.symbolic import parse, same_expression, same_relation

ROOT_OF_TWO = (
    "1.4142135623730950488016887242096980785696718753769480731766797379907324784621070388503875343"
)


def test_no_decimal_equals_an_irrational_number_however_long_it_is() -> None:
    for places in (4, 10, 20, 40, 60, len(ROOT_OF_TWO) - 2):
        assert not same_expression(r"\sqrt{2}", ROOT_OF_TWO[: places + 2])


def test_a_decimal_in_an_expression_is_exact() -> None:
    assert same_expression(r"\frac{5}{4}x", "1.25x")
    assert same_expression(r"\frac{1}{4}", "0.5^{2}")
    assert not same_expression(r"\frac{x}{3}", "0.3333333333333333333333333333x")


@pytest.mark.parametrize("tiny", ["10^{-50}", "e^{-100}", "2^{-1000}", r"\frac{1}{10^{80}}"])
def test_a_tiny_number_is_not_nothing(tiny: str) -> None:
    assert not same_expression("0", tiny)
    assert not same_expression("5", f"5+{tiny}")
    assert not same_expression(r"\sqrt{2}", rf"\sqrt{{2}}-{tiny}")


@pytest.mark.parametrize(
    "zero", [r"\sqrt{2}\sqrt{3}-\sqrt{6}", r"\sin\pi", r"\sqrt{3+2\sqrt{2}}-1-\sqrt{2}", "x-x"]
)
def test_rounding_does_not_hide_a_zero(zero: str) -> None:
    assert same_expression("0", zero)


def test_large_numbers_are_told_apart_in_their_last_digit() -> None:
    assert same_expression("2^{1009}", r"2\cdot 2^{1008}")
    assert not same_expression("2^{1009}", "2^{1009}+1")
    assert not same_expression("100!", "100!-1")


@pytest.mark.parametrize("tower", ["9^{9^{9}}", "9^{9^{9^{9}}}", "2^{10^{9}}", r"\exp(10^{10})"])
def test_powers_that_would_not_end_are_refused(tower: str) -> None:
    with pytest.raises(TooLarge):
        same_expression("5", tower)


def test_functions_are_compared_on_both_sides_of_zero() -> None:
    assert same_expression("|x|", r"\sqrt{x^{2}}")
    assert not same_expression("|x|", "x")
    assert not same_expression(r"\ln x^{2}", r"2\ln x")
    assert same_expression(r"2\ln x", r"\ln x^{2}")  # wherever the gold has a value


def test_functions_are_compared_far_from_zero() -> None:
    for name in ("x", "n", "a"):
        assert not same_expression(f"|{name}-3|", f"3-{name}")
        assert not same_expression(f"|{name}+3|", f"{name}+3")
        assert same_expression(f"|{name}-3|", f"|3-{name}|")
        assert not same_expression(rf"\lfloor\frac{{{name}}}{{100}}\rfloor", "0")
        # Too large to be worked out so far away, and the same wherever they can be.
        assert same_expression(f"2^{{2^{{{name}}}}}", f"4^{{2^{{{name}-1}}}}")
    assert not same_relation("=", ("y", "|x-3|"), ("y", "3-x"))


def test_functions_of_whole_numbers_are_compared_at_whole_numbers() -> None:
    assert same_expression(r"\lfloor\frac{2n}{3}\rfloor+1", r"\lceil\frac{2n+1}{3}\rceil")
    assert not same_expression(r"\lfloor\frac{n}{2}\rfloor", r"\lceil\frac{n}{2}\rceil")
    assert same_expression(r"\binom{n}{2}", r"\frac{n(n-1)}{2}")


def test_a_floor_is_compared_between_whole_numbers_too() -> None:
    assert not same_expression(r"\lfloor x\rfloor", "x")
    assert not same_expression(r"\lfloor x\rfloor", r"\lceil x\rceil")
    assert same_expression(r"\lfloor x\rfloor+1", r"\lfloor x+1\rfloor")


def test_a_double_factorial_is_no_factorial_of_a_factorial() -> None:
    assert not same_expression("(3!)!", "3!!")


def test_letters_of_another_case_are_other_variables() -> None:
    assert not same_expression("2RC+R+C", "2rc+r+c")
    assert same_expression("2RC+R+C", "C+2CR+R")


def test_the_letter_i_is_the_imaginary_unit() -> None:
    assert same_expression(r"\frac{1-i}{2}", r"\frac{1}{1+i}")
    assert same_expression("-1", "i^{2}")


def test_a_derivative_is_not_its_function() -> None:
    assert parse("y'") is None
    assert not same_expression("y", "y'")


def test_a_number_that_divides_by_zero_is_nothing() -> None:
    assert not same_expression("0", r"\frac{1}{x-x}")


def test_equations_are_the_same_if_one_is_a_multiple_of_the_other() -> None:
    assert same_relation("=", ("y", "2x+3"), ("2y-4x", "6"))
    assert not same_relation("=", ("y", "2x+3"), ("y", "2x-3"))
    assert not same_relation("=", ("x^{2}", "4"), ("x", "2"))


def test_an_inequality_turned_round_is_another() -> None:
    assert same_relation("<", ("x+y", "1"), ("2x+2y", "2"))
    assert not same_relation("<", ("x+y", "1"), ("-x-y", "-1"))


@pytest.mark.parametrize("expression", ["f(x)+1", "g(2)"])
def test_what_cannot_be_evaluated_is_left_to_math_verify(expression: str) -> None:
    assert same_expression(expression, expression + "+0")
    assert not same_expression(expression, expression + "+1")


def test_short_sums_are_worked_out_and_endless_ones_are_not() -> None:
    assert same_expression("30", r"\sum_{k=1}^{4} k^{2}")
    assert same_expression(r"\frac{n(n+1)}{2}", r"\binom{n+1}{2}")
    assert not same_expression("31", r"\sum_{k=1}^{4} k^{2}")
    assert not same_expression("0", r"\sum_{k=1}^{10^{12}} \frac{1}{k^{2}}")
    assert same_expression(r"\int_{0}^{1} x dx", r"\int_{0}^{1}x\,dx")
    assert not same_expression(r"\int_{0}^{1} x dx", r"\int_{0}^{1} x dx+1")


@pytest.mark.parametrize(
    "slow",
    ["x^" * 40 + "x", "x_" * 40 + "x", "-" * 60 + "5", "|" * 40, "x+" * 300, r"\gcd(2^{99},2)"],
)
def test_what_the_parser_would_need_seconds_for_is_refused(slow: str) -> None:
    with pytest.raises(TooLarge):
        same_expression("5", slow)


def test_a_letter_that_the_parser_takes_for_something_else_is_a_letter() -> None:
    assert not same_expression("i", "I")
    assert same_expression("2IR", "RI+IR")
    assert not same_expression("A", "A^{T}")
    assert not same_expression("x", "12_3x")
