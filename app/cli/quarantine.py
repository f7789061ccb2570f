"""`trade-stream quarantine`: batches that nobody can read, and the way past them."""

from typing import Annotated, Any

import typer

from app.cli.context import CONNECT_TIMEOUT_S, ConnectTimeoutOption, JsonOption, ask, show
from app.cli.state import move_on
from app.config import Settings
from app.errors import OffsetGapError
from app.kafka_io.log_reader import KafkaLogReader
from app.ledger import group_offsets
from app.views import read_quarantined

app = typer.Typer(help="Batches that cannot be read.", no_args_is_help=True)


@app.command("list")
def list_(
    as_json: JsonOption = False, connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S
) -> None:
    """List the batches that were put aside, with the files that hold their bytes."""

    async def read(settings: Settings, reader: KafkaLogReader) -> list[dict[str, Any]]:
        return [batch.to_json() for batch in await read_quarantined(reader, settings)]

    show(ask(read, connect_timeout), as_json=as_json, empty="nothing is in quarantine")


@app.command()
def skip(
    partition: Annotated[int, typer.Option(min=0, help="The partition that has stopped.")],
    connect_timeout: ConnectTimeoutOption = CONNECT_TIMEOUT_S,
) -> None:
    """Let a partition go on after its quarantined batch; stop the consumers of the group first.

    All records of the batch have the fate `quarantined` from then on; their bytes stay.
    """

    async def run(settings: Settings, reader: KafkaLogReader) -> int:
        committed = (await group_offsets(settings)).get(partition)
        batches = await read_quarantined(reader, settings)
        here = [b.next_offset for b in batches if (b.partition, b.offset) == (partition, committed)]
        next_offset = here[-1] if here else None
        if next_offset is None:
            raise OffsetGapError(
                f"partition {partition} does not wait at a batch whose end is known; see"
                " `quarantine list`, and the command in the worker's log (`partition_stopped`)"
            )
        await move_on(settings, reader, partition=partition, next_offset=next_offset)
        return next_offset

    typer.echo(f"partition {partition} goes on at offset {ask(run, connect_timeout)}")
