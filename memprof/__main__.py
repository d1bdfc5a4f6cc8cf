"""`python -m memprof`."""

from __future__ import annotations

import sys

from memprof.cli import main

sys.exit(main())
