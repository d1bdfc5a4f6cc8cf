"""The command `memprof optimizers`."""

from __future__ import annotations

from memprof.cli.options import DebugOption, JsonOption
from memprof.cli.output import print_json, print_table, tell


def optimizers(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the optimizers that have a short name, with the state that each keeps."""
    from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS
    from memprof.optimizers.registry import KNOWN_OPTIMIZERS

    known = [optimizer for optimizer in KNOWN_OPTIMIZERS.values() if optimizer.refusal is None]
    if as_json:
        facts = ("name", "class_path", "description", "state", "source")
        print_json([{fact: getattr(optimizer, fact) for fact in facts} for optimizer in known])
        return
    rows = [(one.name, one.state, one.source, one.description) for one in known]
    print_table(["optimizer", "state (float32)", "from", "description"], rows)
    tell(f"compare takes these by default: {'  '.join(DEFAULT_OPTIMIZERS)}")
    tell("Your own: package.module:Class or path/to/file.py:Class. Options follow: sm3,momentum=0.9.")
