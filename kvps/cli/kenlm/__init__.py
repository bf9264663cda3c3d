"""KenLM's programs lmplz, query and build_binary over kvps, with KenLM's options; `kvps kenlm-tools` makes executables of them.

They speak KenLM's language, not that of `kvps`: options are KenLM's, exit codes 0 and 1, messages go to stderr. Options
that only say how KenLM uses memory and disk are taken and mean nothing; those that we cannot honour are refused by name.
"""
TOOLS = ("lmplz", "query", "build_binary")
