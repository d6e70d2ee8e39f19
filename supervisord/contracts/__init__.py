"""The nouns of the daemon: one file each, with its life story, its protocol and its errors.

Every engine knows the others only through this package. It imports nothing of the daemon, and
of third parties only protobuf's ``Message`` where a contract carries one.
"""
