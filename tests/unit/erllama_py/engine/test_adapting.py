"""Which native adapters a context has and uses: loaded once, freed when nobody needs them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from erllama_py._backends.base import BackendError
from erllama_py._engine.adapterset import NO_ADAPTERS, Adapter, AdapterSet
from erllama_py._engine.adapting import Adapting


class Engine:
    """Keeps the books of a backend's adapters."""

    def __init__(self) -> None:
        self.loaded: dict[int, str] = {}
        self.used: list[tuple[int, float]] = []
        self.changes = 0

    def load_adapter(self, number: int, path: str, *, tried: bool) -> None:
        del tried
        if path == "bad":
            raise BackendError("load_failed", path)
        assert number not in self.loaded
        self.loaded[number] = path

    def free_adapter(self, number: int) -> None:
        assert number not in {used for used, _ in self.used}
        del self.loaded[number]

    def use_adapters(self, adapters: Sequence[tuple[int, float]]) -> None:
        assert {number for number, _ in adapters} <= self.loaded.keys()
        self.used = list(adapters)
        self.changes += 1


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def adapting(engine: Engine) -> Adapting:
    return Adapting(engine)  # type: ignore[arg-type]


def of(number: int, *adapters: tuple[int, float], path: bytes = b"good") -> AdapterSet:
    return AdapterSet(number, tuple(Adapter(one, path, scale) for one, scale in adapters))


def test_a_change_is_for_who_comes_and_the_context_follows_later(
    adapting: Adapting, engine: Engine
) -> None:
    adapting.change(of(1, (7, 1.0), (8, 0.5)), tried=False)
    assert (adapting.coming.number, adapting.present) == (1, NO_ADAPTERS)
    assert engine.used == []
    adapting.switch(adapting.coming)
    adapting.switch(adapting.coming)
    assert engine.used == [(7, 1.0), (8, 0.5)]
    assert engine.changes == 1


def test_what_somebody_still_computes_with_is_not_freed(adapting: Adapting, engine: Engine) -> None:
    first, second = of(1, (7, 1.0)), of(2, (7, 0.5), (8, 1.0))
    adapting.change(first, tried=False)
    adapting.switch(first)
    adapting.change(second, tried=False)
    assert not adapting.surplus
    adapting.change(NO_ADAPTERS, tried=False)
    assert adapting.surplus
    adapting.free_all_but([second])  # somebody waits with it
    assert engine.loaded.keys() == {7, 8}
    adapting.free_all_but([])  # the context still computes with the first
    assert engine.loaded.keys() == {7}
    adapting.switch(NO_ADAPTERS)
    adapting.free_all_but([])
    assert not engine.loaded
    assert not adapting.surplus


def test_a_set_that_cannot_be_loaded_whole_is_not_loaded_at_all(
    adapting: Adapting, engine: Engine
) -> None:
    good = of(1, (7, 1.0))
    adapting.change(good, tried=False)
    bad = AdapterSet(2, (*good.adapters, *of(0, (8, 1.0)).adapters, Adapter(9, b"bad", 1.0)))
    with pytest.raises(BackendError, match="load_failed"):
        adapting.change(bad, tried=False)
    assert engine.loaded.keys() == {7}
    assert adapting.coming == good


def test_more_than_two_may_be_added_up_in_any_order(adapting: Adapting) -> None:
    for adapters, same in (
        (((7, 1.0), (8, 1.0)), True),
        (((7, 1.0), (8, 1.0), (9, 0.0)), True),
        (((7, 1.0), (8, 1.0), (9, 1.0)), False),
    ):
        adapting.change(of(len(adapters), *adapters), tried=False)
        adapting.switch(adapting.coming)
        assert adapting.reproducible is same
