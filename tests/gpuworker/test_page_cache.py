"""The page table: what it hands out, what it refuses, and that no page is ever lost."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gpuworker.page_cache import PageCache, PageRefusal, PageState
from scheduler.actions import Code


def resident(cache: PageCache, model: str, num_pages: int) -> tuple[int, ...]:
    pages = cache.reserve(model, num_pages)
    cache.commit(model)
    return pages


def test_reserved_pages_are_distinct_and_leave_the_free_list() -> None:
    cache = PageCache(5)
    first = cache.reserve("a", 2)
    second = cache.reserve("b", 3)
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    assert cache.pages_free == 0


def test_reserving_more_than_is_free_takes_nothing_and_names_the_numbers() -> None:
    cache = PageCache(4)
    resident(cache, "a", 3)
    cache.pin("a")
    with pytest.raises(PageRefusal, match=r"b: needs 2 pages, 1 of 4 free, 3 pinned") as refusal:
        cache.reserve("b", 2)
    assert refusal.value.code is Code.PAGES_EXHAUSTED
    assert cache.pages_free == 1
    assert cache.state_of("b") is None


@pytest.mark.parametrize("is_committed", [False, True])
def test_a_model_that_is_loading_or_loaded_is_not_loaded_again(is_committed: bool) -> None:
    cache = PageCache(4)
    cache.reserve("a", 1)
    if is_committed:
        cache.commit("a")
    with pytest.raises(PageRefusal) as refusal:
        cache.reserve("a", 1)
    assert refusal.value.code is Code.ALREADY_RESIDENT


def test_weights_cannot_be_used_before_they_are_committed() -> None:
    cache = PageCache(4)
    cache.reserve("a", 1)
    with pytest.raises(PageRefusal, match="a is loading") as refusal:
        cache.pin("a")
    assert refusal.value.code is Code.WEIGHTS_MISSING
    assert cache.resident() == ()


def test_pinned_weights_are_not_retired_until_the_last_pin_is_gone() -> None:
    cache = PageCache(4)
    resident(cache, "a", 1)
    cache.pin("a")
    cache.pin("a")
    cache.unpin("a")
    with pytest.raises(PageRefusal) as refusal:
        cache.retire("a")
    assert refusal.value.code is Code.WEIGHTS_IN_USE
    cache.unpin("a")
    cache.retire("a")
    assert cache.state_of("a") is PageState.EVICTING


def test_a_retiring_model_cannot_be_pinned_and_its_pages_are_not_free_yet() -> None:
    cache = PageCache(2)
    resident(cache, "a", 2)
    cache.retire("a")
    with pytest.raises(PageRefusal) as refusal:
        cache.pin("a")
    assert refusal.value.code is Code.WEIGHTS_MISSING
    assert cache.pages_free == 0
    cache.release("a")
    assert cache.pages_free == 2
    assert cache.state_of("a") is None


def test_evicting_what_is_not_resident_is_refused() -> None:
    cache = PageCache(2)
    with pytest.raises(PageRefusal, match="a is not resident") as refusal:
        cache.retire("a")
    assert refusal.value.code is Code.WEIGHTS_MISSING


def test_a_failed_load_gives_its_pages_back() -> None:
    cache = PageCache(2)
    cache.reserve("a", 2)
    cache.release("a")
    assert resident(cache, "b", 2)


def test_resident_models_are_named_in_the_order_of_their_loads() -> None:
    cache = PageCache(3)
    for model in ("c", "a", "b"):
        resident(cache, model, 1)
    assert cache.resident() == ("c", "a", "b")


def test_calls_out_of_order_are_bugs() -> None:
    cache = PageCache(2)
    with pytest.raises(RuntimeError, match="a is absent, not loading"):
        cache.commit("a")
    resident(cache, "a", 1)
    with pytest.raises(RuntimeError, match="a is not pinned"):
        cache.unpin("a")
    with pytest.raises(RuntimeError, match="neither loading nor evicting"):
        cache.release("a")
    with pytest.raises(ValueError, match="at least one page, not 0"):
        PageCache(0)


TOTAL_PAGES = 7
MODELS = st.sampled_from(["a", "b", "c", "d"])


class PageCacheMachine(RuleBasedStateMachine):
    """Any calls in any order against a model of three sets and a pin count."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PageCache(TOTAL_PAGES)
        self.held: dict[str, tuple[PageState, int]] = {}
        self.pins: dict[str, int] = {}

    def state(self, model: str) -> PageState | None:
        return self.held[model][0] if model in self.held else None

    @rule(model=MODELS, num_pages=st.integers(1, 4))
    def reserve(self, model: str, num_pages: int) -> None:
        pages_free = TOTAL_PAGES - sum(count for _, count in self.held.values())
        if model in self.held or num_pages > pages_free:
            with pytest.raises(PageRefusal) as refusal:
                self.cache.reserve(model, num_pages)
            expected = Code.ALREADY_RESIDENT if model in self.held else Code.PAGES_EXHAUSTED
            assert refusal.value.code is expected
        else:
            assert len(self.cache.reserve(model, num_pages)) == num_pages
            self.held[model] = (PageState.LOADING, num_pages)

    @rule(model=MODELS)
    def commit(self, model: str) -> None:
        if self.state(model) is PageState.LOADING:
            self.cache.commit(model)
            self.held[model] = (PageState.RESIDENT, self.held[model][1])
        else:
            with pytest.raises(RuntimeError):
                self.cache.commit(model)

    @rule(model=MODELS)
    def pin(self, model: str) -> None:
        if self.state(model) is PageState.RESIDENT:
            self.cache.pin(model)
            self.pins[model] = self.pins.get(model, 0) + 1
        else:
            with pytest.raises(PageRefusal):
                self.cache.pin(model)

    @rule(model=MODELS)
    def unpin(self, model: str) -> None:
        if self.pins.get(model, 0):
            self.cache.unpin(model)
            self.pins[model] -= 1
        else:
            with pytest.raises(RuntimeError):
                self.cache.unpin(model)

    @rule(model=MODELS)
    def retire(self, model: str) -> None:
        if self.state(model) is PageState.RESIDENT and not self.pins.get(model, 0):
            self.cache.retire(model)
            self.held[model] = (PageState.EVICTING, self.held[model][1])
        else:
            with pytest.raises(PageRefusal):
                self.cache.retire(model)

    @rule(model=MODELS)
    def release(self, model: str) -> None:
        if self.state(model) in (PageState.LOADING, PageState.EVICTING):
            self.cache.release(model)
            del self.held[model]
        else:
            with pytest.raises(RuntimeError):
                self.cache.release(model)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.cache.validate()
        held = sum(count for _, count in self.held.values())
        assert self.cache.pages_free == TOTAL_PAGES - held
        usable = {m for m, (state, _) in self.held.items() if state is PageState.RESIDENT}
        assert set(self.cache.resident()) == usable


PageCacheMachine.TestCase.settings = settings(max_examples=60, deadline=None)
TestPageCache = PageCacheMachine.TestCase
