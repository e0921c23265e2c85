r"""Mathematical answers: what is the same, what is not, and what the released graders get wrong."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archer.types import Problem, Verdict
from archer.verify.extract import Reading
from archer.verify.latex import MAX_CHARACTERS, TooLarge, clean, exact_number
from archer.verify.math import judge_math, math, same_answer
from archer.verify.parts import Expression, Group, Named, Number, Numeral, Quantity, read_answer
from archer.verify.policy import Policy
from archer.verify.pool import WorkerPool
from archer.verify.verifiers import quick_verdict, verify
from tests.children import SECONDS


def problem(answer: Any) -> Problem:
    return Problem(id="p", prompt="?", verifier="math", answer=answer)


def boxed(answer: str) -> str:
    return f"So the answer is $\\boxed{{{answer}}}$."


def judged(gold: Any, answer: str) -> Verdict:
    return verify(problem(gold), boxed(answer), False)


# --- pairs ---

SAME: dict[str, list[str]] = {
    "5": [
        "5.", "5.0", "+5", "$5$", "05", r"\$5", "5", "x=5", "2+3=5", "x = 2+3 = 5",
        r"\text{five}", "five", r"\frac{10}{2}", "10/2", r"5^\circ", "5°",
        "(5)", r"\{5\}", r"\sqrt{25}", r"\text{\$}5", "5 = x", r"5 \text{ apples}", "0005",
    ],
    "025": ["25", "25.0"],
    "70.0": ["70"],
    "1234": ["1,234", r"1\,234", "1{,}234", r"1\ 234", "1 234", r"1,\!234", "1234.00"],
    r"10,\!080": ["10080", "10,080"],
    r"11,\! 111,\! 111,\! 100": ["11111111100", "11,111,111,100"],
    r"\frac{1}{2}": [
        "0.5", ".5", "1/2", r"\dfrac12", r"\tfrac{1}{2}", r"\frac12", r"\frac 12",
        "2/4", "2^{-1}", r"\frac{\sqrt{4}}{4}", r"-\frac{-1}{2}", r"\left(\frac{1}{2}\right)",
        "0.50", r"\frac{1}{2}.", r"\sin 30^\circ", r"\cos\frac{\pi}{3}",
    ],
    r"\frac{1}{3}": [
        r"0.\overline{3}", "0.333...", r"0.333\ldots", "1/3", r"0.\bar{3}", r"0.\dot{3}", "0.(3)",
        "2/6",
    ],
    r"\frac{1}{6}": [r"0.1\overline{6}", "0.1666..."],
    r"\frac{14}{3}": [r"4\frac{2}{3}", "4 2/3", r"4 \frac23", r"4\ 2/3", r"\frac{28}{6}"],
    r"137 \frac{1}{2}": ["137.5", "275/2", r"137\frac12"],
    r"1\frac{4}{5}": ["1.8", "9/5"],
    r"-\frac{3}{2}": [r"-1\frac{1}{2}", "-1.5", r"\frac{-3}{2}", r"\frac{3}{-2}", "-3/2", "-1 1/2"],
    r"\pi": [r"\pi", "π", "pi", r"\frac{2\pi}{2}"],
    r"\sqrt{2}": [
        "2^{1/2}", "2^{0.5}", r"\sqrt2", r"\frac{2}{\sqrt{2}}", "sqrt(2)",
        r"\sqrt{2} \approx 1.414", r"x=\sqrt{2}\approx 1.41",
    ],
    r"3\sqrt{13}": [
        r"\sqrt{117}", r"3 \sqrt{13}", r"3\cdot\sqrt{13}", r"\sqrt{13}\cdot 3", "3*sqrt(13)",
        r"\sqrt{9\cdot 13}",
    ],
    r"\frac{\sqrt{3}}{3}": [r"\frac{1}{\sqrt{3}}", r"\sqrt{\frac{1}{3}}", r"\dfrac{\sqrt3}3"],
    "6-5i": ["-5i+6", r"6 - 5\mathrm{i}", "6+(-5)i"],
    r"\frac{1-i}{2}": [r"\frac{1}{1+i}", r"\frac12-\frac12 i", "0.5-0.5i"],
    "52_8": ["52_{8}", r"52_{\text{8}}", "(52)_8", "52_{eight}"],
    "4210_{5}": ["4210_5"],
    r"90^\circ": ["90", r"90^{\circ}", "90°", r"90 \text{ degrees}", "90 degrees", r"90\degree"],
    r"\left( 3, \frac{\pi}{2} \right)": [
        r"(3,\pi/2)", r"(3, \frac{\pi}{2})", r"\left(3,\dfrac{\pi}{2}\right)", r"(3,0.5\pi)",
    ],
    "(6,31,-1)": ["(6, 31, -1)", r"\left(6,31,-1\right)", r"\langle 6,31,-1\rangle"],
    "1,-2": [
        "-2,1", "-2, 1", r"1 \text{ and } -2", "x=1,x=-2", r"x = 1 \text{ or } x = -2", r"\{1,-2\}",
        "1 and -2", "x=-2,1", "1; -2",
    ],
    "3, 5, 7": ["3,5,7", "7,5,3", "3, 5, and 7", r"\{3,5,7\}", r"3,\ 5,\ 7"],
    r"\{1,2\}": [r"\{2,1\}", "1,2", r"\left\{1, 2\right\}", r"\lbrace 1,2 \rbrace"],
    r"1 \pm \sqrt{19}": [
        r"1+\sqrt{19},1-\sqrt{19}", r"1\pm\sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}",
        r"x=1\pm\sqrt{19}", r"\{1-\sqrt{19},1+\sqrt{19}\}",
    ],
    r"\{1\pm\sqrt{5},-2\}": [r"\{-2,1+\sqrt5,1-\sqrt5\}", r"-2, 1\pm\sqrt{5}"],
    r"(-\infty, 2) \cup (3, \infty)": [
        r"(3,\infty)\cup(-\infty,2)", r"(-\infty,2)\cup(3,+\infty)", r"x<2 \text{ or } x>3",
        r"x \in (-\infty, 2) \cup (3, \infty)", "(-∞,2)∪(3,∞)",
    ],
    "(3,4]": [r"\left(3,4\right]", r"3<x\le 4", r"3 < x \leq 4", r"x\in(3,4]", r"4 \ge x > 3"],
    r"x \in [-2,7]": ["[-2,7]", r"-2\le x\le 7", r"7 \geq x \geq -2", "[-2, 7]"],
    r"k \geqslant 2": [r"k \ge 2", r"k\geq2", r"[2,\infty)", r"2 \le k"],
    r"(0,9) \cup (9,36)": [r"(9,36)\cup(0,9)"],
    r"(1,2)\cup(3,4)": [r"(3,4)\cup(1,2)"],
    "x=5": ["5", "5=x", "x = 5.0"],
    "y = 2x + 3": [
        "2x+3", "y=3+2x", "2x - y + 3 = 0", "y - 2x = 3", "2x+3=y", r"y=2\left(x+\frac32\right)",
    ],
    "5x - 7y + 11z + 4 = 0": ["-5x+7y-11z-4=0", "10x-14y+22z+8=0", "5x-7y+11z=-4"],
    "f(x)=2 x": ["2x", "f(x)=2x", "f(n)=2n", "f(x) = x+x"],
    "x^5 - x^4 + x^3 - x^2 + x - 1": [
        "(x-1)(x^4+x^2+1)", "-1+x-x^2+x^3-x^4+x^5", r"\frac{x^6-1}{x+1}",
    ],
    "2k+2": ["2(k+1)", "2k + 2", "2+2k"],
    "(a+5)(b+2)": ["ab+2a+5b+10", "(b+2)(a+5)"],
    r"\frac{11+9a}{20}": ["0.55+0.45a", r"\frac{9a+11}{20}", r"\frac{9}{20}a+\frac{11}{20}"],
    r"\cot x": [r"\frac{1}{\tan x}", r"\frac{\cos x}{\sin x}", r"\cot(x)"],
    r"m n-\lfloor m / 2\rfloor": [r"mn - \left\lfloor \frac{m}{2} \right\rfloor"],
    r"\binom{2n}{n}": [r"\frac{(2n)!}{(n!)^2}", r"\frac{(2n)!}{n!n!}", r"\dbinom{2n}{n}"],
    r"\frac{100!}{2^{50}}": [r"\frac{100!}{4^{25}}", r"100! \cdot 2^{-50}"],
    "2^{1009}": [r"2\cdot 2^{1008}", "2^{1010}/2"],
    r"2021 \cdot 505 \cdot 337": ["343943885", r"2021\times505\times337"],
    r"\frac{\log 2}{\log 2-\log 3}": [r"\frac{\ln 2}{\ln 2-\ln 3}", r"\frac{\ln 2}{\ln(2/3)}"],
    r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}": [
        r"\begin{bmatrix}-\frac13\\\frac23\\\frac53\end{bmatrix}",
        r"\begin{pmatrix}-\frac{1}{3}\\ \frac{2}{3}\\ \frac{5}{3}\end{pmatrix}",
    ],
    r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}": [
        r"\begin{pmatrix}-1&0\\0&-1\end{pmatrix}",
        r"\left(\begin{array}{cc}-1 & 0\\0&-1\end{array}\right)",
    ],
    r"\text{Evelyn}": [
        "Evelyn", "evelyn", r"\textbf{Evelyn}", r"\mathrm{Evelyn}", r"\text{Evelyn.}",
    ],
    r"\text{(C)}": ["C", "(C)", r"\text{C}", r"\textbf{(C)}", "C."],
    r"\text{even}": ["even", "Even"],
    r"864 \mbox{ inches}^2": [
        r"864 \text{ in}^2", "864 square inches", r"864\text{ square inches}",
    ],
    r"15\mbox{ cm}^2": ["15 cm^2", r"15 \text{ cm}^2"],
    r"5.4 \text{ cents}": [r"5.4\text{ cents}", "5.4 cents", r"\frac{27}{5}\text{ cents}"],
    r"\$32,\!348": ["32348", r"\$32,348", "$32,348", "32,348", r"32348 \text{ dollars}"],
    r"\$18.90": ["18.9", "18.90", r"\text{\$}18.90"],
    r"\frac{270}7\text{ degrees}": [r"\frac{270}{7}", r"\frac{270}{7}^\circ", r"38\frac{4}{7}"],
    "62.5%": [r"62.5\%", "62.5 percent", r"\frac{125}{2}\%"],
    ".0000672": ["6.72e-5", r"6.72 \times 10^{-5}", "0.0000672", r"6.72\cdot10^{-5}"],
    "10^{100}": ["10^{100}", r"10^{99}\cdot 10"],
    "$10^{100}$,$10^{1 / 100}$": [r"10^{100}, 10^{\frac{1}{100}}", "10^{1/100},10^{100}"],
    "$69$,$84$": ["69, 84", "84,69"],
    "$221,$8$": ["8, 221", "221, 8"],
    r"\emptyset": [r"\varnothing", r"\{\}", "∅"],
    "2^{10}": ["1024"],
    "3:4": ["6:8", "3 : 4"],
    "May 5": ["5 May", r"\text{May 5}", "May 5th", "the 5th of May"],
    r"\text{December 25, 2021}": ["25 December 2021", "Dec 25, 2021", "December 25th, 2021"],
    "p - q": ["p-q", "-q+p"],
    "6r^2-4r-24": ["6r^{2} - 4r - 24", "2(3r^2-2r-12)"],
    r"18+2\pi": [r"2\pi+18", r"2(9+\pi)"],
    r"[\frac{\pi^2}{8}, \frac{5 \pi^2}{4}]": [r"\left[\frac{\pi^2}{8},\frac{5\pi^2}{4}\right]"],
    "$(1,8,19), (2,7,13), (4,5,7)$": [
        "(4,5,7),(1,8,19),(2,7,13)", r"\{(1,8,19),(2,7,13),(4,5,7)\}",
    ],
    "f(x)=x,f(x)=2-x": ["f(x)=2-x, f(x)=x", r"f(x)=x \text{ or } f(x)=2-x"],
    "f(n)=n, g(n)=1": ["f(n)=n,g(n)=1"],
    r"\frac{1}{6} \pi, \frac{5}{6} \pi": [r"\frac{5\pi}{6},\frac{\pi}{6}"],
    "e^2": ["e^{2}", r"\mathrm{e}^2", r"\exp(2)", r"e \cdot e"],
    r"\ln 2": [r"\frac12\ln 4", r"\ln(2)", r"-\ln\frac12"],
    r"\tan^{-1} 2": [r"\arctan 2", r"\arctan(2)"],
    "abc": ["acb", "a b c"],
    "AC": ["AC", r"\text{AC}"],
    "0": ["-0", "0.0", r"\sqrt{2}\sqrt{3}-\sqrt{6}", r"0^\circ", r"\$0", r"\sin\pi", r"\ln 1"],
    "-1": [r"e^{i\pi}", "i^2", "-1.0"],
    r"2 \text{ million}": ["2000000", "2,000,000"],
    "|x|": ["|x|", r"\sqrt{x^2}", r"\lvert x\rvert"],
    r"\infty": [r"+\infty", "∞", "infinity"],
    "10^{3},10": ["10, 1000", "10,1000"],
    r"x \ne 3": [r"x \neq 3", "x != 3", r"3\ne x"],
    r"a=2, a=-6-4 \sqrt{2}": [r"a = -6-4\sqrt{2}, a=2", r"2, -6-4\sqrt2"],
    "(x,y)=(1,2)": ["(1,2)", "(x, y) = (1, 2)"],
    "x=1, y=2": ["x=1,y=2", "y=2, x=1", "1,2"],
    r"\frac{22}{7}": [r"3.\overline{142857}", r"3\frac{1}{7}", "22/7"],
    r"0.1\overline{6}": [r"\frac16"],
    r"0.\overline{12}": ["12/99", "4/33", "0.121212..."],
    r"-\frac{5}{3}": [
        r"-1\frac{2}{3}", "-1 2/3", r"\frac{-5}{3}", r"-\dfrac{5}{3}", r"-1.\overline{6}",
    ],
    "2 1/2": ["5/2", "2.5"],
    r"3 \tfrac{1}{4}": ["13/4", "3.25"],
    "1000000": [
        "1,000,000", r"1\,000\,000", "10^6", "10^{6}", "1 000 000", "1e6", "1{,}000{,}000", "10**6",
    ],
    "12345": ["12,345", r"12\,345", "12345."],
    "30": [r"30^\circ", r"30^{\circ}", "30 degrees", r"30\,^\circ", r"30\text{°}", r"30 ^\circ"],
    "25": [
        r"\text{\$}25", r"\$25", r"25\text{ dollars}", "25 dollars", "$25", r"\text{\textdollar}25",
        r"\$25.00", "25",
    ],
    "2+3i": ["3i+2", r"2+3\mathrm{i}", "2+3 i", r"2 + 3\cdot i", "2+3i"],
    "i": ["i", r"\sqrt{-1}", r"\frac{-1}{i}", r"e^{i\pi/2}"],
    r"\frac{1}{2}+\frac{\sqrt{3}}{2}i": [
        r"\frac{1+\sqrt{3}i}{2}", r"\frac{1+i\sqrt3}{2}", r"e^{i\pi/3}",
        r"\cos\frac{\pi}{3}+i\sin\frac{\pi}{3}",
    ],
    r"\varnothing": [r"\emptyset", r"\{\}", r"\{ \}"],
    "-1 < x < 3": ["3 > x > -1", "(-1,3)", r"x\in(-1,3)", "-1<x<3"],
    r"x\ge 3 ": [r"3\le x", "x >= 3", r"[3,\infty)", "x≥3"],
    "x<-1 or x>2": [
        "x>2 or x<-1", r"(-\infty,-1)\cup(2,\infty)", r"x<-1\text{ or }x>2", "x > 2 or x < -1",
    ],
    "July 4, 1776": ["4 July 1776", "July 4th, 1776", "Jul. 4, 1776", "July 4, 1776"],
    "Monday": ["monday", r"\text{Monday}"],
    "1011_2": ["1011_{2}", r"1011_{\text{two}}", "(1011)_2"],
    r"2\sqrt{3}": [r"\sqrt{12}", r"2\cdot 3^{1/2}", r"2\sqrt3", r"\frac{6}{\sqrt3}", r"2\sqrt{3}"],
    r"\sqrt[3]{2}": ["2^{1/3}", r"2^{\frac{1}{3}}"],
    r"\frac{\pi}{4}": [r"\pi/4", r"0.25\pi", r"\frac14\pi", r"\arctan 1", r"\arctan(1)"],
    "x^2+2x+1": ["(x+1)^2", "1+2x+x^2", "x(x+2)+1", r"\left(x+1\right)^{2}", "x^{2}+2x+1"],
    r"\frac{x}{x+1}": [r"1-\frac{1}{x+1}", "x/(x+1)", r"\frac{2x}{2x+2}"],
    "n(n+1)/2": [r"\frac{n(n+1)}{2}", r"\frac{n^2+n}{2}", r"\binom{n+1}{2}", r"\frac12n(n+1)"],
    "2^{n}-1": ["2^n-1", "-1+2^n"],
    r"\sin^2 x": [r"1-\cos^2 x", r"(\sin x)^2", r"\frac{1-\cos 2x}{2}"],
    r"\log_2 3": [r"\frac{\ln 3}{\ln 2}", r"\frac{\log 3}{\log 2}", r"\log_{2}3", r"\log_2(3)"],
    "(2,3),(4,5)": ["(4,5),(2,3)", "(2,3) and (4,5)", r"\{(2,3),(4,5)\}", "(2, 3), (4, 5)"],
    "1,2,3": ["3,2,1", r"\{1,2,3\}", "1, 2 and 3", r"1,\ 2,\ 3", "x=1,2,3", r"x \in \{1,2,3\}"],
    "[1,2]": ["[1, 2]", r"1\le x\le 2", r"\left[1,2\right]"],
    r"\frac{2}{3}": ["0.666...", r"0.\overline{6}", "4/6"],
    "75%": [r"75\%", "75 percent", r"75\,\%"],
    "8 cm": ["8cm", r"8\text{ cm}", r"8\,\mathrm{cm}", "8 centimeters"],
    "60 mph": ["60 miles per hour"],
    "5 hours": ["5 hrs"],
    r"16\pi \text{ square units}": [r"16\pi", r"16\pi\text{ units}^2"],
    "A": ["A", r"\text{A}", r"\textbf{A}", "(A)", r"\text{(A)}", r"\mathrm{A}"],
    "Yes": ["yes", r"\text{Yes}", "Yes."],
    "True": ["true", r"\text{True}"],
    "no solution": [r"\text{no solution}", "No solution"],
    "3:5": ["3 : 5", "6:10", "3:5."],
    "y=-2x": ["-2x", "y=-2x", "2x+y=0", r"y = -2 \cdot x", "y+2x=0"],
    "x^2+y^2=4": ["4=x^2+y^2", "x^2+y^2-4=0", "2x^2+2y^2=8", r"\frac{x^2}{4}+\frac{y^2}{4}=1"],
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}": [
        r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"\left[\begin{matrix}1&2\\3&4\end{matrix}\right]",
    ],
    "a^2b": ["ba^2", r"a\cdot a b", "a^{2}b"],
    "e": ["e", "e^1", r"\mathrm{e}", r"\exp(1)"],
    r"\frac{e^{2}-1}{2}": ["0.5(e^2-1)", r"\frac{e^2}{2}-\frac12"],
    r"\sqrt{3}+\sqrt{2}": [r"\sqrt2+\sqrt3", r"\sqrt{5+2\sqrt6}", r"\frac{1}{\sqrt3-\sqrt2}"],
    "7!": ["5040", r"7\cdot 6!"],
    r"\binom{10}{3}": ["120", r"\dbinom{10}{3}", r"\frac{10!}{3!7!}"],
    "2^{31}-1": ["2147483647"],
    "10!": ["3628800", "3,628,800"],
    r"k\pi, k\in\mathbb{Z}": [r"k\pi, k\in\mathbb{Z}", r"k\pi,\ k \in \mathbb{Z}"],
    r"-3\le x\le 3": ["[-3,3]"],
    r"\mathbb{R}": [r"\mathbb{R}", r"\mathbb R", r"(-\infty,\infty)"],
    r"\left\lfloor \frac{n}{2} \right\rfloor": [r"\lfloor n/2\rfloor", r"\lfloor\frac n2\rfloor"],
    r"x = -1 \pm \sqrt{2}": [r"-1+\sqrt2, -1-\sqrt2", r"x=-1+\sqrt{2}\text{ or }x=-1-\sqrt{2}"],
    r"\pm 3": ["3,-3", "-3, 3", r"x=\pm3", r"\{-3,3\}"],
    "x=1,y=2,z=3": ["x = 1, y = 2, z = 3", "z=3,y=2,x=1"],
    "(x-1)(x-2)": ["(x-2)(x-1)", "x^2-3x+2"],
    r"\frac{3}{4}\text{ hours}": ["0.75 hours", "3/4 hours"],
    "120 degrees": [r"120^\circ", "120"],
    r"\overrightarrow{AB}": [r"\overrightarrow{AB}"],
    "1": ["1.0", r"0.\overline{9}", "0.999...", r"\sin^2x+\cos^2x", "e^0", "1"],
    "100": ["100.00", "1e2", "10^2", "10^{2}", r"1\times10^2", r"1.0 \times 10^{2}"],
    r"3.00\times 10^8": ["300000000", "3e8", r"3\cdot 10^{8}"],
    r"-\infty": [r"-\infty", "-∞"],
    "AB = 5": ["5", "AB=5"],
    r"\angle ABC = 60^\circ": ["60", r"60^\circ", r"\angle ABC = 60"],
    "Alice and Bob": ["Bob and Alice", "Alice, Bob", r"\text{Alice and Bob}"],
    r"\text{(A)}": ["A"],
    "$10$ cm": ["10 cm"],
    r"$\frac{3}{5}$": ["0.6"],
    r"\(5\)": ["5"],
    r"\[x=5\]": ["5"],
    "4x^3": ["4x^{3}", r"4\cdot x^3", "4x^3"],
    "x^{2/3}": [r"\sqrt[3]{x^2}", r"x^{\frac23}"],
    r"\frac{a}{b}": ["a/b", r"\dfrac ab", "ab^{-1}"],
    "1/2": ["0.5"],
    "16": ["2^4", "4^2", r"\sqrt{256}", "16.", "2^{2^2}"],
    r"\frac{\sqrt{5}-1}{2}": [r"\frac{-1+\sqrt5}{2}", r"\frac{2}{1+\sqrt5}", r"\frac12(\sqrt5-1)"],
}  # fmt: skip

DIFFERENT: dict[str, list[str]] = {
    "5": [
        "-5", "6", "50", "5.1", "4.9999999", "5,6", "x=6", "{5,6}", "5_8", r"5\pi", "5x", "5i",
        "(5,5)", "-(-6)", r"\sqrt{5}", "5!", "55", "5.5", "1/5", "5.0001", "4.99999999999999999999",
        "5+10^{-20}", r"5\times 1.0000001", "five and a half", "5^2", "5,5", "[5]", "5:1", "5 or 6",
        "x>5",
    ],
    "1234": ["1,235", "1, 234", "123.4"],
    r"\frac{1}{2}": ["0.49", "0.5000001", "2", "1/3", r"0.5\%", "-0.5", r"\frac{2}{1}"],
    r"\frac{1}{3}": [
        "0.333", "0.33", "0.3333333333333333333",
        "0.33333333333333333333333333333333333333333333333333333333333333333333333333333333",
        "0.334...", "33%",
    ],
    r"\frac{14}{3}": [
        "42/3", r"4\frac{1}{3}", "4.67", "4.666666667", r"\frac{3}{14}", r"4\cdot\frac{2}{3}",
    ],
    r"-\frac{3}{2}": ["1.5", "-2/3"],
    r"\pi": [
        "3.14", "3.14159265358979",
        "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899",
        r"\frac{22}{7}", r"2\pi", "p",
    ],
    "3.14": [r"\pi"],
    "1.414": [r"\sqrt{2}"],
    "0.333": [r"\frac{1}{3}"],
    r"\sqrt{2}": [
        "1.414", "1.41421356237", r"\sqrt{3}", r"-\sqrt{2}", "2",
        "1.4142135623730950488016887242096980785696718753769480731766797379907324784621",
    ],
    r"3\sqrt{13}": [r"13\sqrt{3}", r"3\sqrt{31}", "10.8167", "10.816653826391969", r"\sqrt{13}"],
    r"\frac{\sqrt{3}}{3}": [r"\sqrt{3}", "0.577", r"\frac{\sqrt{3}}{2}"],
    "6-5i": ["6+5i", "5-6i", "6-5", "6-5j"],
    r"\frac{1-i}{2}": [r"\frac{1+i}{2}"],
    "52_8": ["52", "52_9", "25_8", "52_{10}", "42", "528"],
    "52": ["52_8"],
    r"90^\circ": ["91", r"45^\circ"],
    r"\left( 3, \frac{\pi}{2} \right)": [
        r"(\pi/2,3)", r"(3,\pi)", r"3,\frac{\pi}{2}", "(3,1.5708)", r"[3,\pi/2]",
    ],
    "(6,31,-1)": ["(6,31,1)", "(31,6,-1)", "(6,31)", "6,31,-1", r"\{6,31,-1\}"],
    "1,-2": ["1", "-2", "1,2", "(1,-2)", "1,-2,3", "-1,2"],
    "3, 5, 7": ["3,5", "3,5,8", "357"],
    r"\{1,2\}": ["(1,2)", r"\{1,3\}", "[1,2]"],
    r"1 \pm \sqrt{19}": [
        r"1+\sqrt{19}", r"1\pm\sqrt{17}", r"\pm\sqrt{19}", r"1+\sqrt{19},1+\sqrt{19}",
    ],
    r"\{1\pm\sqrt{5},-2\}": [r"1\pm\sqrt{5}"],
    r"(-\infty, 2) \cup (3, \infty)": [
        r"(-\infty,2]\cup(3,\infty)", "(2,3)", r"(-\infty,2)", r"(-\infty,\infty)",
    ],
    "(3,4]": ["(3,4)", "[3,4]", "[3,4)", "(4,3]", r"3\le x\le 4"],
    r"x \in [-2,7]": ["(-2,7)", "[-2,8]", "-2,7", r"y\in[-2,7]"],
    r"k \geqslant 2": ["k>2", r"k \le 2", "2", r"k\ge 3"],
    r"(0,9) \cup (9,36)": ["(0,36)"],
    "x=5": ["y=5", "x=6", "x=-5", "6"],
    "y = 2x + 3": ["y=2x-3", "y=3x+2", "3x+2", "2x+y+3=0", "x=2y+3"],
    "5x - 7y + 11z + 4 = 0": ["5x-7y+11z-4=0", "5x+7y+11z+4=0", "5x-7y+11z+4"],
    "f(x)=2 x": ["f(x)=3x", "x", "f(n)=n", "g(x)=2x"],
    "x^5 - x^4 + x^3 - x^2 + x - 1": ["x^5+x^4+x^3-x^2+x-1", "x^5-x^4+x^3-x^2+x", "x^6-1"],
    "2k+2": ["2k", "2K+2", "2k+1", "k+2", "4k"],
    "(a+5)(b+2)": ["(a+2)(b+5)", "ab+10"],
    r"\frac{11+9a}{20}": [r"\frac{11+9a}{2}", "11+9a"],
    r"\cot x": [r"\tan x", r"\cot y", r"\cot 2x"],
    r"m n-\lfloor m / 2\rfloor": [r"mn-\lceil m/2\rceil", r"mn-\frac{m}{2}"],
    r"\binom{2n}{n}": [r"\binom{2n}{n-1}", r"\frac{(2n)!}{n!}"],
    r"\frac{100!}{2^{50}}": [r"\frac{100!}{2^{51}}", "100!", r"\frac{99!}{2^{50}}"],
    "2^{1009}": ["2^{1010}", "1009^2", "2^{1009}+1"],
    r"2021 \cdot 505 \cdot 337": ["343943884"],
    r"\frac{\log 2}{\log 2-\log 3}": [r"\frac{\log 2}{\log 3-\log 2}", "-1.71"],
    r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}": [
        r"\begin{pmatrix} 1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
        r"\begin{pmatrix} -1/3 & 2/3 & 5/3 \end{pmatrix}",
        r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}",
    ],
    r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}": [
        r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", "-1",
    ],
    r"\text{Evelyn}": ["Evely", "Navin", "Even"],
    r"\text{(C)}": ["D", "(E)", "c", "CD"],
    r"\text{even}": ["odd", r"\text{neither}"],
    r"864 \mbox{ inches}^2": ["86.4", r"864\text{ cm}^2", r"864\text{ inches}^3", "72"],
    r"5.4 \text{ cents}": ["54", r"5.4\text{ dollars}"],
    r"\$18.90": ["18.09", "1890"],
    r"\frac{270}7\text{ degrees}": ["38.57", "38.571428"],
    "62.5%": ["6.25", "0.625%", "62.6%", "62"],
    "0.5": ["0.5%", "50"],
    ".0000672": ["6.72e-4", r"6.72\times10^{5}", "0.000067"],
    "10^{100}": ["10^{101}", "1000"],
    r"\emptyset": ["0", r"\{0\}"],
    "1024": ["2^{11}"],
    "3:4": ["4:3", "3/5"],
    "May 5": ["May 6", "June 5", "5"],
    r"\text{December 25, 2021}": ["December 25, 2020", "December 24, 2021"],
    "p - q": ["q-p", "p+q", "P-Q"],
    "6r^2-4r-24": ["6r^2+4r-24"],
    r"18+2\pi": [r"20\pi", "24.28"],
    r"[\frac{\pi^2}{8}, \frac{5 \pi^2}{4}]": [r"(\frac{\pi^2}{8}, \frac{5 \pi^2}{4})"],
    "$(1,8,19), (2,7,13), (4,5,7)$": [
        "(1,8,19),(2,7,13)", "(8,1,19),(2,7,13),(4,5,7)", "1,8,19,2,7,13,4,5,7",
    ],
    "f(x)=x,f(x)=2-x": ["f(x)=x"],
    "f(n)=n, g(n)=1": ["f(n)=1,g(n)=n"],
    "e^2": ["7.389", "e^3", "2e"],
    r"\ln 2": ["0.693", r"\log 2", r"\ln 3"],
    r"\arctan 2": [r"\arctan 3", r"\tan 2"],
    r"\frac12": [r"\sin 30"],
    "abc": ["ab", "abcd"],
    "AB": ["BA"],
    "0": ["10^{-50}", "1e-300", "e^{-100}", r"\infty", "o", "1", "O", "none", r"\emptyset"],
    "-1": ["1", "i"],
    r"2 \text{ million}": ["2"],
    "|x|": ["x", "-x"],
    r"\infty": [r"-\infty", "1000000000", "0"],
    r"x \ne 3": ["x=3", r"x\ne 4"],
    r"a=2, a=-6-4 \sqrt{2}": ["2"],
    "(x,y)=(1,2)": ["(2,1)", "(y,x)=(1,2)"],
    "x=1, y=2": ["x=2,y=1", "2,1", "x=1"],
    r"\frac{22}{7}": [r"\pi", "3.142857", "3.14"],
    r"0.\overline{12}": ["0.12"],
    "1000000": ["10^5", "100,000", "1,000,00"],
    "12345": ["12.345"],
    "25": ["2500", r"\$2.50"],
    "2+3i": ["2-3i", "3+2i", "5i"],
    "i": ["-i", "1"],
    "-1 < x < 3": [r"-1\le x<3", "-1<x<4", "-1>x>3", "x<3"],
    r"x\ge 3": ["x>3", r"x\le 3", r"(3,\infty)"],
    "x<-1 or x>2": ["-1<x<2"],
    "July 4, 1776": ["July 4, 1777", "4 June 1776"],
    "Monday": ["Tuesday"],
    "12_3": ["12", "123", "12_4", "12.3"],
    "1011_2": ["1011", "11", "1011_{10}"],
    r"2\sqrt{3}": ["3.4641", "3.464101615", r"\sqrt{6}", r"2\sqrt[3]{3}", "6"],
    r"\sqrt[3]{2}": ["1.26", r"\sqrt{2}", "1.259921049894873"],
    r"\frac{\pi}{4}": ["0.785", "0.7853981633974483", r"\frac{4}{\pi}", "45"],
    "x^2+2x+1": ["(x-1)^2", "x^2+1", "(x+1)^3", "x+1", "y^2+2y+1"],
    r"\frac{x}{x+1}": [r"\frac{x+1}{x}", r"\frac{1}{x+1}", "x/x+1"],
    "n(n+1)/2": ["n(n-1)/2", r"\frac{n^2}{2}", r"\binom{n}{2}", "n(n+1)"],
    "2^{n}-1": ["2^{n-1}", "2^n", "2n-1", "2^{n}+1"],
    r"\sin^2 x": [r"\cos^2 x", r"\sin x^2", r"\sin 2x"],
    r"\log_2 3": [r"\log_3 2", "1.585", r"\log 3"],
    "(2,3),(4,5)": ["(3,2),(4,5)", "(2,3)", "(2,3),(4,5),(6,7)", "2,3,4,5"],
    "1,2,3": ["(1,2,3)", "1,2", "1,2,3,4", "123", "6"],
    "(1,2)": ["[1,2]", "(2,1)", "1,2", r"\{1,2\}", "(1,2]", "(1,3)", "1.2"],
    "[1,2]": ["(1,2)", "[1,2)"],
    r"\frac{2}{3}": [
        "0.6667", "0.667", "0.66666666666666666666", "0.66", "2/33", r"\frac{3}{2}", "66.67%",
    ],
    "75%": ["7.5%", "0.75%", "25%"],
    "0.75": ["0.75%", "75"],
    "8 cm": ["8 m", "80", "8 mm"],
    "5 hours": ["5 minutes", "300"],
    r"16\pi \text{ square units}": ["16", r"8\pi"],
    "A": ["B", "a", "AB", "(B)", "A and B"],
    "Yes": ["No", "no"],
    "True": ["False"],
    "no solution": ["0", "one solution"],
    "3:5": ["5:3"],
    "y=-2x": ["y=2x", "x=-2y", "2x"],
    "x^2+y^2=4": ["x^2+y^2=2", "x^2-y^2=4", "x^2+y^2", "(x+y)^2=4"],
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}": [
        r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", "1,2,3,4", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}",
        "-2", r"\begin{pmatrix}1&2&3&4\end{pmatrix}",
    ],
    "a^2b": ["ab^2", "a^2b^2", "A^2B"],
    "e": ["2.718", "2.718281828459045", "E"],
    r"\frac{e^{2}-1}{2}": ["3.19", "3.194528049465325"],
    r"\sqrt{3}+\sqrt{2}": [r"\sqrt{5}", r"\sqrt3-\sqrt2", "3.146"],
    "7!": ["7", "720"],
    r"\binom{10}{3}": ["720"],
    "2^{31}-1": ["2147483648"],
    r"\mathbb{R}": [r"\mathbb{Z}"],
    r"\left\lfloor \frac{n}{2} \right\rfloor": [r"\lceil n/2\rceil", r"\frac{n}{2}"],
    r"x = -1 \pm \sqrt{2}": [r"-1+\sqrt2", r"1\pm\sqrt2"],
    r"\pm 3": ["3", "-3"],
    "x=1,y=2,z=3": ["x=1,y=3,z=2", "x=3,y=2,z=1"],
    "(x-1)(x-2)": ["(1,2)", "1,2"],
    r"\frac{3}{4}\text{ hours}": ["0.7"],
    "1": ["0.999", "0.9999999999999999999999"],
    "100": ["10", "1000", "10^3"],
    r"3.00\times 10^8": [r"3\times10^7", "3^8"],
    r"-\infty": [r"\infty"],
    "AB = 5": ["CD=5", "6"],
    "Alice and Bob": ["Alice", "Alice and Eve"],
    "4x^3": ["4x^2", "3x^4", "(4x)^3", "4^3x"],
    "x^{2/3}": ["x^{3/2}", r"\sqrt{x^3}"],
    r"\frac{a}{b}": [r"\frac{b}{a}", "ab"],
    "1/2": ["1/2x", "12", "1:3", "1/20"],
    "10": ["1010", "10_2", "10^{10}", "10!", "1,0"],
    "16": ["2^{4.01}", "4"],
    r"\frac{\sqrt{5}-1}{2}": ["0.618", "0.6180339887", r"\frac{\sqrt5+1}{2}", "1.618"],
}  # fmt: skip


def pairs(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(gold, answer) for gold, answers in table.items() for answer in answers]


def seeded(table: dict[str, list[str]], count: int) -> list[tuple[str, str]]:
    return random.Random(0).sample(pairs(table), count)


def wrongly_judged(chosen: list[tuple[str, str]], expected: bool) -> list[tuple[str, str]]:
    return [(gold, answer) for gold, answer in chosen if same_answer(gold, answer) is not expected]


def test_equal_answers_are_accepted() -> None:
    assert wrongly_judged(seeded(SAME, 80), True) == []


def test_other_answers_are_rejected() -> None:
    assert wrongly_judged(seeded(DIFFERENT, 80), False) == []


@pytest.mark.full
def test_every_equal_answer_is_accepted() -> None:
    assert wrongly_judged(pairs(SAME), True) == []


@pytest.mark.full
def test_every_other_answer_is_rejected() -> None:
    assert wrongly_judged(pairs(DIFFERENT), False) == []


def test_an_unknown_liberty_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no liberty 'unit': take some of percent, order, units"):
        Policy(liberties=("order", "unit"))


def test_a_policy_survives_the_way_to_a_worker() -> None:
    problem_, response = problem(r"(\sqrt{2},1)"), boxed(r"\{1,\frac{2}{\sqrt2}\}")
    for liberties, outcome in (((), "wrong"), (("units", "order"), "correct")):
        with WorkerPool(workers=1, policy=Policy(liberties=liberties)) as pool:
            assert pool.submit(problem_, response, False).result(SECONDS).outcome == outcome


@pytest.mark.parametrize(
    "word", ["and a half", "or more", "out of 6", "of 6", "minus 1", "mod 7", "at most", "less"]
)
def test_words_that_say_more_than_what_was_counted_are_no_unit(word: str) -> None:
    assert same_answer("5", rf"5 \text{{ {word}}}") is False


def test_an_equation_counts_by_its_right_side_where_it_is_true_and_solved() -> None:
    for answer in ("m+n=73", "a+b+c = 73", "m+n = 70+3 = 73", "x = 73", "70+3=73"):
        assert same_answer("73", answer) is True, answer
    for answer in ("74=73", "x=74=73", "2x=73", "x+1=73", "x^2=73", "m+n+1=73", "73=m+n+1"):
        assert same_answer("73", answer) is False, answer


@pytest.mark.parametrize(
    ("gold", "unsolved"),
    [
        ("x = 2", "4 + x = 6"),
        ("x=3", "2x=6"),
        ("x=3", "3x=x+6"),
        ("x=3", r"\frac{x}{3}=1"),
        ("x=3", "x-3=0"),
        ("x_1=3", "2x_1=6"),
        (r"\alpha=3", r"2\alpha=6"),
        ("x=3, y=2", "2x=6, y=2"),
        ("x>2", "3x+1>7"),
        ("x>2", "x-2>0"),
        ("x<5", "2x+1<11"),
        (r"x \ge 3", r"2x-6 \ge 0"),
    ],
)
def test_what_is_still_to_be_solved_is_no_solution(gold: str, unsolved: str) -> None:
    assert same_answer(gold, unsolved) is False


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("x=3", "3=x"),
        ("x=3", r"x=\frac{6}{2}"),
        ("x>2", "2<x"),
        ("x>2", r"(2,\infty)"),
        ("x_1=3", "x_{1}=3"),
        ("y=2x+3", "2y=4x+6"),
        ("2x+y=4", "4x+2y=8"),
    ],
)
def test_a_solution_may_be_turned_round_and_a_curve_multiplied(gold: str, answer: str) -> None:
    assert same_answer(gold, answer) is True


def test_coordinates_may_be_given_by_their_names() -> None:
    assert same_answer("(2,-3)", "x=2,y=-3") is True
    assert same_answer("(2,-3)", r"y=-3 \text{ and } x=2") is True
    assert same_answer("x=2, y=-3", "(2,-3)") is True
    assert same_answer("(2,-3)", "x=-3,y=2") is False


@pytest.mark.parametrize(
    "operation",
    "squared cubed factorial thirds trillion thousandths hundredths lakh crore quadrillion mil "
    "septillion googol permille twos threes triples half-dozens double doubled halved reciprocal "
    "inverse negative sqrt wrong exceeding none never".split(),
)
def test_a_word_that_changes_a_number_is_no_unit(operation: str) -> None:
    assert same_answer("7", f"7 {operation}") is False
    assert same_answer("7", rf"7 \text{{ {operation}}}") is False


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("0.007", r"7 \text{ thousandths}"),
        ("700000", r"7 \text{ lakh}"),
        (r"\frac12", r"\text{one half}"),
        (r"\frac{1}{3}", r"\text{one third}"),
        ("-5", r"\text{minus five}"),
        ("-5", r"\text{negative five}"),
        ("7", r"7 \text{ quarters}"),
    ],
)
def test_numbers_may_be_written_in_words(gold: str, answer: str) -> None:
    assert same_answer(gold, answer) is True


def test_a_list_with_a_fraction_in_it_is_no_fraction() -> None:
    assert same_answer("4", "1,2/3") is False
    assert same_answer("1/23", "1/2,3") is False
    assert same_answer("1/2,3", r"3, \frac12") is True


def test_numbers_apart_are_not_one_number() -> None:
    assert same_answer("6", "3 3") is False
    assert same_answer("1234", r"1,\ 234") is False
    assert same_answer("1, 234", r"234,\ 1") is True


def test_times_of_the_day_are_no_ratios() -> None:
    assert same_answer("6:00", "3:00") is False
    assert same_answer(r"2:00 \text{ p.m.}", r"3:00\text{ p.m.}") is False
    assert same_answer(r"2:05 \text{ p.m.}", r"2:05\text{ PM}") is True


def test_letters_of_a_figure_are_no_product() -> None:
    assert same_answer(r"\angle ABC", r"\angle ACB") is False


def test_a_number_set_in_another_type_is_the_number() -> None:
    for answer in (r"\text{7}", r"$\mathbf{7}$", r"\textbf{7}.", r"\boldsymbol{7}"):
        assert same_answer("7", answer) is True
        assert same_answer("8", answer) is False
    assert same_answer(r"\text{Plan 1}", "Plan 1") is True
    assert same_answer(r"\text{Plan 1}", "Plan 2") is False


@pytest.mark.parametrize("answer", ["1.2.3/4", r"\frac{1..2}{3}", r"\frac{1}{2.3.4}"])
def test_an_answer_that_only_looks_like_a_number_is_wrong_and_no_error(answer: str) -> None:
    assert judged("7", answer).outcome == "wrong"


# --- what the released graders get wrong (ALGORITHMS.md 5.3, by number) ---


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"(1,2)\cup(3,4)", r"(3,4)\cup(1,2)"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("1024", "2^{10}"),
        ("0.5", r"\frac12"),
    ],
)
def test_mistake_29_equal_answers_written_otherwise_score(gold: str, answer: str) -> None:
    assert judged(gold, answer).outcome == "correct"


def test_mistake_29_a_percent_scores_as_a_decimal_where_the_policy_says_so() -> None:
    policy = Policy(liberties=("percent",))
    assert verify(problem("0.1"), boxed(r"10\%"), False, policy).outcome == "correct"
    assert judged("0.1", r"10\%").outcome == "wrong"


def test_mistake_29_an_answer_without_a_box_can_score() -> None:
    response = r"It is $\frac12$."
    verdict = verify(problem("0.5"), response, False, Policy(answer_pattern=r"is \$(.*)\$"))
    assert verdict.outcome == "correct"


def test_mistake_36_a_verdict_says_the_same_however_often_it_is_asked_for() -> None:
    verdicts = [judged("5", "6") for _ in range(3)]
    assert {verdict.detail for verdict in verdicts} == {"6 is not 5"}


def test_mistake_38_a_list_of_accepted_answers_is_cleaned_like_the_answer() -> None:
    assert judged([r"$\dfrac{1}{2}$.", "one half"], r"\tfrac12").outcome == "correct"
    assert judged([r"$\dfrac{1}{2}$.", "one half"], "One half").outcome == "correct"
    assert judged([r"$\dfrac{1}{2}$.", "one half"], "one third").outcome == "wrong"


# --- verdicts ---


def test_a_right_answer_scores_one_and_a_wrong_one_says_why() -> None:
    right, wrong = judged("5", "5"), judged("5", "4")
    assert (right.outcome, right.score) == ("correct", 1.0)
    assert (wrong.outcome, wrong.score, wrong.detail) == ("wrong", 0.0, "4 is not 5")


def test_only_the_last_box_is_judged() -> None:
    response = r"It may be \boxed{5}, no, it is \boxed{6}."
    assert verify(problem("5"), response, False).outcome == "wrong"
    assert verify(problem("6"), response, False).outcome == "correct"


def test_no_box_is_no_answer_and_not_wrong() -> None:
    assert verify(problem("5"), "It is 5.", False).outcome == "no_answer"
    assert verify(problem("5"), r"It is \boxed{}.", False).outcome == "no_answer"
    assert verify(problem("5"), r"It is \boxed{5}", True).outcome == "no_answer"


@pytest.mark.parametrize("answer", [5, 5.0, "5", ["4", 5], [5.0]])
def test_accepted_answers_may_be_texts_numbers_or_lists(answer: Any) -> None:
    assert judged(answer, "5").outcome == "correct"


@pytest.mark.parametrize("answer", [None, True, {}, [], "", " ", [""], [None], {"a": 1}])
def test_a_malformed_accepted_answer_is_an_error_and_not_wrong(answer: Any) -> None:
    verdict = judged(answer, "5")
    assert verdict.outcome == "error"
    assert "give a text, a number or a list of them" in verdict.detail


def test_an_accepted_answer_too_long_to_be_read_is_an_error() -> None:
    verdict = judged("x+" * MAX_CHARACTERS + "1", "5")
    assert verdict.outcome == "error"
    assert "shorten it" in verdict.detail


# --- numbers ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-3", Fraction(-3)),
        ("1,234.5", Fraction(2469, 2)),
        (".5", Fraction(1, 2)),
        ("5.", Fraction(5)),
        ("3/4", Fraction(3, 4)),
        (r"-\frac{1}{2}", Fraction(-1, 2)),
        ("4 2/3", Fraction(14, 3)),
        (r"-4\frac{2}{3}", Fraction(-14, 3)),
        (r"5\frac{3}{2}", Fraction(15, 2)),
        ("1.5e3", Fraction(1500)),
        (r"6.72\times 10^{-5}", Fraction(672, 10**7)),
        (r"0.\overline{142857}", Fraction(1, 7)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        ("0.1666...", Fraction(1, 6)),
        ("10^{2}", Fraction(100)),
        ("-10^2", Fraction(-100)),
    ],
)
def test_numbers_are_read_exactly(text: str, value: Fraction) -> None:
    assert exact_number(clean(text)) == value


@pytest.mark.parametrize(
    "text", ["", ".", "-", "1/0", "1.2.3", "x", "1,23", "3.14159...", "12_8", "--1", "1e9999", "2x"]
)
def test_what_is_no_number_is_read_as_none(text: str) -> None:
    assert exact_number(clean(text)) is None


fractions = st.fractions(max_denominator=10**6)


@given(fractions, fractions)
def test_fractions_are_the_same_only_if_they_are_equal(one: Fraction, other: Fraction) -> None:
    answer = rf"\frac{{{other.numerator}}}{{{other.denominator}}}"
    assert same_answer(str(one), answer) is (one == other)


@given(st.integers(-(10**12), 10**12), st.integers(1, 9))
def test_a_decimal_is_the_fraction_it_writes_down(digits: int, places: int) -> None:
    sign, text = "-" * (digits < 0), str(abs(digits)).rjust(places + 1, "0")
    decimal = f"{sign}{text[:-places]}.{text[-places:]}"
    fraction = Fraction(digits, 10**places)
    assert same_answer(decimal, str(fraction)) is True
    assert same_answer(decimal, str(fraction + Fraction(1, 10**12))) is False


@given(st.integers(2, 10**6), st.integers(3, 60))
def test_no_rounded_decimal_of_a_repeating_one_is_accepted(denominator: int, places: int) -> None:
    gold = Fraction(1, 3 * denominator)
    rounded = f"0.{int(gold * 10**places):0{places}d}"
    assert same_answer(str(gold), rounded) is False


# --- parts ---


def test_answers_are_taken_apart() -> None:
    two, half = Number(value=Fraction(2)), Number(value=Fraction(1, 2))
    pi = Expression(text=r"\pi")
    assert read_answer(r"-\frac{-1}{2}, 2") == Group(kind="list", items=(half, two))
    assert read_answer("12.5%") == Number(value=Fraction(25, 2), percent=True)
    assert read_answer("52_{8}") == Numeral(digits="52", base="8")
    assert read_answer("2 cm^2") == Quantity(value=two, unit="cm^2")
    named = read_answer(r"x \in (2, \pi]")
    assert isinstance(named, Named)
    assert (named.name, named.value) == ("x", Group(kind="(]", items=(two, pi)))


# --- the quick path and the limits ---


def test_the_quick_path_never_says_other_than_the_slow_one() -> None:
    for table, expected in ((SAME, True), (DIFFERENT, False)):
        for gold, answer in pairs(table):
            quick = same_answer(gold, answer, symbols=False)
            assert quick is None or quick is expected, (gold, answer)


def test_the_quick_path_decides_numbers_lists_and_words() -> None:
    for gold, answer in (
        ("5", "4"),
        ("5", "5.0"),
        ("1/2", "0.5"),
        ("(1,2)", "(1,3)"),
        ("even", "odd"),
    ):
        assert same_answer(gold, answer, symbols=False) is not None


def test_the_quick_path_leaves_expressions_to_the_workers() -> None:
    reading = Reading(text="", answer=r"\frac{2}{\sqrt{2}}")
    assert judge_math(problem(r"\sqrt{2}"), reading, symbols=False) is None
    assert math(problem(r"\sqrt{2}"), reading, Policy()).outcome == "correct"


HOSTILE = {
    "long": "1+" * 10**5 + "1",
    "digits": "9" * 10**6,
    "digits with a point": "9" * 10**6 + ".5",
    "nested parentheses": "(" * 10**5 + "x" + ")" * 10**5,
    "nested fractions": r"\frac{1}{" * 5000 + "1" + "}" * 5000,
    "nested boxes": r"\boxed{" * 10**5,
    "blanks": " " * 10**6,
    "commas": "," * 10**6,
    "zero bytes": "\x00" * 10**6,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_take_the_quick_path_no_time(name: str) -> None:
    response = boxed(HOSTILE[name])
    verdict = quick_verdict(problem("5"), response, False)
    assert verdict is None
    assert verify(problem("5"), response, False).outcome in ("limit", "no_answer")


def test_answers_beyond_the_limits_are_not_read() -> None:
    with pytest.raises(TooLarge, match="characters"):
        clean("1" * (MAX_CHARACTERS + 1))
    with pytest.raises(TooLarge, match="brackets"):
        clean("(" * 30 + "x" + ")" * 30)
    assert judged("5", "(" * 30 + "5" + ")" * 30).outcome == "limit"


PIECES = (
    r"\frac \sqrt { } ( ) [ ] , . 1 34 0.5 x n + - / ^ _ = < \le \in \pm \mpn \cup \infty \{ \} "
    r"\text{ and or \left( \right) % ° $ ; \\ & \begin{pmatrix} \end{pmatrix} | ! ... cm May f(x)"
)


@given(st.lists(st.sampled_from(PIECES.split()), max_size=40).map("".join))
def test_whatever_is_answered_is_judged(answer: str) -> None:
    verdict = quick_verdict(problem(r"\frac{1}{2}"), boxed(answer), False)
    assert verdict is None or verdict.outcome in ("correct", "wrong", "no_answer", "limit")
    assert same_answer(r"\frac{1}{2}", answer[:200], symbols=False) in (True, False, None)
