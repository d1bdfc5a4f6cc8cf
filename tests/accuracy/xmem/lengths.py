"""How long the batches of the transformer runs were: lines of WikiText-2, cut at 128 tokens, padded to the longest.

The runs drew lines of wikitext-2-raw-v1 (train) at random, empty ones too, so a small batch is often shorter than 128
tokens, and each step has another length; which lengths it had is not recorded. What is drawn from here is the
distribution of the lines of the validation and test splits (8,118 lines, counted with GPT-2's byte-pair vocabulary):
34 % are empty, 24 % have 128 tokens or more. Tokenizers that add a token of their own make every line one longer.
"""

from __future__ import annotations

import csv
import random
from bisect import bisect_left
from functools import cache
from itertools import accumulate

from tests.accuracy.xmem.truth import DATA

LONGEST = 128
STEPS = 4  # the runs stop once the index of the step has reached three

Lengths = tuple[tuple[int, ...], ...]


@cache
def _cumulative() -> tuple[list[int], list[int]]:
    with (DATA / "wikitext2_lengths.csv").open(encoding="utf-8", newline="") as file:
        counts = [(int(record["tokens"]), int(record["lines"])) for record in csv.DictReader(file)]
    return [tokens for tokens, _ in counts], list(accumulate(lines for _, lines in counts))


def draw_lengths(batch_size: int, added: int, seed: int) -> Lengths:
    """Return the tokens of every line, for each step of one shuffle.

    Args:
        batch_size: lines per step.
        added: tokens that the tokenizer adds to each line.
        seed: of the shuffle.
    """
    generator = random.Random(seed)
    tokens, cumulative = _cumulative()

    def line() -> int:
        drawn = tokens[bisect_left(cumulative, generator.randint(1, cumulative[-1]))]
        return min(LONGEST, drawn + added)

    return tuple(tuple(line() for _ in range(batch_size)) for _ in range(STEPS))


def full_lengths(batch_size: int) -> Lengths:
    """Return a shuffle with every line cut: each step as long as can be."""
    return tuple((LONGEST,) * batch_size for _ in range(STEPS))
