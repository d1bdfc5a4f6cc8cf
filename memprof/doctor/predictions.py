"""Checks how far predictions can be trusted here: tested versions, accuracy on real runs, and known uncertainties."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from memprof.doctor import Check
from memprof.torch_private import CHECKED_ON


def check_private_apis() -> Check:
    """Check that this version of PyTorch lies within the versions on which its private APIs were checked."""
    import torch

    here = _release(torch.__version__)
    tried = {name: [_release(version) for version in versions] for name, versions in CHECKED_ON.items()}
    outside = [name for name, releases in tried.items() if not min(releases) <= here <= max(releases)]
    checked = ", ".join(sorted({version for versions in CHECKED_ON.values() for version in versions}, key=_release))
    if outside:
        names = f"{outside[0]} and {len(outside) - 1} more" if len(outside) > 1 else outside[0]
        return Check("private APIs", "warn", f"not checked on torch {torch.__version__} (but on {checked}): {names}")
    return Check("private APIs", "pass", f"{len(tried)} private names of PyTorch are used, checked on {checked}")


def check_accuracy() -> Check:
    """Report how far predictions for GPUs were off on real runs."""
    from memprof.prediction.accuracy import accuracy, in_words

    found = accuracy()
    if found is None:
        return Check("predictions", "warn", "no figures of their accuracy on real GPUs come with this version")
    return Check("predictions", "pass", in_words(found))


def check_convolutions() -> Check:
    """Report what is uncertain about convolutions, because cuDNN chooses their workspaces at run time."""
    import torch

    version = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    here = f"cuDNN {version} is here" if version else "no cuDNN is here"
    counted = "a prediction counts the part that is certain, and its upper bound includes the rest"
    return Check("convolutions", "pass", f"{here}; it chooses the workspace of a convolution itself: {counted}")


def check_devices() -> Check:
    """Report how many GPUs can be predicted for, and check the user's own file of devices."""
    from memprof.devices.catalog import OWN_DEVICES, catalog
    from memprof.errors import UsageError

    try:
        count = len(catalog())
    except UsageError as error:
        return Check("catalog", "fail", str(error))
    own = os.environ.get(OWN_DEVICES)
    return Check("catalog", "pass", f"{count} GPUs can be predicted for{f', with those of {own}' if own else ''}")


def prediction_checks() -> Iterator[Check]:
    """Yield the findings of the checks of this module; they need torch."""
    yield check_private_apis()
    yield check_accuracy()
    yield check_convolutions()
    yield check_devices()


def _release(text: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
