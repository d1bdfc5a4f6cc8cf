"""Every way in which ranks exchange values and objects, and what this one hears."""

import torch
import torch.distributed as dist
from torch import nn

dist.init_process_group()
rank, size = dist.get_rank(), dist.get_world_size()
device = f"cuda:{rank}" if torch.cuda.is_available() else "cpu"
objects = [None] * size
dist.all_gather_object(objects, {"of": rank})
print("gathered", len(objects), objects[rank])
box = [{"from": rank} if rank == 0 else None]
dist.broadcast_object_list(box, src=0)
print("broadcast", box[0])
heard = [None]
dist.scatter_object_list(heard, [f"for {number}" for number in range(size)] if rank == 0 else None, src=0)
print("scattered", heard[0])
total, top = torch.tensor(3.0, device=device), torch.tensor(3.0, device=device)
dist.all_reduce(total)
dist.all_reduce(top, op=dist.ReduceOp.MAX)
print("reduced", total.item(), top.item())
parts = [torch.zeros(2, device=device) for _ in range(size)]
dist.all_gather(parts, torch.full((2,), 2.0, device=device))
print("parts", [part.sum().item() for part in parts])
half = dist.new_group(range(size // 2))
if rank < size // 2:
    print("half", dist.get_rank(half), dist.get_world_size(half))
dist.barrier()
model = nn.Linear(8, 8).to(device)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
try:
    for _ in range(9):
        model(torch.randn(4, 8, device=device)).sum().backward()
        optimizer.step()
finally:
    dist.destroy_process_group()
    print("destroyed", dist.is_initialized())
