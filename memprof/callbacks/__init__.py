"""Records somebody's own training run as a comparison document, from inside the Hugging Face Trainer or Lightning.

from memprof.callbacks.huggingface import MemoryRecorder    # Trainer(..., callbacks=[MemoryRecorder("run.json")])
from memprof.callbacks.lightning import MemoryRecorder      # Trainer(..., callbacks=[MemoryRecorder("run.json")])
"""
