"""Scheduling of image requests: batches formed anew at each denoising step, policies, latency model and admission.

Only the executor uses a device, so a simulation can run the same code on a virtual clock.
"""
