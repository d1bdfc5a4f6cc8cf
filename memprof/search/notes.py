"""Notes of an answer that more than one search gives."""

from __future__ import annotations

UNEVEN = "Batches of one size differ in length, and a longer one needs more: give the workload a `longest_batch`."
UNTRAINED = "The fit ended before this was trained."
