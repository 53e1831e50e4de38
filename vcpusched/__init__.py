"""vcpusched keeps the virtual CPUs of a KVM host well placed, with few pin changes."""

__version__ = "0.1.0"
