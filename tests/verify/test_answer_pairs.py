r"""Answers as people and models write them, class by class: right ones, and wrong ones beside them.

An accepted answer stands at the margin; below it, two spaces apart, what must be accepted for it
(+) and what must not (-). The judge is strict here: conventions that a policy may forgive are the
matter of the last table. Of the right ones a few may be missed; a wrong one must never pass.
"""

from __future__ import annotations

import random

import pytest

from archer.types import Problem
from archer.verify.math import same_answer
from archer.verify.policy import LIBERTIES, Policy
from archer.verify.verifiers import quick_verdict, verify

Pair = tuple[str, str, bool]
"""An accepted answer, a response, and whether it must be accepted."""

CLASSES = {
    "rounded decimals": r"""
\sqrt{5}
  +  \frac{5}{\sqrt5}  5^{0.5}
  -  2.236  2.2360679775  \approx 2.236
\frac{5}{7}
  +  0.\overline{714285}
  -  0.714  0.714285714  0.7143
\frac{2}{3}
  +  0.6666...  0.\dot{6}
  -  0.67  0.6666666666666667  0.6
\frac{1}{8}
  +  0.125  .125  12.5/100
  -  0.13  0.12  0.1250001
\frac{\pi}{6}
  +  \frac{1}{6}\pi  \pi\div 6  pi/6
  -  0.5236  0.52  30
e^{3}
  +  \exp 3  e\cdot e^2
  -  20.0855  20.09  e3  3e
\log_{10} 5
  +  1-\log_{10}2  \lg 5
  -  0.699  \ln 5  \log_5 10
0.125
  +  \frac18  12.5e-2
  -  0.12  0.1  1.25
\frac{1+\sqrt5}{2}
  +  \frac12+\frac{\sqrt5}{2}  0.5(1+\sqrt{5})
  -  1.618
\sqrt[3]{7}
  +  7^{1/3}  7^{\frac{1}{3}}
  -  1.913  7/3  3\sqrt7
100\pi
  +  \pi\cdot 10^2
  -  314  314.16  100  314.159265358979
""",
    "bases": r"""
1203_4
  +  1203_{4}  1203_{\text{four}}  (1203)_4
  -  1203  1203_5  12034  99
11011_2
  +  11011_{2}  11011_{\text{two}}
  -  27  11011  110112
A3_{16}
  +  a3_{16}  \text{A3}_{16}
  -  A3  163  A3_{15}
77
  -  77_8  77_9
3_7
  +  3_{7}
  -  3  37
""",
    "repeating decimals": r"""
0.\overline{27}
  +  \frac{3}{11}  0.272727...  0.(27)
  -  0.27  0.2727  27
0.5\overline{3}
  +  \frac{8}{15}  0.5333...
  -  0.53  0.\overline{53}  0.5333
\frac{41}{33}
  +  1.\overline{24}  1.2424...
  -  1.24  1.2\overline{4}
0.333...
  +  \frac13  0.\overline{3}
  -  0.333  0.3
\frac{1}{9}
  +  0.\bar{1}  0.111\ldots  0.\overline 1
  -  0.1  0.111
""",
    "mixed numbers": r"""
4 2/3
  +  \frac{14}{3}  4\frac23  4\dfrac{2}{3}  4 + \frac{2}{3}
  -  42/3  8/3  4.67
2\frac{1}{4}
  +  2.25  9/4  2 1/4  2\,\frac14
  -  1/2  21/4  2\cdot\frac14
\frac{7}{3}
  +  2\frac13  2 1/3
  -  2.33  21/3  2 2/3
-3\frac{1}{2}
  +  -3.5  -\frac72  -3 1/2
  -  -2.5  3.5  -\frac32
12 3/8
  +  12.375  \frac{99}{8}
  -  123/8  12.38
""",
    "thousands": r"""
1234
  +  1\,234  1,234  1{,}234  1 234  1234.
  -  1.234  1,23,4  1, 234
1234567
  +  1,234,567  1\,234\,567  1,\!234,\!567  1 234 567
  -  1,234  1,234,568
10000
  +  10,000  10\ 000  10^4  1e4  10,000.00
  -  1,0000  1000  10,00
2500.5
  +  2,500.5  2\,500.50
  -  2,500  2500,5
0.001
  +  10^{-3}  1e-3  \frac{1}{1000}
  -  0.01  0,001  0.0010001
""",
    "punctuation and spaces": r"""
42
  +  42.  42  $42$  \(42\)  \,42\,  42;  42,  {42}  \text{42}
  -  4 2  4.2  42.1  !42
-7
  +  \left(-7\right)  - 7  −7  -7.0  {-7}
  -  7  --7  -(-7)
\frac{3}{4}
  +  \frac34  \frac 3 4  \displaystyle\frac{3}{4}  {3 \over 4}  3 / 4  \,\frac{3}{4}\,
  -  34  \frac43  3,4
x+1
  +  1 + x  x + 1.  \left(x+1\right)  \mathrm{x}+1
  -  x-1  x1  X+1
2\sqrt{6}
  +  2\cdot\sqrt{6}  2 \sqrt6  \sqrt{24}  2\,\sqrt{6}\,.
  -  6\sqrt2  \sqrt{26}  2+\sqrt6
""",
    "degrees": r"""
45^\circ
  +  45  45°  45^{\circ}  45 degrees  45\text{ degrees}  45\degree
  -  \frac{\pi}{4}  45 rad  0.45  45\%  45 cm  54^\circ
120
  +  120^\circ  120^{\circ}.  120 degrees
  -  \frac{2\pi}{3}  120\text{ radians}
\frac{\pi}{3}
  +  \pi/3
  -  60^\circ  60  1.047
\frac{45}{2}^\circ
  +  22.5  22.5^\circ  22 1/2
  -  22  23
\sin 60^\circ
  +  \frac{\sqrt3}{2}  \sin\frac{\pi}{3}
  -  \sin 60  \frac12  0.866
20^\circ\text{C}
  +  20\,^\circ\mathrm{C}  20°C
  -  20^\circ\text{F}  21^\circ\text{C}
""",
    "currency": r"""
25
  +  \text{\$}25  \$25  $25  \$25.00  25 dollars
  -  \$2.50  25 cents  \$250
\$4.50
  +  4.5  \$4.5  4.50\text{ dollars}  \frac92
  -  4.5\%  450  4.50\text{ cents}  €4.50  4.05
\$1{,}250
  +  1250  \$1,250  \$1250.00  $1,250  \$1,\!250
  -  1.25  \$12.50  1250 euros
18
  +  \$18  18\text{ dollars}  \text{\textdollar}18
  -  \$18\text{ per hour}  18 cents  18\%
5000000
  +  \$5 \text{ million}  5 million  5\times10^6
  -  \$5  5 billion
""",
    "complex numbers": r"""
3+4i
  +  4i+3  3+4\mathrm{i}  3 + 4 i  3+4\cdot i
  -  3-4i  4+3i  7i  5  3+4j
-2i
  +  \frac{2}{i}  -2\mathrm{i}  0-2i
  -  2i  -2  -2j
i
  +  \sqrt{-1}  e^{\frac{i\pi}{2}}  -i^3
  -  -i  1  I
\frac{1+i}{\sqrt2}
  +  e^{i\pi/4}  \frac{\sqrt2}{2}+\frac{\sqrt2}{2}i
  -  \frac{1-i}{\sqrt2}  e^{\pi/4}
5
  +  |3+4i|  (2+i)(2-i)
  -  5i  3+4i
""",
    "the empty set and infinity": r"""
\varnothing
  +  \emptyset  \{\}  ∅  \left\{\right\}
  -  0  \{0\}  \{\emptyset\}  \infty
\infty
  +  +\infty  infinity  ∞
  -  -\infty  10^{100}  8
\text{no solution}
  +  No solution  no solution.
  -  0  \text{infinitely many solutions}
\mathbb{R}
  +  (-\infty,\infty)  \text{all real numbers}  (-\infty,+\infty)
  -  \mathbb{Q}  (0,\infty)  [0,\infty)
""",
    "inequalities and intervals": r"""
-3<x<5
  +  5>x>-3  (-3,5)  x\in(-3,5)  -3 \lt x \lt 5
  -  [-3,5]  -3\le x<5  -3>x>5  x<5  (5,-3)
1\le x\le 4
  +  4\ge x\ge 1  [1,4]  4\geqslant x\geqslant1  1<=x<=4
  -  (1,4)  [1,4)  1\le x<4  \{1,4\}
x>7
  +  7<x  (7,\infty)  x\in(7,\infty)  x > 7.
  -  x\ge7  x<7  7  [7,\infty)
x<3\text{ or }x>5
  +  (-\infty,3)\cup(5,\infty)  x>5 or x<3
  -  x<3\text{ and }x>5  3<x<5
\angle ABC = 60^\circ
  +  60  \angle ABC = 60
  -  \angle ACB = 60^\circ  61
\lceil x\rceil
  +  -\lfloor -x\rfloor
  -  \lfloor x\rfloor+1  \lfloor x\rfloor
(-\infty,-1]\cup[2,\infty)
  +  x\le-1\text{ or }x\ge2  [2,\infty)\cup(-\infty,-1]
  -  (-\infty,-1)\cup(2,\infty)  [-1,2]  x\le-1
[0,1)
  +  0\le x<1  1>x\ge0  \left[0,1\right)
  -  (0,1]  [0,1]  (0,1)  0,1
(0,\frac{\pi}{2})
  +  \left(0,\pi/2\right)  0<x<\frac{\pi}{2}
  -  [0,\frac{\pi}{2}]  (0,1.57)
x<2
  +  2>x  (-\infty,2)
  -  x>2  x\le2  (-\infty,2]
x+y<3
  +  3>x+y  2x+2y<6  x+y-3<0
  -  x+y>3  x+y\le3  -x-y<-3
x\ne 1
  +  x \neq 1  1\ne x
  -  x=1  x\ne -1
""",
    "dates, times and words": r"""
March 14, 2015
  +  14 March 2015  March 14th, 2015  \text{March 14, 2015}  Mar 14, 2015
  -  March 15, 2015  April 14, 2015  March 14, 2016  14
June 3
  +  3 June  \text{June 3rd}  the 3rd of June
  -  June 13  July 3  3
Tuesday
  +  \text{Tuesday}  tuesday.  \textbf{Tuesday}
  -  Thursday  Wednesday
3:30
  +  3:30
  -  3:31  3.5  30:3
blue
  +  \text{blue}  Blue
  -  red  blu
seven
  +  7  \text{seven}
  -  eight  17
never
  +  \text{Never}
  -  ever  always
""",
    "choices": r"""
B
  +  (B)  \text{B}  \textbf{(B)}  B.  \mathrm{B}  B)
  -  A  C  (D)  b  AB  8
\text{(E)}
  +  E  (E)
  -  (F)  e  \text{(B)}
A, C
  +  \text{A and C}  C, A  A,C
  -  A  A, B  A, C, D
""",
    "sets, lists and tuples": r"""
\{1,2,3\}
  +  \{3,1,2\}  1,2,3  \left\{1, 2, 3\right\}  \{1,1,2,3\}
  -  \{1,2\}  (1,2,3)  \{1,2,4\}  [1,2,3]
(1,2)
  +  \left(1,2\right)  ( 1 , 2 )  (1.0,\frac42)  (x,y)=(1,2)
  -  (2,1)  \{1,2\}  1,2  [1,2]  (1,2,0)  12
2, 3
  +  3, 2  2 and 3  x=2, x=3  2\text{ or }3  2; 3
  -  2  3  2, 4  2, 3, 3  (2,3)  23  2.3
(2,-3)
  +  x=2,y=-3  x=2, y=-3  y=-3, x=2  x=2\text{ and }y=-3
  -  x=-3,y=2  y=2,x=-3  (2,3)  x=2
\pm\sqrt{3}
  +  \sqrt3,-\sqrt3  x=\pm\sqrt{3}  \{\sqrt3,-\sqrt3\}
  -  \sqrt3  -\sqrt3  \pm3  3
2\pm i
  +  2+i,2-i  2-i \text{ and } 2+i
  -  2+i  1\pm2i  -2\pm i
(1,0),(0,1)
  +  (0,1),(1,0)  \{(1,0),(0,1)\}  (1,0) and (0,1)
  -  (1,0)  (1,1),(0,0)  1,0,0,1
\left(\frac12,-\frac13,0\right)
  +  (0.5,-\frac{1}{3},0)  (1/2,-1/3,0)
  -  (0.5,-0.333,0)  (-\frac13,\frac12,0)
\{\frac{1}{2}\}
  +  \frac12  \{0.5\}
  -  \{2\}  \{\frac12,1\}
1,1,2
  +  1,2,1
  -  1,2  1,2,2
""",
    "matrices": r"""
\begin{pmatrix}2\\-1\end{pmatrix}
  +  \begin{bmatrix} 2 \\ -1 \end{bmatrix}  \left(\begin{array}{c}2\\-1\end{array}\right)
  +  \begin{pmatrix}2\\[2pt]-1\end{pmatrix}
  -  \begin{pmatrix}-1\\2\end{pmatrix}  \begin{pmatrix}2&-1\end{pmatrix}  2
  -  \begin{pmatrix}2\\1\end{pmatrix}
\begin{pmatrix}\frac12&0\\0&1\end{pmatrix}
  +  \begin{bmatrix}0.5&0\\0&1\end{bmatrix}  \begin{pmatrix}1/2 & 0 \\ 0 & 1\\\end{pmatrix}
  -  \begin{pmatrix}1&0\\0&\frac12\end{pmatrix}  \begin{pmatrix}0.5&0\end{pmatrix}
""",
    "units": r"""
12\text{ cm}
  +  12 cm  12\,\mathrm{cm}  12cm  12 centimeters
  -  12 m  12  12 mm  12\text{ cm}^2  12\%
30\text{ m/s}
  +  30 \text{ meters per second}  30\,\text{m/s}
  -  30\text{ m}  30\text{ km/h}  30 s
60 mph
  +  60 miles per hour  60\text{ mph}
  -  60 km/h  61 mph
7
  +  7 apples  7\text{ ways}  7 \text{ students}  7\text{ units}
  -  7 hours  7 dozen  7 thousand  7\text{ squared}  7 kg
24\text{ square inches}
  +  24\text{ in}^2  24 square inches  24\mbox{ inches}^2
  -  24\text{ cm}^2  24\text{ in}^3  24 inches
5 apples
  +  5  5\text{ apples}
  -  5 oranges  6 apples
3\text{ hours}
  +  3 hrs  3\,\text{h}
  -  3 minutes  180 minutes  3 days
""",
    "percents": r"""
40\%
  +  40%  40\,\%  40 percent  40.0\%  \frac{80}{2}\%
  -  0.4  40  \frac25  4\%  0.4\%  \$40
0.4
  +  \frac25  2/5
  -  40\%  40  0.4\%
12.5\%
  +  12\frac12\%  12.50%
  -  12.5  0.125  13\%  12\%
4.5\%
  +  \frac{9}{2}\%
  -  \$4.50  4.5 cm  45\%
""",
    "equations": r"""
5
  +  x=5  5=x  x = 2+3 = 5  2+3=5  f(2)=5  x=\frac{10}{2}=5
  -  x=6  x+5  2x=5  x^2=5  x+2=5  5=6  10=5
73
  +  m+n=73  m + n = 70 + 3 = 73  a+b+c=73  N=73
  -  m+n=74  m+n+1=73  73m+n  74=73
7
  +  3+4=7  7=7  \sqrt{49}=7
  -  14=7  2+3=7  x=14=7  7=14
y=3x-2
  +  3x-2  y=-2+3x  3x-y=2  3x-2=y  y-3x=-2  2y=6x-4
  -  y=3x+2  y=2x-3  x=3y-2  y=3x
x^2+y^2=9
  +  9=x^2+y^2  x^2+y^2-9=0  \frac{x^2}{9}+\frac{y^2}{9}=1
  -  x^2+y^2=3  x^2-y^2=9  (x+y)^2=9  9
f(x)=x^2
  +  x^2  f(x)=x^{2}  f(t)=t^2
  -  f(x)=x  g(x)=x^2  f(x)=2x
a=1,b=2
  +  b=2,a=1  a = 1, b = 2  1, 2
  -  a=2,b=1  a=1  2, 1
\frac35
  +  \cos A=\frac35  P=\frac{3}{5}  P(A)=0.6
  -  \sin A=\frac45  x+\frac25=\frac35+1
""",
    "polynomials and rational functions": r"""
x^2-5x+6
  +  (x-2)(x-3)  (x-3)(x-2)  6-5x+x^2  x(x-5)+6
  -  (x-2)(x+3)  x^2+5x+6  x^2-5x  2,3
(x+y)^2
  +  x^2+2xy+y^2  (y+x)^{2}
  -  x^2+y^2  (x-y)^2  x^2+xy+y^2
3x(x-4)
  +  3x^2-12x  3\cdot x\cdot(x-4)  -3x(4-x)
  -  3x^2-12  3x(x+4)  x(x-4)
\frac{x+1}{x-1}
  +  1+\frac{2}{x-1}  (x+1)/(x-1)  \frac{-x-1}{1-x}
  -  \frac{x-1}{x+1}  x+1/x-1  -1
\frac{1}{n(n+1)}
  +  \frac1n-\frac{1}{n+1}  \frac{1}{n^2+n}
  -  \frac{1}{n}  \frac{1}{n(n-1)}
2^{n+1}-2
  +  2(2^n-1)  2\cdot2^n-2
  -  2^{n+1}  2^{n}-2  2n+1-2
-x+3
  +  3-x  -(x-3)
  -  x-3  x+3  -x-3
abc
  +  cab  a\cdot b\cdot c  a b c
  -  a+b+c  ab  ABC
x^3y^2
  +  y^2x^3  x^{3}y^{2}  x^3\cdot y^2
  -  x^2y^3  (xy)^5
""",
    "roots, powers, logarithms and angles": r"""
\sqrt{3+2\sqrt{2}}
  +  1+\sqrt2  \sqrt2+1
  -  \sqrt{3}+\sqrt2  2.414  1-\sqrt2
\sqrt{\sqrt{16}}
  +  2  \sqrt[4]{16}
  -  4  16
5\sqrt{2}
  +  \sqrt{50}  \frac{10}{\sqrt2}  5\cdot2^{1/2}
  -  2\sqrt5  7.07  \sqrt{10}  5\sqrt[3]{2}
\frac{\sqrt6}{2}
  +  \sqrt{\frac32}  \frac{3}{\sqrt6}  \sqrt{1.5}
  -  \sqrt3  \frac{\sqrt6}{3}  1.2247
\log_2 10
  +  1+\log_2 5  \frac{\ln10}{\ln2}  \log_{2}{10}
  -  \log 10  3.32  \log_{10}2  \ln 10
\ln 8
  +  3\ln2  \ln(8)  \log_e 8
  -  \ln 6  2.079  \log_{10} 8  (\ln2)^3
\frac{\sqrt3}{2}
  +  \cos30^\circ  \sin\frac{\pi}{3}  \frac{3}{2\sqrt3}
  -  \cos30  \frac{\sqrt2}{3}  0.866
\tan^2 x+1
  +  \sec^2 x  \frac{1}{\cos^2x}
  -  \csc^2 x  \tan^2(x+1)
2\sin x\cos x
  +  \sin 2x  \sin(2x)
  -  2\sin x  \cos2x
\arcsin\frac{3}{5}
  +  \sin^{-1}\frac35  \arctan\frac34  \arccos 0.8
  -  \arccos\frac35  \sin\frac35  36.87
2^{10}-1
  +  1023  (2^5-1)(2^5+1)
  -  1024  2^9  2^{11}-1
6!
  +  720  6\cdot5!
  -  6  120  6!!
\binom{6}{2}
  +  15  \frac{6!}{4!2!}  \tbinom62
  -  30  \frac62  12
""",
    "scientific notation": r"""
6.02\times10^{23}
  +  6.02\cdot10^{23}  6.02e23  602000000000000000000000
  -  6.02\times10^{22}  6.02\times10^{-23}  6.02
2.5\times10^{-3}
  +  0.0025  2.5e-3  \frac{1}{400}
  -  0.025  2.5\times10^{3}  2.5-3
300
  +  3\times10^2  3e2  3.00e2
  -  3\times10^3  3^2  3e3
""",
    "fractions": r"""
\frac{2}{3}
  +  \frac46  \frac{-2}{-3}  2/3  \dfrac{10}{15}  2\cdot\frac13  \tfrac23
  -  \frac32  2.3  -\frac23  23
-\frac{5}{2}
  +  \frac{-5}{2}  \frac{5}{-2}  -2.5  -5/2  -2\frac12
  -  2.5  -\frac25  -1.5
\frac{\frac{1}{2}}{3}
  +  \frac16  (1/2)/3
  -  \frac32  \frac{1}{\frac23}
\frac{a}{2b}
  +  a/(2b)  \frac{1}{2}\cdot\frac ab  0.5ab^{-1}
  -  \frac{2a}{b}  \frac{ab}{2}  \frac{b}{2a}
3:2
  +  6:4  3 : 2
  -  2:3  3:3  32
""",
    "words beside a number": r"""
5
  +  5 \text{ times}  5\text{ apples}  \text{5}  5\text{.}
  -  5\text{ and a half}  5\text{ or more}  5\text{ out of 6}  5\text{ in base }6  5 \text{ base 6}
  -  5\text{ (mod 6)}  5\text{, maybe 6}  5\text{ but not 6}  5\text{ is wrong}  5\text{x}
  -  5\text{ tens}  5\text{ pairs}  5\text{ hundred dollars}  5\text{ score}  \text{not } 5
  -  \text{at least } 5  \text{more than 5}  \text{negative }5  \text{between 4 and 6}
2000000
  +  2\text{ million}  2 million people  \$2\text{ million}  2\text{ million dollars}
  -  2  2\text{ billion}  2\text{ million cm}  2\text{ and a million}
27\text{ m}^3
  +  27 \, m^3  27\text{ cubic meters}  27\text{ m}^{3}
  -  27  27\text{ m}^2  27\text{ cm}^3
3:00 \text{ p.m.}
  +  3:00 PM  3 p.m.  3\text{ pm}
  -  3:00  3 a.m.  3:30 p.m.
2\text{ hours } 30\text{ minutes}
  +  2 hours 30 minutes  2\text{ hours }30\text{ minutes}
  -  2 hours 3 minutes  2\text{ hours}  30 minutes
25\text{ cents}
  +  25¢  25 cents
  -  \$25  25  0.25
-40 \text{ degrees Celsius}
  +  -40^\circ\text{C}
  -  -40^\circ\text{F}  40^\circ\text{C}
""",
    "other statements around a value": r"""
5
  +  \boxed{5}  \underline{5}  \textcolor{red}{5}  \mathbf{5}  {5}
  -  \pm5  5,-5  <5  \le 5  \sim 5  x \ne 5  5-6  5\to6  5:5  5|5  5\cdot5  5(5)  \frac{5}{0}
  -  5 \Rightarrow 6  5=5=6  x=6=5  5 \pmod 7  5 \in \{5,6\}  4<5  5\vec{i}  5_x  x_5  5'  5+C
x
  -  x'  x^*  \dot{x}  \mathbf{x}y  X  \chi  \Delta x  x^T  |x|  \sqrt{x^2}  x_1
A
  -  A^T  A^{-1}  A'  \neg A  \angle A
B
  +  (B) 12  \text{(B) } 12  B.
  -  (A) or (B)  (B) and (C)  (C) 12
\frac{1}{2}
  +  {1 \over 2}  \mathbf{\frac{1}{2}}  {\frac12}  \frac{1}{2}\text{.}  \left.\frac{1}{2}\right.
  -  {2 \over 1}  \frac{1}{2}\frac{1}{2}
10
  +  {5 \choose 2}  \sum_{k=1}^{4} k  \binom{5}{3}
  -  {5 \choose 1}  \sum_{k=1}^{5} k  5 \choose
(3,7)
  +  ]3,7[  \{x \mid 3<x<7\}  x>3 \text{ and } x<7
  -  [3,7]  ]3,7]  \{x \mid 3\le x\le 7\}  x>3 \text{ or } x<7
x\ne 2
  +  (-\infty,2)\cup(2,\infty)  2\ne x
  -  (-\infty,2]\cup[2,\infty)  x=2  x>2
2\sqrt{3}
  +  2√3  √12
  -  √123  √1 2
f^{-1}(x)=\frac{x-1}{3}
  +  \frac{x-1}{3}
  -  f(x)=\frac{x-1}{3}  \frac{x+1}{3}
30
  +  m\angle A = 30^\circ  \angle ABC = 30  30^o
  -  m\angle A = 31^\circ  30\text{ rad}
I
  +  I
  -  i  \sqrt{-1}  1
20
  +  twenty  \text{twenty}
  -  \text{twenty-one}  two
""",
}

