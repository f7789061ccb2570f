"""Several consumers of one group on one machine: started, watched, restarted, stopped together."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

from app.config import child_environment
from app.errors import ConfigError
from app.lifecycle import EXIT_CONFIG, EXIT_NEEDS_PERSON

log = structlog.get_logger(__name__)

FIRST_BACKOFF_S: Final = 0.5
LONGEST_BACKOFF_S: Final = 30.0
HEALTHY_AFTER_S: Final = 60.0
"""A worker that lived so long starts with the shortest backoff again."""

CONSUMER: Final = Path(__file__).with_name("consumer.py")


class Supervisor:
    """Runs workers, each a process with one event loop, and sums up what they counted.

    Args:
        workers: How many.
        arguments: Command line for each of them, after `program`.
        health_port: Where the first of them serves health and metrics, and each other one port
            above the one before it; 0 lets each take a free one.
        program: What each of them runs.
    """

    def __init__(
        self,
        workers: int,
        arguments: list[str],
        *,
        health_port: int | None = None,
        program: Path = CONSUMER,
    ) -> None:
        self._workers = workers
        self._arguments = arguments
        self._health_port = health_port
        self._program = program
        self._running: dict[int, Process] = {}
        self._summaries: list[dict[str, Any]] = []
        self._refused: list[str] = []
        self.restarts = 0

    async def run(self, stop: asyncio.Event) -> dict[str, Any]:
        """Run the workers until told to stop, or until each has ended by itself.

        Args:
            stop: Set it to stop the workers gently; they finish what they have in hand. Set as
                well when one of them refuses its settings at its first start.

        Returns:
            Sums of what the workers reported. One that was killed reports nothing.

        Raises:
            ConfigError: Workers refuse their settings at their first start.
        """
        stopping = asyncio.ensure_future(self._forward(stop))
        try:
            await asyncio.gather(
                *(self._keep_running(number, stop) for number in range(self._workers))
            )
        finally:
            stopping.cancel()
        if self._refused:
            raise ConfigError(self._refused)
        return self._sums()

    async def _keep_running(self, number: int, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = FIRST_BACKOFF_S
        has_run = False
        while not stop.is_set():
            started_s = loop.time()
            exit_code = await self._run_once(number, stop)
            if exit_code in (0, EXIT_NEEDS_PERSON) or stop.is_set():
                return
            is_refused = exit_code == EXIT_CONFIG
            if is_refused and not has_run:
                self._refused.append(f"worker {number} refuses its settings")
                stop.set()
                return
            # Settings that it has run with name a file that is gone or broken for now; the others
            # go on with what they have read of it.
            has_run = True
            if loop.time() - started_s >= HEALTHY_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            log.warning(
                "worker_refuses_settings" if is_refused else "worker_ended",
                worker=number,
                exit_code=exit_code,
                restart_in_s=backoff_s,
            )
            self.restarts += 1
            try:
                await asyncio.wait_for(stop.wait(), backoff_s)
            except TimeoutError:
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)

    async def _run_once(self, number: int, stop: asyncio.Event) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(self._program),
            "--json",
            "--parent-pid",
            str(os.getpid()),
            *self._arguments,
            env=child_environment(self._environment(number)),
            stdout=PIPE,
            start_new_session=True,  # a Ctrl-C reaches us alone, and we pass it on
        )
        self._running[number] = process
        if stop.is_set():  # it came while the process was being made
            _terminate(process)
        log.info("worker_started", worker=number, pid=process.pid)
        try:
            output, _ = await process.communicate()
        finally:
            del self._running[number]
            if process.returncode is None:
                process.kill()
                await process.wait()
        if output:
            self._summaries.append(json.loads(output))
        return process.returncode or 0

    def _environment(self, number: int) -> dict[str, str]:
        """Give what a worker is told besides our own environment."""
        if not self._health_port:
            return {}
        return {"HEALTH_PORT": str(self._health_port + number)}

    async def _forward(self, stop: asyncio.Event) -> None:
        await stop.wait()
        for process in self._running.values():
            _terminate(process)

    def _sums(self) -> dict[str, Any]:
        fates: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        stopped: dict[str, str] = {}
        for summary in self._summaries:
            fates.update(summary["fates"])
            reasons.update(summary["reasons"])
            stopped |= summary["stopped_partitions"]
        return {
            "workers": self._workers,
            "restarts": self.restarts,
            "fates": dict(fates),
            "reasons": dict(reasons),
            "consume_per_s": sum(summary["consume_per_s"] for summary in self._summaries),
            "stopped_partitions": stopped,
        }


def _terminate(process: Process) -> None:
    """Ask a process to end; one that has ended already may not have been noticed yet."""
    with suppress(ProcessLookupError):
        process.terminate()
