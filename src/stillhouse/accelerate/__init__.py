"""The verb `accelerate`: every way that this machine has to run a pipeline, measured, checked on real pictures, chosen.

It reads in order: plan, probe, build, check, race, choose, report.
"""