# What each liberty forgives, and what it does not.
CONVENTIONS = {
    "percent": r"""
50\%
  +  0.5  \frac12  1/2
  -  50  0.05  0.5\%  5
0.5
  +  50\%  50 percent
  -  5\%  50  0.5\%
\{10\%,20\%\}
  +  0.1, 0.2
  -  10, 20  0.1, 0.3
\frac{2}{3}
  +  66\frac23\%
  -  66.67\%  0.67
10%
  +  0.1  1/10
  -  10  0.01  1
0.1
  +  10%  10\%
  -  1\%  10
62.5%
  +  0.625  5/8
  -  62.5  6.25  0.62
75%
  +  0.75  3/4
  -  75  7.5  0.7
""",
    "order": r"""
(1,2)
  +  (2,1)  \{1,2\}  1,2  \{2,1\}
  -  [1,2]  (1,2]  (1,3)  1  (1,1)
\{1,2\}
  +  (1,2)  (2,1)
  -  [1,2]  (1,2,3)
1, 2, 3
  +  (3,2,1)  [1,2,3]
  -  (1,2)  (1,2,4)
-1<x<3
  -  (3,-1)  [-1,3]  3<x<-1
(1,2)\cup(3,4)
  -  (2,1)\cup(3,4)  1,2,3,4
\begin{pmatrix}1\\2\end{pmatrix}
  -  \begin{pmatrix}2\\1\end{pmatrix}  (1,2)
(2,\infty)
  -  (\infty,2)  \{2,\infty\}
""",
    "units": r"""
15\text{ cm}
  +  15
  -  15 m  15\%  15 in  \$15  16
15
  +  15 cm  15\%  15 kg
  -  16 cm  15 thousand  15\text{ squared}
864 \mbox{ inches}^2
  +  864
  -  864 feet  864 inches  864\text{ in}^3
40\%
  +  40
  -  0.4  40 cm  \$40
0.5
  -  0.5\%  50\%
4.5\%
  +  4.5
  -  \$4.50
10%
  +  10
  -  0.1  1/10
62.5%
  +  62.5
  -  0.625  6.25  62
8 cm
  +  8
  -  80  8 m  8 mm
60 mph
  +  60
  -  61  60 km/h
5 hours
  +  5
  -  5 minutes  300  6
5.4 \text{ cents}
  +  5.4  \frac{27}{5}
  -  54  0.054  5.4\text{ dollars}
\frac{3}{4}\text{ hours}
  +  0.75  3/4
  -  0.7  45  \frac{3}{4}\text{ minutes}
""",
}

