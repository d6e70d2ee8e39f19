"""Named streams between clients and services, and bytes over them."""
