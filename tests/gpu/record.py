"""Record what the GPU tests and the README's main command give on this machine's CUDA device.

    python tests/gpu/record.py OUT_FOLDER

Writes one comparison document per workload, `gpu-tests.txt` and `doctor.json`; nothing is written for what fails.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMPARISONS = {
    "gpt2": ["gpt2", "-b", "8", "--set", "seq_len=512"],
    "gpt2-amp-bf16": ["gpt2", "-b", "8", "--set", "seq_len=512", "--precision", "amp-bf16"],
    "resnet50": ["resnet50", "-b", "64"],
    "bert-large": ["bert-large", "-b", "8", "--set", "seq_len=128"],
    "transformer-big": ["transformer-big", "-b", "8"],
}


def main() -> int:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/gpu"], capture_output=True, text=True, check=False
    )
    (out / "gpu-tests.txt").write_text(tests.stdout)
    doctor = subprocess.run([sys.executable, "-m", "memprof", "doctor", "--json"], capture_output=True, text=True)
    (out / "doctor.json").write_text(doctor.stdout)
    codes = [tests.returncode]
    for name, arguments in COMPARISONS.items():
        command = [sys.executable, "-m", "memprof", "compare", *arguments, "--device", "cuda"]
        exports = ["--force", "--export-json", str(out / f"{name}.json"), "--export-markdown", str(out / f"{name}.md")]
        codes.append(subprocess.run([*command, *exports], check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
