"""Moments and scores of the key vectors of queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exporter.methods.key_space.hypercubes import KeyMoments, KeySpace
from exporter.methods.key_space.spool import KeySpool
from exporter.models.prober import KeyProber, check_finite
from exporter.prompts.formats import Query


def fit_keys(prober: KeyProber, queries: Sequence[Query], spool: KeySpool, what: str) -> KeyMoments:
    """Moments of the last tokens' key vectors, streamed; the vectors are kept in the spool."""
    moments = KeyMoments()
    for rows, keys in spool.keep(prober.last_token_keys(queries, what)):
        moments.update([queries[row] for row in rows], keys)
    return moments


def score_keys(prober: KeyProber, queries: Sequence[Query], keys: KeySpace, what: str) -> Tensor:
    """Score s(k) of each query's last token at each layer: (n, layers) float64."""
    scores = torch.zeros(len(queries), prober.layers, dtype=torch.float64)
    for rows, vectors in prober.last_token_keys(queries, what):
        scores[rows] = keys.scores(vectors)
    return check_finite(scores, what)


def score_unseen(
    prober: KeyProber,
    queries: Sequence[Query],
    moments: KeyMoments,
    keys: KeySpace,
    what: str,
    spool: KeySpool | None = None,
) -> Tensor:
    """The same with hypercubes fitted without the query's own variant (see `KeyMoments.without`).

    `spool`: the queries' keys, if they were kept.
    """
    scores = torch.zeros(len(queries), prober.layers, dtype=torch.float64)
    for rows, vectors in spool.batches() if spool else prober.last_token_keys(queries, what):
        for row, vector in zip(rows, vectors, strict=True):
            scores[row] = moments.without(queries[row], keys).scores(vector)
    return check_finite(scores, what)
