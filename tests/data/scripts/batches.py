"""A training whose batch size and data set are arguments; it takes only even batches."""

import argparse
import json

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--batch_size", type=int, default=8)
parser.add_argument("--width", type=int, default=256)
parser.add_argument("--options", type=json.loads, default={"lr": 1e-3})
arguments = parser.parse_args()
if arguments.batch_size % 2:
    raise SystemExit(f"a batch of {arguments.batch_size} cannot be halved")
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
width = arguments.width
model = nn.Sequential(nn.Linear(width, 8 * width), nn.GELU(), nn.Linear(8 * width, width)).to(device)
optimizer = torch.optim.AdamW(model.parameters(), **arguments.options)
rows = TensorDataset(torch.randn(16 * arguments.batch_size, width))
for (batch,) in DataLoader(rows, batch_size=arguments.batch_size):
    for half in batch.chunk(2):
        model(half.to(device)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
