"""`memprof schema`."""

from __future__ import annotations

from memprof.cli.options import DebugOption
from memprof.cli.output import print_json


def schema(debug: DebugOption = False) -> None:
    """Print the JSON Schema of the comparison document."""
    from memprof.results import Comparison

    document = Comparison.model_json_schema(by_alias=True)
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **document})
