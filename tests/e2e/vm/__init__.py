"""A small machine of its own kernel, with control groups of version 2 only, to test in."""
