"""The breaker: what share of refused records is borne, over which records, and from how many on."""

from app.breaker import LEAST, WINDOW, Breaker


def test_share_is_borne_up_to_its_bound() -> None:
    """A fifth of the records may be refused, one more may not."""
    assert not Breaker(0.2).note(1_000, 200)
    assert Breaker(0.2).note(1_000, 201)
    assert not Breaker(1).note(1_000, 1_000)


def test_few_records_say_nothing() -> None:
    """All of the first records may be refused until there are enough of them to judge by."""
    breaker = Breaker(0.2)
    assert not breaker.note(LEAST - 1, LEAST - 1)
    assert breaker.note(1, 1)
    assert str(breaker) == f"{LEAST} of the last {LEAST} records were refused"


def test_what_is_long_past_is_forgotten() -> None:
    """A long good past does not cover a flood, and an old flood is no reason to stop."""
    breaker = Breaker(0.2)
    for _ in range(100):
        assert not breaker.note(WINDOW, 0)
    assert not breaker.note(200, 200)
    assert breaker.note(100, 100)
    for _ in range(10):
        assert not breaker.note(500, 0)
    assert not breaker.note(100, 100)


def test_good_records_never_stop_a_partition() -> None:
    """A share that rises because others leave the window is no news."""
    breaker = Breaker(0.2)
    for judged, refused in ((500, 0), (400, 0), (280, 220), (320, 0)):
        assert not breaker.note(judged, refused)
    assert str(breaker) == "220 of the last 1000 records were refused"
    assert breaker.note(1, 1)
