"""The life of a process: its settings, the signals that stop it gently, and its exit code."""

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, NoReturn, TypeVar

import structlog
import typer

from app.config import Settings, misspelt_names
from app.errors import ConfigError, TradeStreamError
from app.utils import configure_logging

log = structlog.get_logger(__name__)
T = TypeVar("T")

EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 2
EXIT_NEEDS_PERSON: Final = 4
EXIT_INTERRUPTED: Final = 130
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def start_up() -> Settings:
    """Read the settings, set logging up, and warn about what is likely not meant.

    Raises:
        ConfigError: With every wrong value at once.
    """
    settings = Settings.from_env()
    configure_logging(settings.log_level)
    for name, meant in misspelt_names().items():
        log.warning("setting_ignored", name=name, did_you_mean=meant)
    if settings.is_plaintext_off_loopback:
        log.warning(
            "plaintext_off_loopback",
            servers=settings.kafka_bootstrap_servers,
            hint="set KAFKA_SECURITY_PROTOCOL=SASL_SSL",
        )
    spare_the_collector()
    return settings


def spare_the_collector() -> None:
    """Let the garbage collector run seldom, over what is made from now on.

    What was imported stays, so that to look through it again and again would find nothing; and
    records make no cycles. Reference counts free them, as ever.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def run_command(command: Callable[[], object]) -> NoReturn:
    """Run a command line and end the process with its documented exit code."""
    try:
        command()
    except ConfigError as exc:
        for problem in exc.problems:
            sys.stderr.write(f"error: {problem}\n")
        sys.exit(EXIT_CONFIG)
    except TradeStreamError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    sys.exit(0)


def run_program(main: Callable[..., None]) -> NoReturn:
    """Run a function as the command line of this process, options and all."""
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(main)
    run_command(program)


async def run_with_stop(main: Callable[[asyncio.Event], Awaitable[T]], *, grace_s: float) -> T:
    """Run `main` with an event that SIGTERM or Ctrl-C sets.

    Args:
        main: Stops by itself soon after its event is set.
        grace_s: From the first signal on, the process lives at most so long; a second Ctrl-C ends
            it at once. What was not acknowledged by then comes again at the next start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    timers: list[threading.Timer] = []
    received: list[int] = []

    def on_signal(number: int) -> None:
        received.append(number)
        if received.count(signal.SIGINT) > 1:
            log.warning("stopped_at_once")
            os._exit(EXIT_INTERRUPTED)
        if len(received) > 1:
            # The same wish by another way: a service manager tells every process of a service, and
            # the supervisor among them passes it on.
            return
        log.info("stopping", signal=signal.Signals(number).name, grace_s=grace_s)
        stop.set()
        timers.append(end_within(grace_s))

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await main(stop)
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        for timer in timers:
            timer.cancel()


def end_within(seconds: float) -> threading.Timer:
    """End the process with an error if it still lives after so long, whatever it hangs in."""
    # A thread, not the loop: it has to work when the loop is what hangs.
    timer = threading.Timer(seconds, end_at_once, ["stop_took_too_long"])
    timer.daemon = True
    timer.start()
    return timer


def end_at_once(why: str) -> None:
    """End the process with an error, from whatever thread; `why` is the name of the log event."""
    log.error(why)
    os._exit(EXIT_FAILED)


async def or_stopped(connecting: Coroutine[Any, Any, T], stop: asyncio.Event) -> T:
    """Await something that may take long before anything is at stake, or break it off.

    Raises:
        KeyboardInterrupt: The stop came first.
    """
    task = asyncio.ensure_future(connecting)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    if task.cancelled():
        raise KeyboardInterrupt
    return task.result()
