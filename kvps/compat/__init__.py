"""The interfaces of other tools over kvps: change the import, keep the code."""