SHARE_RIGHT = 0.97
PART = 300
"""Pairs that `make test` looks at."""


def answers(table: str) -> list[Pair]:
    pairs: list[Pair] = []
    gold = ""
    for line in table.strip().splitlines():
        if not line.startswith("  "):
            gold = line
            pairs.append((gold, gold, True))
            continue
        sign, *written = line.strip().split("  ")
        pairs += [(gold, answer, sign == "+") for answer in written]
    return pairs


EVERY = [pair for table in CLASSES.values() for pair in answers(table)]
SOME = random.Random(0).sample(EVERY, PART)


@pytest.mark.parametrize("pairs", [SOME, pytest.param(EVERY, marks=pytest.mark.full)])
def test_nearly_every_right_answer_is_accepted_and_no_wrong_one(pairs: list[Pair]) -> None:
    judged = [(pair, same_answer(pair[0], pair[1])) for pair in pairs]
    assert [pair for pair, accepted in judged if accepted and not pair[2]] == []
    assert sum(accepted is pair[2] for pair, accepted in judged) >= SHARE_RIGHT * len(judged)


@pytest.mark.parametrize("liberty", LIBERTIES)
def test_a_liberty_forgives_its_convention_and_nothing_else(liberty: str) -> None:
    pairs = answers(CONVENTIONS[liberty])
    assert [
        (gold, answer)
        for gold, answer, right in pairs
        if same_answer(gold, answer, liberties=(liberty,)) is not right
    ] == []
    right = [(gold, answer) for gold, answer, right in pairs if right and gold != answer]
    assert [pair for pair in right if same_answer(*pair)] == [], "strict refuses them"


