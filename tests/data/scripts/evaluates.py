"""Evaluation at a large batch, the weights copied, saved and loaded again, and an exit function."""

import atexit
import copy
import os
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

folder = sys.argv[1]
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10)).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
rows = TensorDataset(torch.randn(256, 64), torch.randint(0, 10, (256,)))
atexit.register(print, "the end")
try:
    for _ in range(50):
        for x, y in DataLoader(rows, batch_size=256, num_workers=2, pin_memory=device.type == "cuda"):
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.inference_mode():
            held = nn.functional.cross_entropy(
                model(torch.randn(4096, 64).to(device)), torch.zeros(4096).long().to(device)
            )
        state = {"model": copy.deepcopy(model.state_dict()), "optimizer": optimizer.state_dict(), "held": held.item()}
        path = os.path.join(folder, "best.pt")
        torch.save(state, path)
        model.load_state_dict(torch.load(path, map_location=device)["model"])
        del state
        try:
            print(held.item())
        except Exception:
            raise SystemExit("no exception is to come here") from None
finally:
    print("finally")
