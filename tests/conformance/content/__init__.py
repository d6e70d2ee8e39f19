"""One content suite for all stores, and a store over the wire to run it on."""
