"""build_binary: make a model of an ARPA file. It is kvps's own compiled form, which KenLM does not read."""
from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kvps.errors import ArgumentError, DataError
from kvps.lm.arpa_read import MISSING_UNK, import_arpa
from kvps.text.tokenize import PLAIN
from kvps.units import cpu_count

USAGE = """Usage: build_binary [-s] [-i] [-v] [-w mmap|after] [-p probing_multiplier] [-T trie_temporary] [-S trie_building_mem] \
[-q bits] [-b bits] [-a bits] [type] input.arpa output

type is either probing or trie. Whatever it is, output is a model of kvps, with all the probabilities of the ARPA file as they are:
name it for query, kvps, or kvps.compat.kenlm. KenLM does not read it.
-T is the folder of temporary files, or their prefix. Default is that of the output.
-s, -i: taken, without effect; what KenLM allows with them (no <s> or </s>, positive log probability) is refused where it is met.
-v, -w, -p, -S, -q, -b, -a: taken, without effect; they tune how much memory KenLM needs.
-u, -r, and calls without an output file are not possible."""


def main(arguments: Sequence[str]) -> int:
    """Do what build_binary does; return its exit code."""
    try:
        given, names = getopt.getopt(arguments, "q:b:a:u:p:t:T:m:S:w:sir:vh")
    except getopt.GetoptError as exc:
        print(f"{exc}\n{USAGE}", file=sys.stderr)
        return 1
    options = dict(given)
    if "-h" in options or not 1 <= len(names) <= 3 or (len(names) == 3 and names[0] not in ("probing", "trie")):
        print(USAGE, file=sys.stderr)
        return 1
    if "-r" in options:
        raise ArgumentError("-r: lower-order rest costs are not possible")
    if "-u" in options and options["-u"] not in ("-100", "-100.0"):
        raise ArgumentError(f"-u {options['-u']}: the log10 probability of an <unk> that is not listed is always {-MISSING_UNK:g}")
    if len(names) == 1:
        raise ArgumentError(f"{names[0]}: estimates of memory are not possible; name an output file, which will be mapped")
    if names[0] != "trie" and ("-q" in options or "-b" in options):
        raise ArgumentError("Quantization is only implemented in the trie data structure.")
    if "-b" in options and "-q" not in options:
        raise ArgumentError("You specified backoff quantization (-b) but not probability quantization (-q)")
    source, output = names[-2:]
    scratch = options.get("-T") or options.get("-t")
    if scratch is not None and not os.path.isdir(scratch):
        scratch = os.path.dirname(scratch) or "."
    try:
        import_arpa(source, Path(output), tokenizer=PLAIN, max_ratio=0, list_ngrams=False, threads=cpu_count(),
                    scratch=None if scratch is None else Path(scratch))
    except DataError as exc:
        idle = [option for option in ("-s", "-i") if option in options]
        if not idle:
            raise
        raise DataError(f"{exc} (no effect here: {', '.join(idle)})", path=exc.path, line=exc.line) from exc
    print("SUCCESS", file=sys.stderr)
    return 0
