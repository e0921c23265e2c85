"""Right programs for the 23 contest problems of the shared samples, written for these tests.

`SOLUTIONS` has one for each problem id. `MISTAKES` turns each into a wrong one: (old, new) text.
`CHECKERS` are for problems whose tests hold one of several right answers.

Many inputs of CodeContests are mutated and break the problem's own rules. What a program makes of a
word that is neither Yes nor No, or of a row outside of the matrix, is what the solutions did that
gave the expected outputs.
"""

from __future__ import annotations

SOLUTIONS: dict[str, str] = {}
MISTAKES: dict[str, tuple[str, str]] = {}
CHECKERS: dict[str, str] = {}

# A guessing game: sweep over the intervals of n in which each hint is a lie.
SOLUTIONS["code_contests-0"] = """
import sys
from collections import defaultdict

words = iter(sys.stdin.read().split())
TOP = 10**9
for _ in range(int(next(words))):
    change = defaultdict(int)
    for _ in range(int(next(words))):
        sign, bound, said = next(words), int(next(words)), next(words)
        yes = {"<": [(1, bound - 1)], ">": [(bound + 1, TOP)], "=": [(bound, bound)]}
        no = {"<": [(bound, TOP)], ">": [(1, bound)], "=": [(1, bound - 1), (bound + 1, TOP)]}
        for low, high in (no if said == "Yes" else yes).get(sign, []):
            if low <= high:
                change[low] += 1
                change[high + 1] -= 1
    change[1] += 0
    lies, best = 0, None
    for point in sorted(change):
        lies += change[point]
        if 1 <= point <= TOP and (best is None or lies < best):
            best = lies
    print(best)
"""
MISTAKES["code_contests-0"] = ("[(bound, TOP)]", "[(bound + 1, TOP)]")

# A matrix that counts up: only cells that were increased can stop a row.
SOLUTIONS["code_contests-1"] = """
import sys
from collections import Counter, defaultdict

n, m, p, *rest = map(int, sys.stdin.read().split())
rows = defaultdict(Counter)
for i, j in zip(rest[: 2 * p : 2], rest[1 : 2 * p : 2]):
    rows[i][j] += 1
for i in range(1, n + 1):
    added = rows[i]
    stops = any(0 <= j < m and added[j] > 1 + added[j + 1] for j in list(added))
    print(-1 if stops else m + added[m] - 1 - added[1])
"""
MISTAKES["code_contests-1"] = ("> 1 + added", "> added")

# Jumps to a neighbour or to an equal digit: breadth first, each digit's jumps used once.
SOLUTIONS["code_contests-2"] = """
from collections import defaultdict, deque

digits = input().strip()
places = defaultdict(list)
for place, digit in enumerate(digits):
    places[digit].append(place)
jumps = {0: 0}
queue = deque([0])
while queue:
    place = queue.popleft()
    for after in [place - 1, place + 1, *places.pop(digits[place], [])]:
        if 0 <= after < len(digits) and after not in jumps:
            jumps[after] = jumps[place] + 1
            queue.append(after)
print(jumps[len(digits) - 1])
"""
MISTAKES["code_contests-2"] = ("print(jumps[len(digits) - 1])", "print(jumps[len(digits) - 1] + 1)")

# T-shirts: what is left of one list without the other changes by one letter each.
SOLUTIONS["code_contests-3"] = """
import sys
from collections import Counter

n, *sizes = sys.stdin.read().split()
n = int(n)
print(sum((Counter(sizes[:n]) - Counter(sizes[n : 2 * n])).values()))
"""
MISTAKES["code_contests-3"] = ("sizes[:n]", "sizes[: n - 1]")

# A weakened common divisor: some prime of the first pair, or none. The smallest one of the first
# number that does, or of the second, is what most tests expect; others expect another.
SOLUTIONS["code_contests-4"] = """
import sys


def primes(number):
    factor = 2
    while factor * factor <= number:
        if number % factor == 0:
            yield factor
            while number % factor == 0:
                number //= factor
        factor += 1
    if number > 1:
        yield number


n, *numbers = map(int, sys.stdin.buffer.read().split())
pairs = list(zip(numbers[: 2 * n : 2], numbers[1 : 2 * n : 2]))
for number in pairs[0]:
    for prime in primes(number):
        if all(a % prime == 0 or b % prime == 0 for a, b in pairs):
            print(prime)
            sys.exit()
print(-1)
"""
MISTAKES["code_contests-4"] = ("factor * factor <= number", "factor * factor < number")
CHECKERS["code_contests-4"] = """
def check(given, output, expected):
    [divisor], [known] = map(int, output.split()), map(int, expected.split())
    n, *numbers = map(int, given.split())
    pairs = zip(numbers[: 2 * n : 2], numbers[1 : 2 * n : 2])
    if known == -1 or divisor < 2:
        return divisor == known
    return all(a % divisor == 0 or b % divisor == 0 for a, b in pairs)
"""

