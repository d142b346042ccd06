"""perfkit: where an op stands against mathematics and hardware."""

__version__ = "0.1.0"
