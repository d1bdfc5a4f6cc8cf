"""Ways to share a training that need a GPU, or several dimensions: by the first argument."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

how, kind = sys.argv[1], "cuda" if torch.cuda.is_available() else "cpu"
local, world_size = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
if kind == "cuda":
    torch.cuda.set_device(device)
else:
    dist.init_process_group()
blocks = [nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(3)]
model = nn.Sequential(*blocks).to(device)
if how == "tp":
    mesh = init_device_mesh(kind, (world_size // 2, 2), mesh_dim_names=("dp", "tp"))
    for block in model:
        parallelize_module(block, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        fully_shard(block, mesh=mesh["dp"])
elif how == "fsdp1":
    dist.init_process_group("nccl", device_id=device)
    for number, block in enumerate(model):
        model[number] = FullyShardedDataParallel(block, device_id=local)
    model = FullyShardedDataParallel(model, device_id=local)
else:
    if kind == "cuda":
        dist.init_process_group("nccl", init_method="env://", rank=int(os.environ["RANK"]), world_size=world_size)
    if how == "syncbn":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(model, nn.BatchNorm1d(64))).to(device)
    model = nn.parallel.DistributedDataParallel(model)
if how == "zero":
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.Adam, lr=1e-3)
else:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
while True:
    loss = model(torch.randn(16, 64, device=device)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
