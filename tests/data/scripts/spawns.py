"""The way of the tutorials: `torch.multiprocessing.spawn` starts a process for each rank."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn


def main(rank: int, world_size: int, port: int) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "localhost", str(port)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=world_size)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    model = nn.parallel.DistributedDataParallel(nn.Linear(100, 100).to(device))
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(6):
        model(torch.randn(8, 100, device=device)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(main, args=(2, 29600 + os.getppid() % 1000), nprocs=2)
