"""Scheduling: step-level batching, policies, latency model and admission.

Only the executor touches a device, so the same code runs on a virtual clock.
"""
