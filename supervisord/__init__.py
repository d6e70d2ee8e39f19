"""supervisord: a containerd-compatible container supervisor daemon."""

__version__ = "0.1.0"
