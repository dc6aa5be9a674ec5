"""`hypsolve.router.litellm` where LiteLLM is missing."""

import importlib
import sys

import pytest

from hypsolve.router.pipeline import RoutedPipeline


def test_the_strategy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "litellm", None)
    monkeypatch.delitem(sys.modules, "hypsolve.router.litellm", raising=False)
    module = importlib.import_module("hypsolve.router.litellm")
    pipeline = RoutedPipeline(name="a", prompt_token_s=1, output_token_s=1)
    with pytest.raises(ValueError, match=r"LiteLLM is not installed; .*\[litellm\]"):
        module.HypSchedStrategy({"a": pipeline})
    monkeypatch.delitem(sys.modules, "hypsolve.router.litellm")
