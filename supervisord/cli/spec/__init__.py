"""The OCI runtime spec that ``sctl run`` and ``sctl containers create`` write.

A spec is a plain dict in the form of config.json (OCI runtime specification 1.0.2). ``defaults`` is
where it starts, ``image`` and ``flags`` change it, ``users`` resolves names, ``rootfs`` reads files
of a snapshot without mounting it.
"""
