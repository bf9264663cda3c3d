"""Faults and power cuts: faults.c, which makes and records them, and what looks at their outcome."""
