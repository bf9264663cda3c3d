"""n-gram language models as views of the counts in a store. Start with statistics.py, then compile.py and model.py."""
