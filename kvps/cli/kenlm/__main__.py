"""Run one of KenLM's programs: `python -m kvps.cli.kenlm lmplz OPTION...`."""
import importlib
import os
import signal
import sys

from kvps.cli.kenlm import TOOLS
from kvps.errors import KvpsError


def main() -> int:
    """Run the program that the first argument names; return its exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))      # so that temporary files go
    if sys.argv[1:2] and sys.argv[1] in TOOLS:
        try:
            code = importlib.import_module(f"kvps.cli.kenlm.{sys.argv[1]}").main(sys.argv[2:])
            sys.stdout.flush()
            return code
        except KvpsError as exc:
            print(exc, file=sys.stderr)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)       # nobody reads on
        except KeyboardInterrupt:
            return 130
        except OSError as exc:
            print(exc, file=sys.stderr)
        return 1
    print(f"expected one of {', '.join(TOOLS)}", file=sys.stderr)
    return 1


sys.exit(main())