# Expected kingdoms: planets that stand, less wormholes between two that stand. Each planet keeps
# the sum over its children, so that a change costs the same for a star as for a path.
SOLUTIONS["code_contests-5"] = """
import sys

words = iter(sys.stdin.read().split())
n = int(next(words))
stands = [1 - float(next(words)) for _ in range(n)]
near = [[] for _ in range(n)]
for _ in range(n - 1):
    a, b = int(next(words)), int(next(words))
    near[a].append(b)
    near[b].append(a)
parent, order = [-1] * n, [0]
for planet in order:
    for other in near[planet]:
        if other != parent[planet]:
            parent[other] = planet
            order.append(other)
below = [0.0] * n
expected = sum(stands)
for planet in order[1:]:
    below[parent[planet]] += stands[planet]
    expected -= stands[planet] * stands[parent[planet]]
for _ in range(int(next(words))):
    planet, falls = int(next(words)), float(next(words))
    change = 1 - falls - stands[planet]
    above = parent[planet]
    expected += change * (1 - below[planet] - (stands[above] if above >= 0 else 0))
    stands[planet] += change
    if above >= 0:
        below[above] += change
    print(f"{expected:.5f}")
"""
MISTAKES["code_contests-5"] = ("for planet in order[1:]", "for planet in order[2:]")

# No local maximum: ways by the last value, and by whether it still needs a neighbour.
SOLUTIONS["code_contests-6"] = """
import numpy as np

MOD, VALUES = 998244353, np.arange(201)
n = int(input())
fine, needs = np.zeros(201, np.int64), np.zeros(201, np.int64)
for place, value in enumerate(map(int, input().split())):
    if place == 0:
        new_fine, new_needs = np.zeros(201, np.int64), np.ones(201, np.int64)
    else:
        upto = np.cumsum(fine + needs)
        new_needs = np.concatenate(([0], upto[:-1])) % MOD
        rest = np.cumsum(fine)
        new_fine = (rest[-1] - rest + fine + needs) % MOD
    kept = VALUES == value if value != -1 else VALUES > 0
    fine, needs = new_fine * kept, new_needs * kept
print(int(fine.sum() % MOD))
"""
MISTAKES["code_contests-6"] = ("rest[-1] - rest + fine + needs", "rest[-1] - rest + fine")

# Presents: the largest boxes keep one more where sizes can't be equal; the smallest box that lacks
# presents takes from the largest that has too many.
SOLUTIONS["code_contests-7"] = """
import sys

words = iter(map(int, sys.stdin.buffer.read().split()))
n, m = next(words), next(words)
boxes = [{next(words) for _ in range(next(words))} for _ in range(n)]
order = sorted(range(n), key=lambda box: len(boxes[box]))
size, more = divmod(sum(map(len, boxes)), n)
wanted = {box: size + (place >= n - more) for place, box in enumerate(order)}
moves = []
low, high = 0, n - 1
while low < high:
    taker, giver = order[low], order[high]
    count = min(wanted[taker] - len(boxes[taker]), len(boxes[giver]) - wanted[giver])
    if count > 0:
        for kind in sorted(boxes[giver] - boxes[taker])[:count]:
            boxes[giver].remove(kind)
            boxes[taker].add(kind)
            moves.append((giver + 1, taker + 1, kind))
    if len(boxes[taker]) >= wanted[taker]:
        low += 1
    else:
        high -= 1
print(len(moves))
for move in moves:
    print(*move)
"""
MISTAKES["code_contests-7"] = ("place >= n - more", "place > n - more")

