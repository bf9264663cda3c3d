"""The pipelines: what happens to a store, stage by stage. Start with train.py."""
