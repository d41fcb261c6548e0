"""cryptfs: transparent file encryption for medical imaging archives."""

__version__ = "0.1.0"
