"""The version, once: read by CMake, setuptools and Python."""

__version__ = "0.1.0"
