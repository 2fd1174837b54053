"""mffsr: fuse a focus bracket into one sharp photograph and super-resolve it, in one network."""

__version__ = "0.1.0"
