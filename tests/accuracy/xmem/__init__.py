"""117 training runs on real GPUs, measured by the authors of xMem, and what is predicted for each.

`python -m tests.accuracy.xmem` predicts every row and writes reports/accuracy.md; `requirements.txt` beside this file
says what it needs, and how to install it.
"""
