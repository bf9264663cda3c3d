"""Text on disk to lines of words; knows no counts.

corpus.py says which inputs there are and cuts them into splits, streams.py reads their bytes, spool.py keeps what can
be read only once, tokenize.py makes words of lines.
"""
