"""Who somebody is to registries: docker's configuration and its helpers, read by daemon and CLI.

Knows nothing of either: no room imports here but the standard library.
"""