def test_what_strict_accepts_every_liberty_accepts_too() -> None:
    for gold, answer, right in SOME:
        if right and same_answer(gold, answer):
            for liberties in (*((name,) for name in LIBERTIES), LIBERTIES):
                assert same_answer(gold, answer, liberties=liberties), (gold, answer, liberties)


def test_liberties_accept_no_wrong_answer_of_any_other_kind() -> None:
    """With all of them, what strict refuses passes only where one of them alone lets it pass."""
    for gold, answer, right in SOME:
        if not right and same_answer(gold, answer, liberties=LIBERTIES):
            alone = [name for name in LIBERTIES if same_answer(gold, answer, liberties=(name,))]
            assert alone, (gold, answer)


@pytest.mark.parametrize("liberties", [(), *((name,) for name in LIBERTIES), LIBERTIES])
def test_the_quick_verdict_agrees_with_the_whole_under_every_policy(
    liberties: tuple[str, ...],
) -> None:
    policy = Policy(liberties=liberties)
    conventions = [pair for table in CONVENTIONS.values() for pair in answers(table)]
    for gold, answer, _ in [*conventions, *SOME[:100]]:
        problem = Problem(id="p", prompt="?", verifier="math", answer=gold)
        response = f"It is \\boxed{{{answer}}}."
        quick = quick_verdict(problem, response, False, policy)
        if quick is not None:
            whole = verify(problem, response, False, policy)
            assert (quick.outcome, quick.score) == (whole.outcome, whole.score), (gold, answer)
