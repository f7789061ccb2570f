"""The configuration file of the embedded PostgreSQL, written anew at every start."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

PORT: Final = 5432  # no TCP port: a part of the socket's name
SOCKET: Final = f".s.PGSQL.{PORT}"

_SETTINGS: Final = {
    # What was committed outlives a crash of the server and of the machine.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # Nobody gets in but through the folder of the socket.
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": str(PORT),
    "max_connections": "40",
    # For a machine of a few cores and GiB that other programs share.
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "wal_buffers": "16MB",
    "max_worker_processes": "4",
    "max_parallel_workers": "2",
    "max_parallel_workers_per_gather": "1",
    "random_page_cost": "1.1",  # the disk is a solid state one
    # Seldom checkpoints: after each, the first change of a page writes the whole page to the log.
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "max_wal_size": "4GB",
    "min_wal_size": "512MB",
    # This build has neither lz4 nor zstd, and pglz takes CPU that the consumers need.
    "wal_compression": "off",
    "autovacuum": "on",
    "autovacuum_naptime": "15s",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
    "log_startup_progress_interval": "2s",
    "cluster_name": "trade_stream",
}


def server_settings(socket_dir: Path, extra: Mapping[str, str]) -> str:
    """Write the file; the one that initdb made is read before it, `ALTER SYSTEM` goes above it.

    Args:
        socket_dir: The folder of the socket.
        extra: Added to our settings, or put in the place of them.
    """
    settings = {**_SETTINGS, "unix_socket_directories": f'"{socket_dir}"', **extra}
    lines = [f"{name} = {_quote(value)}" for name, value in settings.items()]
    head = "# Written at every start. To change a setting for good: ALTER SYSTEM SET …"
    return "\n".join([head, "include 'data/postgresql.conf'", *lines, ""])


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"
