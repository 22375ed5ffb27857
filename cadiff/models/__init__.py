"""The networks: no losses, no masks drawn, no shards read here."""
