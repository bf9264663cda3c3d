"""The parameter server: tables over shards, wherever the shards live."""