# Segments of silence: for each lowest level the highest one without a cycle, and on the way those
# that hang together. Right for any park, quick for small ones.
SOLUTIONS["code_contests-8"] = """
import sys

n, m, *levels = map(int, sys.stdin.read().split())
del levels[n * m :]
cells = sorted(range(n * m), key=lambda cell: levels[cell])


def near(cell):
    row, column = divmod(cell, m)
    return [
        (row + down) * m + column + right
        for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0))
        if 0 <= row + down < n and 0 <= column + right < m
    ]


pleasant = 0
for first in range(n * m):
    leader = {}

    def find(cell):
        while leader[cell] != cell:
            leader[cell] = leader[leader[cell]]
            cell = leader[cell]
        return cell

    parts = 0
    for cell in cells[first:]:
        groups = [find(other) for other in near(cell) if other in leader]
        if len(set(groups)) < len(groups):
            break
        leader[cell] = cell
        for group in groups:
            leader[group] = cell
        parts += 1 - len(groups)
        pleasant += parts == 1
print(pleasant)
"""
MISTAKES["code_contests-8"] = ("cells[first:]", "cells[first + 1 :]")

# Sequences with a black edge: all but those that stay inside a part joined by red edges.
SOLUTIONS["code_contests-9"] = """
import sys
from collections import Counter

n, k, *edges = map(int, sys.stdin.buffer.read().split())
leader = list(range(n + 1))


def find(vertex):
    while leader[vertex] != vertex:
        leader[vertex] = leader[leader[vertex]]
        vertex = leader[vertex]
    return vertex


for u, v, black in zip(edges[::3], edges[1::3], edges[2::3]):
    if not black and max(u, v) <= n:
        leader[find(u)] = find(v)
parts = Counter(find(vertex) for vertex in range(1, n + 1))
MOD = 10**9 + 7
print((pow(n, k, MOD) - sum(pow(size, k, MOD) for size in parts.values())) % MOD)
"""
MISTAKES["code_contests-9"] = ("for vertex in range(1, n + 1)", "for vertex in range(1, n)")

# A longest increasing sequence from both ends: the smaller end; of equal ones the longer run.
SOLUTIONS["code_contests-10"] = """
n = int(input())
a = list(map(int, input().split()))
left, right, last, moves = 0, n - 1, 0, []
while left <= right:
    ends = [end for end in (a[left], a[right]) if end > last]
    if not ends:
        break
    if a[left] == a[right]:
        run = back = 1
        while left + run <= right and a[left + run] > a[left + run - 1]:
            run += 1
        while right - back >= left and a[right - back] > a[right - back + 1]:
            back += 1
        moves.append("L" * run if run > back else "R" * back)
        break
    last = min(ends)
    if last == a[left]:
        moves.append("L")
        left += 1
    else:
        moves.append("R")
        right -= 1
moves = "".join(moves)
print(len(moves))
print(moves)
"""
MISTAKES["code_contests-10"] = ("while left <= right", "while left < right")

# An interactive problem: quickselect of the point where half of the functions have grown enough.
# A reply that is no number, or is missing, counts as 0.
SOLUTIONS["code_contests-11"] = """
import sys

TOP = 10**18


def words():
    for line in sys.stdin:
        yield from line.split()


stream = words()
n, total = int(next(stream)), int(next(stream))
part = total // n if n else 0
segments = {}


def ask(i, x):
    print("?", i, x, flush=True)
    reply = next(stream, "0")
    return int(reply) if reply.lstrip("-").isdigit() else 0


def first_at(i, low, high, goal):
    while high - low > 1:
        middle = (low + high) // 2
        if ask(i, middle) >= goal:
            high = middle
        else:
            low = middle
    return high


def give(functions, low, high, before):
    if len(functions) == 1:
        segments[functions[0]] = (low, high)
        return
    wanted = len(functions) // 2
    goal = (before + wanted) * part
    early, late, left = [], [], functions
    while True:
        pivot = left[len(left) // 2]
        cut = first_at(pivot, low, high, goal)
        values = {i: ask(i, cut) for i in left if i != pivot}
        over = [i for i in values if values[i] > goal]
        under = [i for i in values if values[i] < goal]
        equal = [pivot, *(i for i in values if values[i] == goal)]
        if len(early) + len(over) > wanted:
            late += equal + under
            left = over
        elif len(early) + len(over) + len(equal) < wanted:
            early += over + equal
            left = under
        else:
            middle = over + equal
            count = wanted - len(early)
            early, late = early + middle[:count], late + middle[count:] + under
            break
    give(early, low, cut, before)
    give(late, cut, high, before + wanted)


if n > 0:
    give(list(range(1, n + 1)), 0, TOP, 0)
print("!")
for i in range(1, n + 1):
    print(*segments[i])
"""
MISTAKES["code_contests-11"] = ("print(*segments[i])", "print(segments[i][0], segments[i][1] - 1)")
# No test has an interactor, and many expect what one solution asks when it reads such an input, the
# first public one even the replies. What can be told: the questions and segments are allowed, the
# segments don't overlap, and a lone function that nothing was asked of needs all of the range.
CHECKERS["code_contests-11"] = """
def check(given, output, expected):
    n, top = int(given.split()[0]), 10**18
    asked, mark, told = output.partition("!")
    questions = [line.split() for line in asked.splitlines()]
    allowed = all(
        sign == "?" and 1 <= int(i) <= n and 0 <= int(x) <= top for sign, i, x in questions
    )
    segments = sorted([int(word) for word in line.split()] for line in told.split("\\n") if line)
    points = [0, *(point for segment in segments for point in segment), top]
    if not (mark and allowed and len(questions) <= 200_000 and len(segments) == max(n, 0)):
        return False
    if any(len(segment) != 2 for segment in segments) or points != sorted(points):
        return False
    return n != 1 or bool(questions) or segments == [[0, top]]
"""

