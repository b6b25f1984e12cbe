"""`stillhouse accelerate`: search the fastest accurate configuration of a pipeline for this machine.

A candidate is a combination of backend, precision, quantization and sampling options. Each candidate is built, timed
and compared with the pipeline in float32 (the baseline) on recorded inputs and on generated pictures. The best accepted
candidates are written into the pipeline's manifest.

Packages in the order of their use: `calibration` (record inputs), `search` (list candidates), `evaluation` (build, run,
compare, time), `selection` (choose, apply), `views` (reports).
"""
