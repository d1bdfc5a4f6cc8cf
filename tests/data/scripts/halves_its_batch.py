"""accelerate's loop that tries a smaller batch when the memory runs out."""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

accelerator = Accelerator()
rows = TensorDataset(torch.randn(1 << 15, 64))


@find_executable_batch_size(starting_batch_size=int(sys.argv[1]))
def train(batch_size):
    accelerator.free_memory()
    model = nn.Sequential(nn.Linear(64, 8192), nn.GELU(), nn.Linear(8192, 64))
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows, batch_size=batch_size))
    for (x,) in loader:
        loss = model(x).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        print("taken", batch_size, flush=True)


train()
