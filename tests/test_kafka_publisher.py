"""KafkaPublisher on a client that fails as told: three outcomes, order, dead producers."""

import asyncio
from collections import deque
from typing import Any, ClassVar

import pytest
from aiokafka.errors import (
    CorruptRecordException,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
)

from app.config import Settings
from app.errors import TopicError, TransportError
from app.kafka_io import publisher as module
from app.kafka_io.publisher import KafkaPublisher
from app.ports import OutgoingRecord, SendState

SETTINGS = Settings(kafka_bootstrap_servers="127.0.0.1:1", send_max_attempts=3, send_deadline_s=1)


class FakeBatch:
    """Holds up to three records or 256 KiB; like the client's, an empty one takes any record."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []

    def append(self, *, value: bytes | None, **_: Any) -> object | None:
        if len(self.values) == 3 or (self.values and len(value or b"") > 256 * 1024):
            return None
        self.values.append(value)
        return object()

    def close(self) -> None:
        return


class FakeClient:
    """A producer whose sends end as its class is told: refused, failed, hanging, or stored."""

    plan: ClassVar[deque[Any]]
    stored: ClassVar[list[bytes | None]]
    made: ClassVar[int]
    start_error: ClassVar[Exception | None]

    def __init__(self, **_: Any) -> None:
        type(self).made += 1
        self._sender: Any = None
        self.client = self

    async def start(self) -> None:
        error = self.start_error
        if error is not None:
            raise error

    async def stop(self) -> None:
        return

    async def partitions_for(self, topic: str) -> set[int]:
        if topic == "missing":
            raise KafkaConnectionError(topic)
        return {0, 1}

    def create_batch(self) -> FakeBatch:
        return FakeBatch()

    async def send_batch(self, batch: FakeBatch, topic: str, *, partition: int) -> Any:
        step = self.plan.popleft() if self.plan else "ok"
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if isinstance(step, KafkaTimeoutError):
            raise step
        if isinstance(step, Exception):
            future.set_exception(step)
        elif step == "ok":
            metadata = type("Metadata", (), {"offset": len(self.stored)})
            self.stored.extend(batch.values)
            future.set_result(metadata)
        return future  # "hang" leaves it open


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    """Give a fresh class of fake clients, and retries without a wait."""
    monkeypatch.setattr(module, "wait_random_exponential", lambda **_: lambda _: 0)
    fresh = {"plan": deque(), "stored": [], "made": 0, "start_error": None}
    return type("Client", (FakeClient,), fresh)


def records(*values: str, partition: int | None = 0) -> list[OutgoingRecord]:
    """Make records of one partition."""
    return [OutgoingRecord("t", b"k", value.encode(), partition=partition) for value in values]


async def test_stored_records_carry_partition_and_consecutive_offsets(
    client: type[FakeClient],
) -> None:
    """Each record of a batch has its own offset, over batches too."""
    publisher = KafkaPublisher(SETTINGS, client)
    outcomes = await publisher.publish(records("a", "b", "c", "d", partition=1))
    assert [(o.state, o.partition, o.offset) for o in outcomes] == [
        (SendState.OK, 1, n) for n in range(4)
    ]
    assert client.stored == [b"a", b"b", b"c", b"d"]


async def test_what_was_not_sent_is_sent_again_in_order(client: type[FakeClient]) -> None:
    """Nothing overtakes a batch that the client refused: both are sent at the next attempt."""
    client.plan.append(KafkaTimeoutError())
    outcomes = await KafkaPublisher(SETTINGS, client).publish(records("a", "b", "c", "d"))
    assert {o.state for o in outcomes} == {SendState.OK}
    assert client.stored == [b"a", b"b", b"c", b"d"]


async def test_later_calls_do_not_overtake_what_is_sent_again(client: type[FakeClient]) -> None:
    """While one call has to repeat, the others wait, so that a partition keeps its order."""
    client.plan.extend([KafkaTimeoutError(), KafkaTimeoutError()])
    publisher = KafkaPublisher(SETTINGS, client)
    calls = [publisher.publish(records(*values)) for values in (("a", "b", "c"), ("d",), ("e",))]
    for outcomes in await asyncio.gather(*calls):
        assert {o.state for o in outcomes} == {SendState.OK}
    assert client.stored == [b"a", b"b", b"c", b"d", b"e"]


async def test_attempts_are_bounded(client: type[FakeClient]) -> None:
    """After the last attempt the outcome says that nothing was sent."""
    client.plan.extend([KafkaTimeoutError()] * 10)
    (outcome,) = await KafkaPublisher(SETTINGS, client).publish(records("a"))
    assert (outcome.state, outcome.retryable) == (SendState.NOT_SENT, True)
    assert len(client.plan) == 10 - SETTINGS.send_max_attempts


async def test_unknown_outcome_is_never_repeated_and_nothing_overtakes_it(
    client: type[FakeClient],
) -> None:
    """A record that may be stored is the caller's to repeat, with all that came after it."""
    client.plan.extend([RequestTimedOutError(), KafkaTimeoutError()])
    outcomes = await KafkaPublisher(SETTINGS, client).publish(records("a", "b", "c", "d"))
    assert [o.state for o in outcomes] == [SendState.UNKNOWN] * 3 + [SendState.NOT_SENT]
    assert client.stored == []


