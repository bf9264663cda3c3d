"""Benchmarks: `python -m bench` lists them. The library never imports them, and they run it by its command line."""
