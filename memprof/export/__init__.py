"""A trial's trace in the formats of other tools: PyTorch's memory viewer, and Perfetto or chrome://tracing."""
