"""Where a partition goes on after an assignment: the commit, the state and the log must agree."""

from dataclasses import dataclass

from app.errors import OffsetGapError


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """Where to go on.

    Attributes:
        offset: First offset whose fate is open.
        is_first_start: Nothing of this group is known: `offset` is committed at once.
    """

    offset: int
    is_first_start: bool = False


def starting_point(
    *,
    committed: int | None,
    is_known: bool,
    has_positions: bool,
    source_offset: int,
    first: int,
    end: int,
    may_continue: bool = False,
) -> StartingPoint:
    """Judge what is known of one partition.

    Args:
        committed: The group's committed next offset, if any.
        is_known: Whether positions or heartbeats of this group exist for the partition.
        has_positions: Whether positions are among them.
        source_offset: Highest source offset that they cover, or -1.
        first: First offset that the topic still holds.
        end: Offset after the last one that it holds.
        may_continue: A person, or `ON_GAP=continue`, accepts that records are gone.

    Raises:
        OffsetGapError: Records that were never seen are gone; or state is missing, or the topic is
            not the one that it was made from (`may_continue` does not help with these two).
    """
    if source_offset >= end or (committed is not None and committed > end):
        covered = max(source_offset + 1, committed or 0)
        raise OffsetGapError(
            f"the topic ends at offset {end}, and this group has processed it up to {covered}: it"
            " was truncated or made anew. Set a new KAFKA_GROUP_ID and POSITIONS_TOPIC, and with a"
            " ledger an empty DATABASE_URL; or, without a ledger, stop the consumers and run"
            " `trade-stream positions rebuild`"
        )
    if committed is None and not has_positions and source_offset < first:
        return StartingPoint(first, is_first_start=True)
    if committed is None:
        if may_continue:
            return StartingPoint(first)
        raise OffsetGapError(
            f"no committed offset, but positions up to offset {source_offset}: the group's offsets"
            f" expired or were deleted. `trade-stream gap accept` reads again from offset {first};"
            " what is booked is not booked twice"
        )
    if not is_known:
        raise OffsetGapError(
            f"committed up to offset {committed}, but no positions: they were deleted, or"
            " POSITIONS_TOPIC was changed. Set it back, or stop the consumers and run"
            " `trade-stream positions rebuild`"
        )
    if committed < first:
        if may_continue:
            return StartingPoint(first)
        raise OffsetGapError(
            f"offsets {committed} to {first - 1} ({first - committed} records) were deleted before"
            " they were processed. `trade-stream gap accept` goes on without them"
        )
    return StartingPoint(committed)
