"""The unpack worker, which runs in forks of the zygote: tar, inflate, extraction, layer diffs.

Imports the standard library, isal, zstandard, contracts and linux, and nothing else.
"""
