"""ttrpc, the small RPC protocol between a container supervisor and its shims.

``frames`` is the wire format without any socket, ``connection`` owns one socket, ``server`` and
``client`` are the two ends, ``stream`` is what both share of streaming calls. Used by the daemon
and by shims, so this room imports the standard library, protobuf and the error contract only.
"""
