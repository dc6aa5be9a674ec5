"""Families of kernels are compiled once per process, and the user sees which ones."""

import logging
import threading
import types

import pytest

from hypsolve.kernels import warm_up


@pytest.fixture
def compiled(monkeypatch):
    """Families of which `warm_up` was called; none is really compiled."""
    seen = []

    def import_module(name):
        family = name.removeprefix("hypsolve.kernels.")
        return types.SimpleNamespace(warm_up=lambda: seen.append(family))

    monkeypatch.setattr(warm_up.importlib, "import_module", import_module)
    monkeypatch.setattr(warm_up, "_warm", set())
    return seen


def test_each_family_is_compiled_once(compiled):
    warm_up.warm("heft", "dispatch", "heft")
    warm_up.warm("dispatch")
    assert compiled == ["heft", "dispatch"]
    warm_up.warm()
    assert sorted(compiled) == sorted(warm_up.FAMILIES)


def test_progress_counts_the_families_that_are_not_warm(compiled):
    warm_up.warm("heft")
    reported = []
    warm_up.warm("heft", "dispatch", "hypsplit", progress=lambda *args: reported.append(args))
    assert reported == [(0, 2, "dispatch"), (1, 2, "hypsplit"), (2, 2, "hypsplit")]
    warm_up.warm("heft", progress=lambda *args: reported.append(args))
    assert len(reported) == 3


def test_a_family_that_fails_to_compile_is_tried_again(compiled, monkeypatch):
    def fail(name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(warm_up.importlib, "import_module", fail)
        with pytest.raises(KeyboardInterrupt):
            warm_up.warm("heft")
    warm_up.warm("heft")
    assert compiled == ["heft"]


def test_two_threads_compile_a_family_once(compiled):
    inside, go = threading.Event(), threading.Event()

    def hold(done, total, family):
        inside.set()
        assert go.wait(60)

    first = threading.Thread(target=warm_up.warm, args=("heft",), kwargs={"progress": hold})
    second = threading.Thread(target=warm_up.warm, args=("heft", "dispatch"))
    first.start()
    assert inside.wait(60)
    second.start()
    go.set()
    first.join(60)
    second.join(60)
    assert compiled == ["heft", "dispatch"]


def test_the_notice_names_the_family_the_count_and_the_folder(caplog):
    from hypsolve.kernels.cache import folders

    with caplog.at_level(logging.WARNING, "hypsolve"):
        warm_up._announce(["heft", "throughput"], "2 of 3")
        warm_up._announce(["throughput"], "3 of 3")
    message, last = caplog.messages
    own_s, last_s = warm_up.SECONDS["heft"], warm_up.SECONDS["throughput"]
    assert f"heft kernels (family 2 of 3): about {own_s} s on a free core" in message
    assert f", {own_s + last_s} s with those after it; once" in message
    assert f"(family 3 of 3): about {last_s} s on a free core; once" in last
    assert str(folders().write) in message


@pytest.mark.parametrize("n_compiled", [0, 1])
def test_a_notice_needs_a_kernel_that_is_compiled(monkeypatch, n_compiled):
    """Loading from disk may take long on a busy machine: it is no reason for a notice."""
    from hypsolve.kernels.cache import KernelCache

    announced, waits = [], []
    monkeypatch.setattr(warm_up, "_announce", lambda *args: announced.append(args))
    monkeypatch.setattr(KernelCache, "n_missed", KernelCache.n_missed)

    class IsDone:
        def wait(self, seconds):
            KernelCache.n_missed += n_compiled
            waits.append(seconds)
            return len(waits) == 3

    warm_up._watch(IsDone(), KernelCache.n_missed, ["heft"], "2 of 9")
    assert announced == [(["heft"], "2 of 9")] * n_compiled
    assert len(waits) == (1 if n_compiled else 3)


def test_a_module_that_another_thread_imports_has_missed_nothing(monkeypatch):
    """Numba is slow to import: the watcher ended in an AttributeError beside it."""
    half_imported = types.ModuleType("hypsolve.kernels.cache")
    monkeypatch.setitem(warm_up.sys.modules, "hypsolve.kernels.cache", half_imported)
    assert warm_up._n_missed() == 0


def test_the_parts_of_a_family_have_seconds_of_their_own(caplog):
    """They sum up to those of the family, and a notice of one names it."""
    parts = [part for part in warm_up.PARTS if part.startswith("throughput.")]
    assert sum(warm_up.PARTS[part] for part in parts) == warm_up.SECONDS["throughput"]
    for part in parts:
        with caplog.at_level("WARNING", logger="hypsolve"):
            warm_up._announce([part], "1 of 1")
        assert f"the {part} kernels" in caplog.text
        assert f"about {warm_up.PARTS[part]} s" in caplog.text
