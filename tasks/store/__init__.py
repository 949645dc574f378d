"""The store: every table and file of a run, by name."""

from tasks.store.store import Store

__all__ = ["Store"]
