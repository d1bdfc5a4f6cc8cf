"""The built-in workload `mlp`, written out as a script."""

import torch

from memprof.workloads.builtin.mlp import mlp

workload = mlp()
torch.manual_seed(0)
model = workload.model().train()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(10):
    batch = workload.batch(8)
    loss = workload.loss(model, batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
