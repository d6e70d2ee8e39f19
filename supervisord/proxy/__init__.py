"""Plugins in other processes, reached over their sockets: the daemon as somebody's client.

Each speaks one of containerd's services on a unix socket, as containerd's ``[proxy_plugins]``
expect. They are called by whoever would call a built-in one. A proxy that is not there, or hangs,
fails the calls that need it, and nothing else.
"""
