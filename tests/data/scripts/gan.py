"""Two networks with an optimizer each, stepped in turn."""

import torch
from torch import nn

device = "cuda" if torch.cuda.is_available() else "cpu"
maker = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 16)).to(device)
judge = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 1)).to(device)
adam_judge = torch.optim.Adam(judge.parameters(), 1e-3)
adam_maker = torch.optim.Adam(maker.parameters(), 1e-3)
loss_of = nn.BCEWithLogitsLoss()
while True:
    real, ones = torch.randn(32, 16, device=device), torch.ones(32, 1, device=device)
    adam_judge.zero_grad()
    made = maker(torch.randn(32, 8, device=device))
    loss_of(judge(real), ones).backward()
    loss_of(judge(made.detach()), 0 * ones).backward()
    adam_judge.step()
    adam_maker.zero_grad()
    loss_of(judge(made), ones).backward()
    adam_maker.step()
