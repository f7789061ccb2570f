"""Any bytes, and near-valid events: each record has one fate, and the good ones are booked."""

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.corpus import CORPUS
from tests.fuzz.mutator import SEEDS, mutate
from tests.fuzz.one_fate import MAX_VALUES, ORIGIN_MARK, SEPARATOR, Value, check, values_of

origins = st.none() | st.binary(max_size=60) | st.sampled_from([b"t/0/3", b"t/1/0", b"t/0/" * 9])
short_seeds = [seed for seed in SEEDS if len(seed) < 2000]  # large ones have tests of their own


def values(bodies: st.SearchStrategy[bytes | None]) -> st.SearchStrategy[list[Value]]:
    """Give the hostile records of a batch."""
    return st.lists(st.builds(Value, bodies, origins), max_size=MAX_VALUES)


@given(values(st.none() | st.binary(max_size=300)))
def test_any_bytes_have_one_fate(some: list[Value]) -> None:
    """Whatever the values are, nothing raises, nothing is lost and nothing is told of them."""
    check(some)


@given(values(st.builds(mutate, st.sampled_from(short_seeds), st.integers(0, 2**32))))
def test_changed_events_have_one_fate(some: list[Value]) -> None:
    """Events with a field changed, repeated, left out, nested or cut: likewise."""
    check(some)


@given(values(st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_any_text_has_one_fate(some: list[Value]) -> None:
    """Text of any characters: likewise."""
    check(some)


@given(values(st.sampled_from([hostile.value for hostile in CORPUS if hostile.reason is None])))
def test_odd_trades_that_are_booked_come_again_and_again(some: list[Value]) -> None:
    """The same ids and keys, odd but good: booked once or recognised, however they are batched."""
    check(some)


@given(st.binary(max_size=200), st.integers(0, 2**64))
def test_change_is_the_same_for_the_same_seed(data: bytes, seed: int) -> None:
    """What failed can be made again."""
    assert mutate(data, seed) == mutate(data, seed)


def test_fuzz_input_is_read_as_records() -> None:
    """Values stand between separators, each with an origin after a mark or without."""
    data = b"a" + SEPARATOR + b"b" + ORIGIN_MARK + b"t/0/1" + SEPARATOR
    assert values_of(data) == [Value(b"a"), Value(b"b", b"t/0/1"), Value(b"")]
    assert len(values_of(SEPARATOR * 100)) == MAX_VALUES
