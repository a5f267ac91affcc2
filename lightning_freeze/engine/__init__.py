"""Declare, then reconcile: a `Policy` says, the `Reconciler` does. Only this folder changes a model."""
