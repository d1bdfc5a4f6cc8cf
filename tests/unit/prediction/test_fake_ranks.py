"""A rank with nobody else in its group: what DTensor answers for lists, streams, FSDP's tables, and bad company."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._op_schema import OpSchema
from torch.distributed.tensor._sharding_prop import ShardingPropagator

from memprof.devices.target import Target
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.prediction.cuda.kernels.fsdp import padded_copies, sharding_scratch
from memprof.prediction.cuda.semantics import CudaSemantics
from memprof.prediction.fake.training import FakeRun, fake_runs
from memprof.prediction.ranks import dtensor_cache as fake_dtensors
from memprof.prediction.ranks.process_group import lone_group
from memprof.prediction.run import predict_runs
from memprof.trace.attribution import build_trace
from memprof.trace.events import RangeMark

A100 = Target(name="a100", kind="cuda", torch_version=(2, 15))
aten = torch.ops.aten
FOREACH = (aten._foreach_add_.List, aten._foreach_mul.Scalar, aten._foreach_addcdiv_.Scalar, aten._foreach_norm.Scalar)


def trained(strategy: str = "fsdp", semantics: CudaSemantics | None = None, **recipe: object) -> FakeRun:
    (run,) = fake_runs(
        WorkloadSpec(model="gpt2", knobs={"n_layers": 2, "d_model": 64, "n_heads": 4, "seq_len": 16, "vocab_size": 96}),
        [parse_optimizer("sgd")],
        Recipe(strategy=strategy, world_size=4, **recipe),
        2,
        semantics,
    )
    assert run.failure is None
    return run


@settings(max_examples=20)
@given(st.lists(st.sampled_from([(4, 3), (8,), (5, 2), (1,)]), min_size=1, max_size=9), st.sampled_from(FOREACH))
def test_one_answer_for_each_kind_is_the_answer_for_all(shapes: list[tuple[int, ...]], operator: object) -> None:
    with lone_group(1, 3):
        mesh = init_device_mesh("cpu", (3,))
        entries = [
            DTensor.from_local(torch.zeros(shape), mesh, [Replicate() if len(shape) == 1 else Shard(0)])
            for shape in shapes
        ]
        specs = [entry._spec for entry in entries]
        lists = {"_foreach_addcdiv_": 3, "_foreach_add_": 2}.get(operator._schema.name.partition("::")[2], 1)
        extra = (0.5,) if "mul" in operator._schema.name else ()
        schema = OpSchema(operator, (*(list(specs) for _ in range(lists)), *extra), {})
        schema.schema_info = ShardingPropagator().op_to_schema_info.get(operator) or schema.schema_info
        propagator = DTensor._op_dispatcher.sharding_propagator
        plain = ShardingPropagator.propagate_op_sharding_non_cached
        slow = plain(propagator, schema)
        fast = fake_dtensors.once_per_kind(plain)(propagator, schema)
    assert fast.needs_redistribute == slow.needs_redistribute
    assert (fast.output_spec is None) == (slow.output_spec is None)
    assert list(fast.output_spec or ()) == list(slow.output_spec or ())


def test_lists_are_asked_about_once_per_kind() -> None:
    asked: list[int] = []

    def propagate(propagator: object, schema: OpSchema) -> object:
        asked.append(len(schema.args_schema[0]))
        return fake_dtensors.OutputSharding(None)

    with lone_group(0, 2):
        mesh = init_device_mesh("cpu", (2,))
        spec = DTensor.from_local(torch.zeros(2), mesh, [Shard(0)])._spec
        schema = OpSchema(aten._foreach_add_.Scalar, ([spec] * 50, 1.0), {})
        fake_dtensors.once_per_kind(propagate)(None, schema)
        other = OpSchema(aten.add.Tensor, (spec, spec), {})
        fake_dtensors.once_per_kind(lambda propagator, schema: asked.append(0))(None, other)
    assert asked == [1, 0]


def test_fsdp_gathers_and_reduces_on_streams_of_its_own() -> None:
    """All-gather buffers on the copy-in stream, reduced gradients on the third; everything else on the default one."""
    trace = build_trace(trained(semantics=CudaSemantics(A100)).entries)
    streams = {block.stream: block for block in trace.blocks}
    assert len(streams) == 3
    aside = [block for block in trace.blocks if block.stream]
    assert {block.operator for block in aside} == {"aten::empty"}
    assert {block.category for block in aside} == {"communication", "gradients"}


def test_on_a_cpu_there_is_one_stream_and_no_host() -> None:
    assert {block.stream for block in build_trace(trained().entries).blocks} == {0}


def test_fsdps_ranges_are_marked() -> None:
    marks = [entry for entry in trained().entries if isinstance(entry, RangeMark)]
    assert {mark.name.partition(" ")[0] for mark in marks} >= {"FSDP::all_gather", "FSDP::post_backward_reduce"}
    assert all(mark.name.startswith("FSDP::") for mark in marks)
    assert sum(mark.enters for mark in marks) * 2 == len(marks)


def test_a_gpu_never_has_the_whole_model() -> None:
    run = trained(semantics=CudaSemantics(A100))
    build = build_trace(run.entries)
    live = most = 0
    for number, change in build.events:
        if build.blocks[number].phase != "build":
            break
        live += change
        most = max(most, live)
    whole = 4 * run.parameters.count
    assert run.parameters.bytes == whole // 4
    assert most < whole


def test_tables_of_fsdps_copies() -> None:
    """`pack_vecs` of a hand-counted case: 2 parts of 3 rows, one block of 2,048 bytes for each started 2,048 bytes."""
    scratch = sharding_scratch(A100)
    source = torch.empty(3, 1000, device="meta")
    outputs = [torch.empty(3, size, device="meta") for size in (400, 600)]
    taken = scratch[aten.split_with_sizes_copy.out]((source, [400, 600], 1), {"out": outputs})
    assert taken == [8 * (3 * 2 + 3 + (1 + 2))]
    gradients = [torch.empty(7, 100, device="meta"), torch.empty(4, device="meta")]
    buffer = torch.empty(2, 402, device="meta")
    assert scratch[aten._chunk_cat.out]((gradients, 0, 2), {"out": buffer}) == [8 * (6 * 2 + 2 + (1 + 1))]
    assert padded_copies((gradients, 0, 2)) == [4 * 8 * 100]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_notes_of_several_ranks(device: str) -> None:
    target = A100 if device == "cuda" else Target()
    recipe = Recipe(strategy="ddp", world_size=3)
    (run,) = predict_runs(WorkloadSpec(model="mlp"), [parse_optimizer("sgd")], recipe, 2, target)
    assert run.rank == 0
    assert [one.rank for one in run.ranks] == [0, 1, 2]
    assert {one.peak.allocated_bytes for one in run.ranks} == {run.peak.allocated_bytes}
    assert run.peak.process_bytes is None
    assert ("NCCL" in " ".join(run.notes)) == (device == "cuda")


def test_who_is_in_a_group_already_cannot_predict_one() -> None:
    with lone_group(0, 2), pytest.raises(UsageError, match="in a process group already"):
        trained()
    assert not dist.is_initialized()


def test_everything_is_put_back() -> None:
    before = ShardingPropagator.propagate_op_sharding_non_cached, torch.cpu.Stream, torch.get_num_threads()
    trained()
    trained("ddp")
    assert (
        ShardingPropagator.propagate_op_sharding_non_cached,
        torch.cpu.Stream,
        torch.get_num_threads(),
    ) == before
