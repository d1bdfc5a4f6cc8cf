from __future__ import annotations

from memprof.documents.comparison import Breakdown, Run
from memprof.documents.recipe import Recipe
from memprof.report.content.levers import levers
from tests.comparisons import COUNT, GIB, make_broken_run, make_comparison, make_run


def with_peak(spec: str, phase: str, state: int = 8 * COUNT, **held: int) -> Run:
    total = sum(held.values())
    found = Breakdown(total_bytes=total, phase=phase, by_category=held, by_module={"": total})
    return make_run(spec, state, breakdown=found)


def test_each_category_that_matters_comes_with_what_lowers_it() -> None:
    comparison = make_comparison(
        with_peak("sm3", "backward", 2**20, activations=6 * GIB, temporaries=3 * GIB, optimizer_state=2**20),
        with_peak("adam", "optimizer", 8 * COUNT, activations=GIB, temporaries=3 * GIB, optimizer_state=6 * GIB),
    )
    assert levers(comparison) == [
        "The backward pass sets the peak of sm3.",
        "The optimizer step sets the peak of adam.",
        "Activations, 10 % to 67 % of the peak: a smaller batch with --accumulate, --checkpoint-activations or "
        "--precision amp-bf16.",
        "Optimizer state, 0 % to 60 % of the peak: sm3 keeps 1.00 MiB where adam keeps 949.40 MiB.",
        "Temporaries, 30 % to 33 % of the peak: a smaller batch or an implementation that steps in place (fused, or "
        "for-loop instead of foreach) where the optimizer step sets the peak.",
    ]


def test_copies_on_every_rank_can_be_sharded() -> None:
    recipe = Recipe(strategy="ddp", world_size=2, precision="bf16")
    held = {"gradients": GIB, "parameters": GIB, "communication": GIB}
    comparison = make_comparison(with_peak("sgd", "optimizer", 0, **held), recipe=recipe)
    assert levers(comparison)[1:4] == [
        "Parameters, 33 % of the peak: --strategy fsdp, which shards them.",
        "Gradients, 33 % of the peak: --strategy fsdp, which shards them.",
        "Communication, 33 % of the peak: DDP's option gradient_as_bucket_view=True, which keeps gradients there.",
    ]


def test_what_the_recipe_has_already_is_not_advised() -> None:
    recipe = Recipe(checkpoint_activations=True, precision="bf16", step_in_backward=True)
    held = {"activations": GIB, "gradients": GIB, "parameters": GIB}
    comparison = make_comparison(with_peak("sgd", "forward", 0, **held), recipe=recipe)
    assert levers(comparison) == [
        "The forward pass sets the peak.",
        "Parameters, 33 % of the peak.",
        "Gradients, 33 % of the peak.",
        "Activations, 33 % of the peak: a smaller batch with --accumulate.",
        "Optimizer state, 0 % of a peak at most: a smaller one hardly lowers it.",
    ]


def test_without_a_breakdown_there_is_nothing_to_say() -> None:
    assert levers(make_comparison(make_broken_run("adam", "oom", "full"))) == []
