"""Text on disk to lines of words: inputs and their splits (corpus.py, streams.py, spool.py), tokenizers (tokenize.py). Knows no counts."""
