"""What records leave behind: counts, rows, dead letters and re-keyed trades of their partition.

Nothing is sent here; see `checkpointer` for when it leaves.
"""

from collections.abc import Callable, Sequence

from app.config import Settings
from app.dead_letters import dead_letter
from app.headers import Origin
from app.ledger_codec import LedgerRows
from app.models import Fate, Refusal
from app.ports import OutgoingRecord, ParkedRecord, Record, RecordBatch
from app.services import BatchResult
from app.stats import ConsumerStats
from app.takeover import OpenPartition


class Collector:
    """Turns what a processor makes of records into effects of their partition.

    Args:
        settings: Topics, and the group that dead letters name.
        stats: Counts what is not counted by fate.
        partition_of: Partition that a record key belongs to.
        now_ns: Wall clock, UTC nanoseconds, for the stamps of dead letters.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        stats: ConsumerStats,
        partition_of: Callable[[bytes], int],
        now_ns: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._stats = stats
        self._partition_of = partition_of
        self._now_ns = now_ns

    def collect(
        self, partition: OpenPartition, batch: RecordBatch, result: BatchResult, *, count: int
    ) -> None:
        """Take what became of the next records.

        Args:
            partition: Theirs; it goes on after them.
            batch: They.
            result: What the processor made of them.
            count: How many of them had no fate when the partition was taken over.
        """
        effects = partition.effects
        if result.refusals or result.misplaced:
            self._collect_sends(partition, batch, result)
        if result.rows is not None:
            for refusal in result.refusals:
                result.rows.add_refusal(batch.offsets[refusal.index], refusal)
            effects.add_rows(result.rows)
        if result.late_refusals:
            self.collect_late(partition, result.late_refusals)
        if result.touched:
            effects.touched |= dict.fromkeys(result.touched)
        for fate, records in result.fates.items():
            effects.fates[fate] += records
        partition.consumed_records += count
        self._stats.consumed_records += len(batch.offsets)
        self._stats.uncounted_records += len(batch.offsets) - count
        effects.published_at += result.published_at
        if result.suspects:
            self._stats.suspects.update(result.suspects)
        self._stats.unknown_fields += result.unknown_fields
        self._stats.already_applied += result.already_applied
        self._stats.repaired += result.repaired
        partition.next_offset = batch.next_offset

    def collect_late(self, partition: OpenPartition, records: Sequence[ParkedRecord]) -> None:
        """Take parked records that were refused; their dead letters leave once that is stored."""
        refusals = {r.offset: r.refusal for r in records if r.refusal is not None}
        rows = LedgerRows(partition.number, self._settings.defaults_currency, refused=refusals)
        partition.effects.add_rows(rows)
        partition.effects.add_late_sends(
            {
                record.offset: self._dead_letter(
                    partition.number, record, refusals[record.offset], parked_ns=record.parked_ns
                )
                for record in records
            }
        )
        partition.effects.note_refusals(refusals.values())

    def _dead_letter(
        self, partition: int, record: Record, refusal: Refusal, *, parked_ns: int | None = None
    ) -> OutgoingRecord:
        return dead_letter(
            record,
            refusal,
            topic=self._settings.dlq_topic,
            source_topic=self._settings.kafka_topic,
            source_partition=partition,
            group=self._settings.kafka_group_id,
            failed_at_ns=self._now_ns(),
            parked_ns=parked_ns,
        )

    def _collect_sends(
        self, partition: OpenPartition, batch: RecordBatch, result: BatchResult
    ) -> None:
        effects = partition.effects
        sends: list[tuple[int, OutgoingRecord]] = [
            (
                refusal.index,
                self._dead_letter(partition.number, batch.records[refusal.index], refusal),
            )
            for refusal in result.refusals
        ]
        sends += [
            (index, self._rekeyed(partition.number, batch, index, key))
            for index, key in result.misplaced
        ]
        effects.add_sends([record for _, record in sorted(sends, key=lambda send: send[0])])
        effects.fates[Fate.REKEYED] += len(result.misplaced)
        effects.note_refusals(result.refusals)

    def _rekeyed(self, partition: int, batch: RecordBatch, index: int, key: str) -> OutgoingRecord:
        record = batch.records[index]
        origin = Origin(self._settings.kafka_topic, partition, record.offset)
        encoded = key.encode()
        return OutgoingRecord(
            topic=self._settings.kafka_topic,
            key=encoded,
            value=record.value,
            headers=[*record.headers, origin.to_header()],
            partition=self._partition_of(encoded),
            timestamp_ms=record.timestamp,
        )
