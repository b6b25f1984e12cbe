"""Scheduling: step-level batching, policies, latency model and admission.

Only the executor uses a device, so a simulation can run the same code on a virtual clock.
"""
