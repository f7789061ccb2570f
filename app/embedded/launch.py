"""Start a program detached from its starter, and write down which process it is.

Runs as a script, by its path: `python launch.py PID_FILE ACCOUNT PROGRAM [ARGUMENT ...]`, so it
may import nothing but the standard library. ACCOUNT is `UID:GID`, or `-` for the starter's own. It
writes the pid file itself, because a starter that is killed right after starting the program would
leave a process nobody knows.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

SAME_ACCOUNT = "-"
_PROC = Path("/proc")
_STATE, _START_TIME = 0, 19  # positions after the command name in /proc/PID/stat, see proc(5)


def start_token(pid: int) -> str | None:
    """Say what tells this process from every other that had or will have its pid.

    Args:
        pid: Process id, > 0.

    Returns:
        Boot and start time of the process as one opaque string; None when there is no such
        process, or only its zombie.
    """
    if not (_PROC / "self/stat").exists():
        return _start_token_from_ps(pid)
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name stands in parentheses and may hold blanks and parentheses itself.
    fields = stat.rpartition(")")[2].split()
    if fields[_STATE] in "ZXx":
        return None
    boot_id = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot_id}/{fields[_START_TIME]}"


def _start_token_from_ps(pid: int) -> str | None:
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    # The locale is fixed, or the same start time would read differently in another terminal.
    environment = {**os.environ, "LC_ALL": "C"}
    shown = subprocess.run(  # noqa: S603 - our own arguments
        command, env=environment, capture_output=True, text=True, check=False
    )
    state, _, started = shown.stdout.strip().partition(" ")
    return started.strip() if state and not state.startswith("Z") else None


def _become(account: str) -> None:
    uid, _, gid = account.partition(":")
    os.setgroups([])  # root's own would be kept
    os.setgid(int(gid))
    os.setuid(int(uid))


def _main(pid_file: Path, account: str, command: list[str]) -> None:
    pid = os.fork()
    if pid == 0:
        if account != SAME_ACCOUNT:
            _become(account)
        os.execv(command[0], command)  # noqa: S606 - no shell is wanted
    # The intermediate process ends here, so the program belongs to init: whoever started it
    # neither has to reap it nor takes it along when it ends.
    partial = pid_file.with_suffix(".partial")
    partial.write_text(json.dumps({"pid": pid, "token": start_token(pid)}), encoding="utf-8")
    partial.replace(pid_file)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
