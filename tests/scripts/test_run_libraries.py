"""What scripts take from libraries: checkpoints, threads that load them, data prepared on the host, Triton kernels."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

import memprof
from memprof.documents.comparison import Run
from memprof.workers.launcher import Launcher

TRAINS = """
for step in range(4):
    model(torch.randn(8, WIDTH, device="cuda")).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def predict(launcher: Launcher, folder: Path, source: str, **options: object) -> Run:
    script = folder / "train.py"
    script.write_text(source)
    return memprof.run(script, **{"device": "rtx-4090", "launcher": launcher, **options}).runs[0]


def write_sparse(file: Path, tensors: dict[str, list[int]]) -> int:
    """Write a safetensors file of bfloat16 whose body is a hole, and return the bytes of the tensors."""
    header, end = {}, 0
    for name, shape in tensors.items():
        size = 2
        for width in shape:
            size *= width
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as taker:
        taker.write(struct.pack("<Q", len(text)) + text)
        taker.truncate(8 + len(text) + end)
    return end


OPENED = 'file = safe_open(FILE, "pt", DEVICE); state = {name: READ for name in file.keys()}'


@pytest.mark.parametrize(
    "loads",
    [
        "state = load_file(FILE)",
        OPENED.replace("DEVICE", '"cpu"').replace("READ", "file.get_tensor(name)"),
        OPENED.replace("DEVICE", '"cpu"').replace("READ", "file.get_slice(name)[:]"),
        OPENED.replace("DEVICE", "0").replace("READ", "file.get_tensor(name)"),
    ],
)
def test_of_weights_only_the_shapes_are_read(launcher: Launcher, tmp_path: Path, loads: str) -> None:
    width, depth = 8192, 48  # 6 GiB
    size = write_sparse(tmp_path / "weights.safetensors", {f"{n}.weight": [width, width] for n in range(depth)})
    source = f"""
import resource
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

FILE = {str(tmp_path / "weights.safetensors")!r}
WIDTH = {width}
with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range({depth})))
{loads}
model.load_state_dict({{name: tensor.to(torch.float16) for name, tensor in state.items()}}, assign=True)
del state
model.to("cuda").requires_grad_(False)
head = nn.Linear(WIDTH, 1).to("cuda", torch.float16)
optimizer = torch.optim.SGD(head.parameters())
for step in range(4):
    head(model(torch.randn(8, WIDTH, device="cuda", dtype=torch.float16))).float().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20, "weights were read"
"""
    found = predict(launcher, tmp_path, source, device="a100-80gb", steps=3)
    assert found.status == "ok"
    assert size < found.peak.tensor_bytes < size + (64 << 20)


def test_a_checkpoint_that_the_script_wrote_is_read_again(launcher: Launcher, tmp_path: Path) -> None:
    source = """
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

WIDTH = 256
model = nn.Linear(WIDTH, WIDTH).to("cuda")
save_file(model.state_dict(), FILE)
model.load_state_dict(load_file(FILE))
with safe_open(FILE, "pt") as file:
    assert sorted(file.keys()) == ["bias", "weight"]
    assert file.get_slice("weight").get_shape() == [WIDTH, WIDTH]
    assert file.get_tensor("weight").shape == (WIDTH, WIDTH)
optimizer = torch.optim.SGD(model.parameters())
"""
    source = f"FILE = {str(tmp_path / 'own.safetensors')!r}\n{source}"
    assert predict(launcher, tmp_path, source + TRAINS).status == "ok"


