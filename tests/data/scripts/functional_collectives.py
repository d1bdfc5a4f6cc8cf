"""Every functional collective, on values that are known and on values that are not; they return wrapped tensors."""

import os

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import nn

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
group, size = dist.group.WORLD, int(os.environ["WORLD_SIZE"])
known = torch.arange(4 * size, device=device)
model = nn.Linear(8, 8).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


def exchange(tensor):
    yield collectives.all_reduce(tensor, "sum", group)
    yield collectives.all_gather_tensor(tensor, 0, group)
    yield collectives.reduce_scatter_tensor(tensor, "sum", 0, group)
    yield collectives.broadcast(tensor, 0, group)
    yield collectives.all_to_all_single(tensor, None, None, group)


for _ in range(3):
    loss = model(torch.randn(4 * size, 8, device=device)).square().mean()
    for tensor in (known, torch.randn(4 * size, device=device)):
        shapes = [tuple(one.shape) for one in exchange(tensor)]
        _ = [one.sum().item() for one in exchange(tensor)]
    print(shapes)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
