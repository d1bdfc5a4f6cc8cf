"""Callbacks for the Hugging Face Trainer and for Lightning that record a running training as a comparison document.

from memprof.callbacks.huggingface import MemoryRecorder    # Trainer(..., callbacks=[MemoryRecorder("run.json")])
from memprof.callbacks.lightning import MemoryRecorder      # Trainer(..., callbacks=[MemoryRecorder("run.json")])
"""