def test_threads_place_weights_where_each_of_them_says(launcher: Launcher, tmp_path: Path) -> None:
    source = """
import torch
from concurrent.futures import ThreadPoolExecutor
from torch import nn

WIDTH = 256

def place(number):
    layer = nn.Linear(WIDTH, WIDTH)
    return layer.to("cuda") if number % 2 else layer.to("cuda").to("cpu").to("cuda")

with ThreadPoolExecutor(8) as pool:
    model = nn.Sequential(*pool.map(place, range(64)))
assert {str(parameter.device) for parameter in model.parameters()} == {"cuda:0"}
optimizer = torch.optim.SGD(model.parameters())
assert torch.ones(3).device.type == "cpu", "where things are made is each thread's own"
assert torch.ones(3, device="cuda").device.type == "cuda"
"""
    found = predict(launcher, tmp_path, source + TRAINS)
    weights = 64 * (256 * 256 + 256) * 4
    assert found.peak.tensor_bytes > 2 * weights


def test_data_are_prepared_on_the_host_as_they_are(launcher: Launcher, tmp_path: Path) -> None:
    source = """
import numpy
import torch
from torch import nn

WIDTH = 1000
rows = torch.from_numpy(numpy.ones((3000, WIDTH), dtype=numpy.float32))
scale = torch.diag(1 / rows.sum(1)).to_sparse()
rows = scale @ rows
assert abs(float(rows[0, 0]) - 1 / WIDTH) < 1e-6
edges = torch.sparse_coo_tensor(torch.tensor([[0, 1], [1, 2]]), torch.ones(2), (3000, 3000))
graph = torch.eye(3000) + edges
assert int((graph > 0).sum()) == 3002
rows, graph = rows.to("cuda"), graph.to("cuda")
model = nn.Linear(WIDTH, WIDTH).to("cuda")
optimizer = torch.optim.SGD(model.parameters())
for step in range(4):
    (graph @ model(rows)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
    found = predict(launcher, tmp_path, source)
    assert found.status == "ok"
    assert found.peak.tensor_bytes > (3000 * 3000 + 2 * 3000 * 1000) * 4


def test_data_parallel_over_the_one_gpu(launcher: Launcher, tmp_path: Path) -> None:
    source = """
import torch
from torch import nn
from torch.cuda import comm

WIDTH = 256
assert torch.device(0) == torch.device("cuda", 0)
assert torch.distributed.is_nccl_available() and torch.cuda.nccl.version() >= (2, 10)
model = nn.DataParallel(nn.Linear(WIDTH, WIDTH)).cuda()
(part,) = comm.scatter(torch.ones(8, WIDTH), [0])
assert part.device.type == "cuda"
assert comm.gather([part, part], destination=0).shape == (16, WIDTH)
assert comm.broadcast(torch.ones(2, device="cuda"), [0])[0].device.type == "cuda"
optimizer = torch.optim.SGD(model.parameters())
"""
    found = predict(launcher, tmp_path, source + TRAINS.replace(', device="cuda"', ""))
    assert found.status == "ok"
    with pytest.raises(memprof.MemprofError, match=r"train.py.* invalid device ordinal|only one GPU is simulated"):
        predict(launcher, tmp_path, source + "comm.scatter(part, [0, 1])" + TRAINS)


def test_a_triton_kernel_is_launched_and_takes_nothing(launcher: Launcher, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    source = """
import torch
import triton
import triton.language as tl
from torch import nn

WIDTH = 256

@triton.autotune([triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 128})], key=["count"])
@triton.jit
def double(source, target, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, 2 * tl.load(source + at, mask=at < count), mask=at < count)

assert triton.runtime.driver.active.get_current_target().arch == 89
before = torch.cuda.memory_allocated()
small = torch.zeros(4, device="cuda")
double[lambda meta: (triton.cdiv(4, meta["BLOCK"]),)](small, small, 4)
assert torch.cuda.max_memory_allocated() >= 256 << 20, "the autotuner clears the cache"
assert torch.cuda.memory_allocated() == before + 512
assert float(small[0]) > 0.4, "nobody knows what a kernel has written"
model = nn.Linear(WIDTH, WIDTH).to("cuda")
optimizer = torch.optim.SGD(model.parameters())
"""
    assert predict(launcher, tmp_path, source + TRAINS).status == "ok"
