"""vcpusched balances the vCPUs of a KVM host over its pCPUs, with few pin changes."""

__version__ = "0.1.0"
