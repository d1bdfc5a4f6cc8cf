from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memprof.user_code import describe


def test_the_line_in_an_installed_package_is_named_from_the_package_on() -> None:
    with pytest.raises(ValueError, match="learning rate") as caught:
        torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=-1.0)
    caught.value.__traceback__ = caught.value.__traceback__.tb_next  # type: ignore[union-attr]  # without this file
    told = describe(caught.value)
    assert told.startswith("ValueError: Invalid learning rate: -1.0 (torch/optim/adam.py:"), told


def test_the_line_in_the_present_folder_is_named_from_there_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    with pytest.raises(KeyError) as caught:
        {}["layers"]
    assert describe(caught.value).startswith("KeyError: 'layers' (test_faults.py:")


class _SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "words"),
    [(ValueError("half a pair: \udcff"), r"ValueError: half a pair: \udcff"), (_SpeechlessError(), "_SpeechlessError")],
)
def test_any_message_becomes_text(error: Exception, words: str) -> None:
    described = describe(error)
    assert described == words
    described.encode()