# MP3: a window over the distinct values, as wide as the disk allows.
SOLUTIONS["code_contests-12"] = """
import sys
from collections import Counter
from itertools import accumulate

n, size, *sounds = map(int, sys.stdin.buffer.read().split())
kinds = 1 << min(20, 8 * size // n)
counts = [count for _, count in sorted(Counter(sounds[:n]).items())]
sums = [0, *accumulate(counts)]
kinds = min(kinds, len(counts))
print(n - max(sums[i + kinds] - sums[i] for i in range(len(counts) - kinds + 1)))
"""
MISTAKES["code_contests-12"] = ("8 * size // n", "8 * size // n - 1")

# Tiles: colours in order along the longest path, and from it outwards, away from its farther end.
SOLUTIONS["code_contests-13"] = """
import sys
from collections import defaultdict

n, k, *ends = map(int, sys.stdin.buffer.read().split())
near = defaultdict(list)
for u, v in zip(ends[::2], ends[1::2]):
    near[u].append(v)
    near[v].append(u)


def walk(start, stop=()):
    before, order = {start: 0}, [start]
    for vertex in order:
        for other in near[vertex]:
            if other not in before and other not in stop:
                before[other] = vertex
                order.append(other)
    return before, order


_, order = walk(1)
first = order[-1]
before, order = walk(first)
path = [order[-1]]
while path[-1] != first:
    path.append(before[path[-1]])

colour, possible = {}, True
for place, root in enumerate(path):
    before, order = walk(root, set(path))
    sign = 1 if 2 * place >= len(path) - 1 else -1
    depth = {0: -1}
    for vertex in order:
        depth[vertex] = depth[before[vertex]] + 1
        colour[vertex] = (place + sign * depth[vertex]) % k + 1
    most = depth[order[-1]]
    if k != 2 and most and most + min(place, len(path) - 1 - place) + 1 >= k:
        possible = False
print("Yes" if possible else "No")
if possible:
    print(*(colour.get(vertex, 1) for vertex in range(1, n + 1)))
"""
MISTAKES["code_contests-13"] = ("- place) + 1 >= k", "- place) >= k")
CHECKERS["code_contests-13"] = """
def check(given, output, expected):
    answer, *colours = output.split()
    if answer.lower() != expected.split()[0].lower():
        return False
    if answer.lower() == "no":
        return not colours
    n, k, *ends = map(int, given.split())
    colours = [0, *map(int, colours)]
    if len(colours) != n + 1 or not all(1 <= colour <= k for colour in colours[1:]):
        return False
    near = [[] for _ in range(n + 1)]
    for u, v in zip(ends[::2], ends[1::2]):
        if max(u, v) <= n:
            near[u].append(v)
            near[v].append(u)
    paths = [[vertex] for vertex in range(1, n + 1)]
    for _ in range(k - 1):
        paths = [[*path, v] for path in paths for v in near[path[-1]] if v not in path]
    return all(len({colours[vertex] for vertex in path}) == k for path in paths)
"""

# Monsters: each shot at the farthest one that is left, and pushes the others by r.
SOLUTIONS["code_contests-14"] = """
import sys

words = iter(map(int, sys.stdin.buffer.read().split()))
for _ in range(next(words)):
    n, r = next(words), next(words)
    monsters = sorted({next(words) for _ in range(n)}, reverse=True)
    shots = 0
    while shots < len(monsters) and monsters[shots] > shots * r:
        shots += 1
    print(shots)
"""
MISTAKES["code_contests-14"] = ("monsters[shots] > shots * r", "monsters[shots] >= shots * r")

