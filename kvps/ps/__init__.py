"""The parameter server: tables over shards, wherever the shards live. It knows no language model; DESIGN.md."""
