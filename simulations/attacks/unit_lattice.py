"""Records out of their Gram matrix: features are integers, and few integers have these products.

Of n records with integer features, feature j is a vector f_j of n integers, one for each record,
and the Gram matrix Σ φφᵀ holds the products f_j · f_k. More features than records generate all
integer vectors as a lattice, but for chance; a lattice of all integer vectors has n vectors of
length 1, along the axes, and along these the coordinates of each f_j are the records. So the
records follow from the products alone, up to their order and their signs, wherever the vectors of
length 1 are found.

They are found by reduction (Lenstra, Lenstra and Lovász 1982), here on products alone and with
dependent vectors (Pohst 1987), exact, in whole numbers: Cohen 1993, "A course in computational
algebraic number theory", algorithms 2.6.7 and 2.7.2. It suffices for some 32 records in seconds;
stronger reductions go further.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# features beyond the number of records: the lattice that so many generate is all but surely whole
SPARE = 10


def recover_records(gram: np.ndarray, records: int, rng: np.random.Generator) -> np.ndarray | None:
    """Return the records' features `(records, d)`, int64, each up to its sign and in any order;
    None where the reduction finds less than all of them.

    Args:
        gram: Σ φφᵀ, int64 `(d, d)`.
        records: how many there are.
        rng: chooses the features that the lattice is made of.
    """
    varied = np.flatnonzero(np.diag(gram))
    count = min(records + SPARE, len(varied))
    if count < records:
        return None
    chosen = rng.choice(varied, count, replace=False)
    exact = gram.astype(object)
    reduction = Reduction(exact[np.ix_(chosen, chosen)])
    basis = reduction.run()
    lengths = np.einsum("ij,jk,ik->i", basis, exact[np.ix_(chosen, chosen)], basis)
    if len(basis) != records or any(length != 1 for length in lengths):
        return None
    return (basis @ exact[chosen]).astype(np.int64)


def match_records(found: np.ndarray, truth: np.ndarray) -> int:
    """Return how many of the true records `(n, d)` are among those found, up to their sign."""
    known = set()
    for row in found.astype(np.int64):
        known |= {row.tobytes(), (-row).tobytes()}
    return sum(row.tobytes() in known for row in truth.astype(np.int64))


@dataclass
class Reduction:
    """The reduction of m vectors that generate a lattice, given by their products; vectors are
    counted from 1, as in Cohen.

        Reduction(np.array([[4, 2], [2, 2]], dtype=object)).run()

    Attributes:
        products: of the vectors, whole numbers `(m, m)` of Python's own.
        rows: what each vector is of those given, `(m, m)`.
        sizes: d_i, the determinant of the first i vectors that are not dependent; d_0 = 1.
        parts: λ_ij, d_j times the share of vector j in vector i.
        is_free: whether a vector is not dependent on those before it.
    """

    products: np.ndarray
    rows: np.ndarray = field(init=False)
    sizes: list[int] = field(init=False)
    parts: list[list[int]] = field(init=False)
    is_free: list[bool] = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.products)
        self.rows = np.eye(count, dtype=np.int64).astype(object)
        self.sizes = [1] * (count + 1)
        self.parts = [[0] * (count + 1) for _ in range(count + 1)]
        self.is_free = [False] * (count + 1)

    def run(self) -> np.ndarray:
        """Return a reduced basis as whole multiples of the vectors given, `(rank, m)`."""
        count = len(self.products)
        reached = 0
        current = 1
        while current <= count:
            if current > reached:
                reached = current
                self._enter(current)
            before = current - 1
            if before and self.is_free[before]:
                self._shorten(current, before)
                if not self.is_free[current]:
                    self._swap_dependent(current, reached)
                    current = max(2, before)
                    continue
                if self._is_out_of_order(current):
                    self._swap(current, reached)
                    current = max(2, before)
                    continue
            for earlier in range(current - 2, 0, -1):
                if self.is_free[earlier]:
                    self._shorten(current, earlier)
            current += 1
        dependent = count - sum(self.is_free)
        return self.rows[dependent:]

    def _enter(self, current: int) -> None:
        """Orthogonalise one vector more against those before it."""
        inner = self.rows[:current] @ self.products[:, current - 1]
        for earlier in range(1, current + 1):
            if earlier < current and not self.is_free[earlier]:
                continue
            share = int(inner[earlier - 1])
            for first in range(1, earlier):
                if self.is_free[first]:
                    product = self.parts[current][first] * self.parts[earlier][first]
                    share = (self.sizes[first] * share - product) // self.sizes[first - 1]
            if earlier < current:
                self.parts[current][earlier] = share
            elif share:
                self.sizes[current] = share
                self.is_free[current] = True
            else:
                self.sizes[current] = self.sizes[current - 1]

    def _shorten(self, current: int, earlier: int) -> None:
        """Take from a vector as many of an earlier one as make it shortest."""
        size = self.sizes[earlier]
        if 2 * abs(self.parts[current][earlier]) <= size:
            return
        times = (2 * self.parts[current][earlier] + size) // (2 * size)
        self.rows[current - 1] = self.rows[current - 1] - times * self.rows[earlier - 1]
        self.parts[current][earlier] -= times * size
        for first in range(1, earlier):
            self.parts[current][first] -= times * self.parts[earlier][first]

    def _is_out_of_order(self, current: int) -> bool:
        """Whether a vector should stand before the one that it follows (Lovász, 3/4)."""
        before = current - 1
        size = self.sizes[current] * self.sizes[before - 1]
        kept = 3 * self.sizes[before] ** 2 - 4 * self.parts[current][before] ** 2
        return 4 * size < kept

    def _exchange(self, current: int) -> None:
        """Exchange two neighbours' rows, and their shares in those before both."""
        before = current - 1
        self.rows[[current - 1, before - 1]] = self.rows[[before - 1, current - 1]]
        ours = self.parts[current]
        theirs = self.parts[before]
        ours[1:before], theirs[1:before] = theirs[1:before], ours[1:before]

    def _swap(self, current: int, reached: int) -> None:
        """Exchange a vector with the one before it; neither is dependent."""
        before = current - 1
        self._exchange(current)
        share = self.parts[current][before]
        size = (self.sizes[before - 1] * self.sizes[current] + share**2) // self.sizes[before]
        for later in range(current + 1, reached + 1):
            row = self.parts[later]
            old = row[current]
            row[current] = (self.sizes[current] * row[before] - share * old) // self.sizes[before]
            row[before] = (size * old + share * row[current]) // self.sizes[current]
        self.sizes[before] = size

    def _swap_dependent(self, current: int, reached: int) -> None:
        """Exchange a dependent vector with the one before it: the shorter takes its place."""
        before = current - 1
        self._exchange(current)
        share = self.parts[current][before]
        if share == 0:
            self.sizes[before] = self.sizes[before - 1]
            self.is_free[before] = False
            self.is_free[current] = True
            for later in range(current + 1, reached + 1):
                row = self.parts[later]
                row[current] = row[before]
                row[before] = 0
            return
        old_before = self.sizes[before]
        for later in range(current + 1, reached + 1):
            self.parts[later][before] = share * self.parts[later][before] // old_before
        old = self.sizes[current]
        self.sizes[before] = share**2 // old_before
        self.sizes[current] = self.sizes[before]
        for earlier in range(current + 1, reached):
            for later in range(earlier + 1, reached + 1):
                row = self.parts[later]
                row[earlier] = row[earlier] * self.sizes[before] // old
        for later in range(current + 1, reached + 1):
            self.sizes[later] = self.sizes[later] * self.sizes[before] // old
