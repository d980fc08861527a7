"""The version of the package, its native library and its wheel: one string, read by the build."""

__version__ = "0.1.0"
