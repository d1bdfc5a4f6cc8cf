"""What torchrun starts: DDP or FSDP2 by the first argument, accumulation, rank 0 logs and saves and all load it."""

import os
import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

how = sys.argv[1]
dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
local, rank, world_size = int(os.environ["LOCAL_RANK"]), dist.get_rank(), dist.get_world_size()
device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
if device.type == "cuda":
    torch.cuda.set_device(device)
torch.manual_seed(rank)
blocks = [nn.Sequential(nn.Linear(60, 240), nn.GELU(), nn.Linear(240, 60)) for _ in range(3)]
model = nn.Sequential(*blocks).to(device)
if how == "fsdp":
    for block in model:
        fully_shard(block)
    fully_shard(model)
else:
    model = nn.parallel.DistributedDataParallel(model, device_ids=[local] if device.type == "cuda" else None)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
rows = TensorDataset(torch.randn(64, 60))
sampler = DistributedSampler(rows, num_replicas=world_size, rank=rank)
step = 0
for epoch in range(50):
    sampler.set_epoch(epoch)
    for (x,) in DataLoader(rows, batch_size=8, sampler=sampler):
        step += 1
        waits = step % 2 and how == "ddp"
        with model.no_sync() if waits else nullcontext():
            loss = model(x.to(device)).square().mean()
            loss.backward()
        if step % 2:
            continue
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        if rank == 0:
            print("mean", mean.item() / world_size)
        if how == "ddp":
            if rank == 0:
                torch.save(model.module.state_dict(), "shared.pt")
            dist.barrier()
            model.module.load_state_dict(torch.load("shared.pt", map_location=device))