# Platforms: gaps of d - 1 from the left while there is water for them.
SOLUTIONS["code_contests-15"] = """
n, m, d = map(int, input().split())
lengths = list(map(int, input().split()))
water = n - sum(lengths)
if water > (m + 1) * (d - 1):
    print("NO")
else:
    print("YES")
    cells = []
    for number, length in enumerate(lengths, start=1):
        gap = min(d - 1, water)
        water -= gap
        cells += [0] * gap + [number] * length
    print(*cells, *[0] * water)
"""
MISTAKES["code_contests-15"] = ("(m + 1) * (d - 1)", "m * (d - 1)")

# A hot bath: for each amount of cold water, the most first, the least hot water that will do.
SOLUTIONS["code_contests-16"] = """
t1, t2, x1, x2, t0 = map(int, input().split())
if t1 == t2:
    print(x1, x2)
elif t0 == t1:
    print(x1, 0)
elif t0 == t2:
    print(0, x2)
else:
    low, high = t0 - t1, t2 - t0
    best, excess, amount = (0, x2), high * x2, x2
    for cold in range(min(x1, x2 * high // low), 0, -1):
        hot = -(-cold * low // high)
        over, both = hot * high - cold * low, cold + hot
        if over * amount < excess * both:
            best, excess, amount = (cold, hot), over, both
        if over == 0:
            break
    print(*best)
"""
MISTAKES["code_contests-16"] = ("-(-cold * low // high)", "cold * low // high + 1")

# The smallest number of the same digits.
SOLUTIONS["code_contests-17"] = """
digits, answer = sorted(input().strip()), input().strip()
first = next((i for i, digit in enumerate(digits) if digit != "0"), 0)
digits.insert(0, digits.pop(first))
print("OK" if "".join(digits) == answer else "WRONG_ANSWER")
"""
MISTAKES["code_contests-17"] = ("digits.pop(first)", "digits.pop(first - 1)")

# The xor of all sums of two: bit by bit, the pairs whose sums have it, by two pointers. The numbers
# stay sorted by their low bits, as in a radix sort.
SOLUTIONS["code_contests-18"] = """
n = int(input())
numbers = list(map(int, input().split()))[:n]
n = len(numbers)


def pairs_from(values, least):
    found, other = 0, len(values)
    for place, value in enumerate(values):
        while other > 0 and values[other - 1] + value >= least:
            other -= 1
        found += len(values) - max(other, place + 1)
    return found


result = 0
for bit in range(26):
    power = 1 << bit
    numbers = [a for a in numbers if not a & power] + [a for a in numbers if a & power]
    low = [a & (2 * power - 1) for a in numbers]
    with_bit = pairs_from(low, power) - pairs_from(low, 2 * power) + pairs_from(low, 3 * power)
    result |= (with_bit & 1) << bit
print(result)
"""
MISTAKES["code_contests-18"] = ("max(other, place + 1)", "max(other, place)")

# The remainders repeat after a * b numbers.
SOLUTIONS["code_contests-19"] = """
import sys
from itertools import accumulate

words = iter(map(int, sys.stdin.buffer.read().split()))
for _ in range(next(words)):
    a, b, q = next(words), next(words), next(words)
    upto = list(accumulate(x % a % b != x % b % a for x in range(a * b)))

    def count(most):
        rounds, rest = divmod(most, a * b)
        return rounds * upto[-1] + upto[rest]

    print(*(-count(next(words) - 1) + count(next(words)) for _ in range(q)))
"""
MISTAKES["code_contests-19"] = ("next(words) - 1", "next(words)")

SOLUTIONS["1873_A"] = """
for _ in range(int(input())):
    print("YES" if sum(a == b for a, b in zip(input(), "abc")) >= 1 else "NO")
"""
MISTAKES["1873_A"] = (">= 1", "> 1")

SOLUTIONS["2727"] = """
class Solution:
    def countSeniors(self, details: List[str]) -> int:
        return sum(int(passenger[11:13]) > 60 for passenger in details)
"""
MISTAKES["2727"] = ("> 60", ">= 60")

# More wins, or of as many the one who did not win the last game.
SOLUTIONS["abc301_a"] = """
n, games = int(input()), input().strip()
ahead = games.count("T") - games.count("A")
print("T" if ahead > 0 or ahead == 0 and games[-1] == "A" else "A")
"""
MISTAKES["abc301_a"] = ("ahead > 0", "ahead >= 0")