@pytest.mark.parametrize(
    "error",
    [OutOfOrderSequenceNumber(), MessageSizeTooLargeError(), KafkaError("the sender has ended")],
    ids=repr,
)
async def test_dead_producer_is_replaced_before_the_next_send(
    client: type[FakeClient], error: KafkaError
) -> None:
    """Sequence numbers that no longer fit make every further send fail: only a new one helps."""
    publisher = KafkaPublisher(SETTINGS, client)
    client.plan.append(error)
    (first,) = await publisher.publish(records("a"))
    assert first.state is SendState.UNKNOWN
    (second,) = await publisher.publish(records("a"))
    assert second.state is SendState.OK
    assert client.made == 2


async def test_answer_after_the_deadline_is_unknown(client: type[FakeClient]) -> None:
    """A send that hangs ends at the deadline, and its producer is not trusted again."""
    publisher = KafkaPublisher(SETTINGS, client)
    client.plan.append("hang")
    (outcome,) = await publisher.publish(records("a"))
    assert outcome.state is SendState.UNKNOWN
    await publisher.publish(records("b"))
    assert client.made == 2


async def test_batch_that_broke_on_its_way_is_sent_again_by_a_new_client(
    client: type[FakeClient],
) -> None:
    """The broker saw a wrong checksum: the record may come again, under new sequence numbers."""
    client.plan.append(CorruptRecordException())
    publisher = KafkaPublisher(SETTINGS, client)
    (outcome,) = await publisher.publish(records("a"))
    assert (outcome.state, outcome.retryable) == (SendState.UNKNOWN, True)
    (outcome,) = await publisher.publish(records("a"))
    assert outcome.state is SendState.OK
    assert client.made == 2


async def test_refusal_of_the_broker_is_not_to_be_repeated(client: type[FakeClient]) -> None:
    """A missing permission stays missing; still the record may be stored by an earlier try."""
    client.plan.append(TopicAuthorizationFailedError())
    (outcome,) = await KafkaPublisher(SETTINGS, client).publish(records("a"))
    assert (outcome.state, outcome.retryable) == (SendState.UNKNOWN, False)


async def test_too_large_record_is_refused_and_its_neighbours_are_sent(
    client: type[FakeClient],
) -> None:
    """The size is judged before a batch takes it."""
    big = OutgoingRecord("t", b"k", bytes(3_000_000), partition=0)
    outcomes = await KafkaPublisher(SETTINGS, client).publish([*records("a"), big, *records("b")])
    assert [o.state for o in outcomes] == [SendState.OK, SendState.NOT_SENT, SendState.OK]
    assert outcomes[1].retryable is False


async def test_no_broker_is_not_sent_and_a_start_error(client: type[FakeClient]) -> None:
    """A publish reports it in the outcome, a start raises it, and both name the address."""
    client.start_error = KafkaConnectionError("refused")
    publisher = KafkaPublisher(SETTINGS, client)
    (outcome,) = await publisher.publish(records("a"))
    assert outcome.state is SendState.NOT_SENT
    assert "127.0.0.1:1" in outcome.error
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:1"):
        await publisher.start()


async def test_unknown_topic_is_named(client: type[FakeClient]) -> None:
    """Partitions of a topic that is not there cannot be counted, nor published to."""
    publisher = KafkaPublisher(SETTINGS, client)
    with pytest.raises(TopicError, match="missing"):
        await publisher.partition_count("missing")
    (outcome,) = await publisher.publish([OutgoingRecord("missing", None, b"v")])
    assert outcome.state is SendState.NOT_SENT
    assert await publisher.partition_count("t") == 2
