"""Codebooks: nearest entries, and books that are given."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.numerics import quantize_with_codebook
from fewbits.numerics.codebook import Nearest
from tests.numerics.schemes import arrays


@settings(max_examples=100, deadline=None)
@given(
    book=st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=16, unique=True),
    x=arrays(moderate=True),
)
def test_the_table_finds_what_a_search_finds(book, x):
    book = torch.tensor(sorted({b + 0.0 for b in book}))
    middles = (book[1:] + book[:-1]) / 2
    values = torch.cat(
        [x.view(-1), book, middles, torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 1e-45, -1e-45])]
    )
    many = values.repeat((1 << 16) // values.numel() + 1)
    assert torch.equal(Nearest(book).codes(many).long(), torch.searchsorted(middles, many))


def test_given_codebooks():
    x = torch.tensor([0.1, 0.9, 2.2, -5.0])
    q = quantize_with_codebook(x, "codebook2", torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    assert q.codes.tolist() == [1, 2, 3, 0]
