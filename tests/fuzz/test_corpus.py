"""Every hostile value of the corpus gets its fate, alone and among good trades."""

import pytest

from app.money import format_scaled
from app.ports import RecordBatch
from app.services import TradeProcessor
from tests.fuzz.corpus import CORPUS, Hostile, body
from tests.fuzz.one_fate import Value, check, documented, is_documented, said

each_one = pytest.mark.parametrize("hostile", [pytest.param(one, id=one.name) for one in CORPUS])


@each_one
def test_hostile_value_gets_its_fate(hostile: Hostile) -> None:
    """It is refused under its code, or booked at its exact price with what is doubtful about it."""
    record = Value(hostile.value).at(0)
    result = TradeProcessor().process_batch(RecordBatch.of(0, 1, [record], 1))
    assert [refusal.reason for refusal in result.refusals] == [hostile.reason][
        : bool(hostile.reason)
    ]
    assert result.fates.total() == (hostile.reason is None)
    assert set(result.suspects) == set(hostile.suspects)
    if hostile.mark is not None:
        (position,) = result.changed.values()
        assert format_scaled(position.mark_e8, 8) == hostile.mark


@each_one
def test_hostile_value_does_nothing_to_good_ones_around_it(hostile: Hostile) -> None:
    """In the middle of a batch it has the same fate, and the trades next to it are booked."""
    _, outcome = check([Value(hostile.value)])
    reasons = [reason for reason, _ in outcome.refusals.values()]
    assert reasons == [hostile.reason][: bool(hostile.reason)]
    assert outcome.fates.total() + len(outcome.misplaced) == 2 + (hostile.reason is None)


def test_whole_corpus_in_one_batch() -> None:
    """All of them at once: one fate each, and the good trades between them are all booked."""
    _, outcome = check([Value(hostile.value) for hostile in CORPUS])
    refused = sum(hostile.reason is not None for hostile in CORPUS)
    assert len(outcome.refusals) >= refused  # ids of those that are booked come again


@pytest.mark.parametrize("end", range(len(body())))
def test_body_that_is_cut_anywhere_is_no_json(end: int) -> None:
    """No beginning of a body is taken for a whole one."""
    _, outcome = check([Value(body()[:end])])
    ((reason, _),) = outcome.refusals.values()
    assert reason == ("body-not-json" if end else "body-empty")


NOT_OF_A_VALUE_ALONE = {
    *("version-conflict", "currency-differs-from-position", "multiplier-differs-from-position"),
    *("key-mismatch", "batch-unreadable"),
    *("after-cancel", "key-changed", "orphan-lifecycle", "park-overflow", "history-pruned"),
}


def test_corpus_has_an_example_of_every_documented_code() -> None:
    """Each code of the list, but for those that need more than the value, and none besides."""
    reasons = {hostile.reason for hostile in CORPUS if hostile.reason}
    codes, of_any_field, _ = documented()
    of_one = {code for code in codes if not code.startswith("<field>")}
    assert of_one - reasons == NOT_OF_A_VALUE_ALONE
    assert {code for code in of_any_field if any(r.endswith(code) for r in reasons)} == of_any_field
    assert all(map(is_documented, reasons))
    assert not is_documented("price-strange")
    with_a_position = {"version-conflict", "key-mismatch", "_-differs-from-position"}
    assert with_a_position <= {reason for reason, _ in said()}


def test_names_of_the_corpus_tell_its_entries_apart() -> None:
    """A failure says which one it was."""
    assert len({hostile.name for hostile in CORPUS}) == len(CORPUS)
