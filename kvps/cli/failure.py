"""How a call ends that did not end well: one line on stderr, or one JSON object with --json, and an exit code."""
from __future__ import annotations

import contextlib
import errno
import os
import shlex
import sys
import traceback

import click

from kvps.cli import Call
from kvps.errors import KvpsError, Stopped, StoreFull, StoreLocked, Unreachable, one_line

PATIENCE_S = 2.0               # for a server that is asked whether a job is pending
INTERRUPTED = 130              # 128 + SIGINT, as shells have it
_FULL = (errno.ENOSPC, errno.EDQUOT)


def report(exc: BaseException, call: Call) -> int:
    """Tell the user about an exception and return the exit code."""
    if isinstance(exc, click.exceptions.Exit):
        return exc.exit_code
    if isinstance(exc, SystemExit):
        return exc.code if isinstance(exc.code, int) else 1
    if isinstance(exc, BrokenPipeError):
        # Whoever read our output has seen enough. What is still in the buffer has nowhere to go.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(exc, click.exceptions.NoArgsIsHelpError):
        exc.show()
        return exc.exit_code
    if call.debug:
        traceback.print_exception(exc)
    record, code = _described(exc, call)
    if call.json:
        from kvps.cli.output import emit

        with contextlib.suppress(OSError):
            emit({**record, "exit_code": code})
            sys.stdout.flush()
    else:
        newline = "\n" if code == INTERRUPTED and sys.stderr.isatty() else ""      # behind the terminal's ^C
        click.echo(f"{newline}kvps: {record['message']}", err=True)
    return code


def _described(exc: BaseException, call: Call) -> tuple[dict, int]:
    """Return what is said about an exception, with "error" and "message", and the exit code."""
    if isinstance(exc, click.ClickException):
        message, where = exc.format_message(), getattr(exc, "ctx", None)
        if where is not None and isinstance(exc, click.UsageError):
            message = f"{message.rstrip('.')}; see {where.command_path} --help"
        return {"error": type(exc).__name__, "message": one_line(message)}, exc.exit_code
    if isinstance(exc, (KeyboardInterrupt, click.Abort)):
        record, code = {"error": "KeyboardInterrupt", "message": "interrupted"}, INTERRUPTED
    elif isinstance(exc, KvpsError):
        record, code = exc.as_dict(), exc.exit_code
    else:
        record, code = _unexpected(exc, call)
    # A job that another process is at work on is not the user's to resume.
    job = None if isinstance(exc, (StoreLocked, Unreachable)) else _pending(call.store)
    if job is not None:
        record["resumable"] = True
        # The library's own advice, where it has some, is closer to the matter.
        if "kvps resume" not in record["message"]:
            store = shlex.quote(call.store)
            record["message"] += (f"; the {job['command']} is not done: `kvps resume {store}` goes on with it, "
                                  f"`kvps abort {store}` rolls it back")
    elif isinstance(exc, (KeyboardInterrupt, Stopped, StoreFull)) and call.store is not None:
        record["message"] += "; the same command goes on"
    return record, code


def _unexpected(exc: BaseException, call: Call) -> tuple[dict, int]:
    """Describe what the library did not raise on purpose."""
    debug = f"kvps --debug {shlex.join(argument for argument in call.arguments if argument != '--debug')}"
    detail = " ".join(str(exc).split())
    code = 1
    if isinstance(exc, MemoryError):
        message = f"out of memory{detail and f' ({detail})'}; give a smaller --memory or fewer --threads"
    elif isinstance(exc, OSError) and exc.errno is not None:
        place = f"{exc.filename}: " if exc.filename is not None else ""
        message = f"{place}{exc.strerror or detail}"
        code = 4 if exc.errno in _FULL else 1
        if code == 1:
            message += f"; `{debug}` shows where"
    else:
        message = f"unexpected {type(exc).__name__}: {detail}; please report it with what `{debug}` prints"
    return {"error": type(exc).__name__, "message": one_line(message)}, code


def _pending(store: str | None) -> dict | None:
    """Return the record of the job that is pending in a store, if there is a store and one can be read."""
    if store is None:
        return None
    from kvps.ps.places import open_place

    with contextlib.suppress(Exception), open_place(store, patience_s=PATIENCE_S) as opened:
        return opened.root.job()
    return None
