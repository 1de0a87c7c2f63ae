"""Texts -> groups of near-duplicates: what mass messages vary, and a split must keep together.

Two texts are near-duplicates if the sets of their character 5-grams have a Jaccard similarity above 0.5, which is
resemblance by shingles (Broder 1997); a group is a connected component of that relation. The search is exact: two sets
that share at least `a` grams also share `l` of the rarest |x| - a + l of each (Bayardo et al. 2007, Xiao et al. 2008),
so that only pairs which do are compared.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

GRAM = 5
# above it: of 5,140 UCI messages 408 stand in groups, the largest of 12, all with one label each; at 0.3 unlike ones
# begin to chain (the largest 17)
SIMILARITY = 0.5
SHARED = 10  # `l` above: 10,662 sentences then take a second, with 1 or 40 three to ten


def near_duplicates(texts: list[str], similarity: float = SIMILARITY) -> NDArray[np.int64]:
    """The number of each text's group, in the order of `texts`, which are taken as they are."""
    if not texts:
        return np.zeros(0, np.int64)
    grams = _grams(texts)
    i, j = _candidates(grams, similarity)
    size = np.diff(grams.indptr)
    near = np.zeros(len(i), bool)
    for start in range(0, len(i), 50_000):  # some pairs at a time: each brings its grams along
        a, b = i[start : start + 50_000], j[start : start + 50_000]
        shared = np.asarray(grams[a].multiply(grams[b]).sum(axis=1)).ravel()
        near[start : start + 50_000] = shared > similarity * (size[a] + size[b] - shared)
    edges = sparse.coo_array((near[near], (i[near], j[near])), shape=(len(texts), len(texts)))
    return connected_components(edges, directed=False)[1].astype(np.int64)


def _grams(texts: list[str]) -> sparse.csr_matrix:
    """Texts x grams of ones, the columns from the rarest gram to the commonest. A shorter text is one gram."""
    padded = [text.ljust(GRAM, "\0") for text in texts]
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32)
    alphabet, letters = np.unique(points, return_inverse=True)
    # one number a gram: exact up to 7,131 different characters, beyond that a hash of 64 bits
    powers = np.array([pow(len(alphabet) | 1, k, 2**64) for k in range(GRAM)], np.uint64)
    n = len(points) - GRAM + 1
    keys = np.zeros(n, np.uint64)
    for k, power in enumerate(powers):
        keys += letters[k : k + n].astype(np.uint64) * power
    lengths = np.array([len(text) for text in padded])
    ends = np.cumsum(lengths)
    row = np.repeat(np.arange(len(texts)), lengths)[:n]
    whole = np.arange(n) + GRAM <= ends[row]  # the others reach into the next text
    _, column, count = np.unique(keys[whole], return_inverse=True, return_counts=True)
    by_rarity = np.empty(len(count), np.int64)
    by_rarity[np.argsort(count, kind="stable")] = np.arange(len(count))
    grams = sparse.csr_matrix((np.ones(len(column), np.int32), (row[whole], by_rarity[column])))  # sorted, summed
    grams.data[:] = 1
    return grams


def _candidates(grams: sparse.csr_matrix, similarity: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of rows, the first before the second, among which are all that are alike."""
    size = np.diff(grams.indptr)
    least = np.ceil(similarity * size).astype(int)  # grams that a text shares with any that is like it
    required = np.minimum(SHARED, least)
    place = np.arange(grams.nnz) - np.repeat(grams.indptr[:-1], size)
    rare = grams.copy()
    rare.data[place >= np.repeat(size - least + required, size)] = 0
    rare.eliminate_zeros()
    pairs = sparse.triu(rare @ rare.T, 1).tocoo()
    i, j = pairs.row, pairs.col
    possible = pairs.data >= np.minimum(required[i], required[j])
    possible &= np.minimum(size[i], size[j]) >= similarity * np.maximum(size[i], size[j])
    return i[possible], j[possible]
