"""HTTP/2 (RFC 9113) and HPACK (RFC 7541) as a gRPC server on a unix socket needs them.

Bytes in, events out; no sockets and no asyncio here, and nothing of gRPC. The one user is
``services.listen``.
"""
