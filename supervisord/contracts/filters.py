"""containerd's filter language, as List, Subscribe and the CLIs use it.

Implemented by the metadata room's owner; see the functions' docstrings. A list of filters
matches when any of them matches; an empty list matches everything. One filter is a
comma-separated list of selectors that must all hold: ``fieldpath`` (presence), ``==``, ``!=``,
``~=`` (RE2-style regular expression). Fieldpath parts are joined by dots and may be quoted.
"""
