"""`stillhouse accelerate`: search the fastest accurate configuration of a pipeline for this machine.

Candidates (backend, graph recipe, precision, sampling variant) are built, measured and compared with the f32 baseline
on recorded inputs and on generated pictures. The best accepted candidates are written into the manifest.

Stages, in order: `calibration` (record inputs), `search` (list candidates), `evaluation` (build, run, compare, time),
`selection` (choose, apply), `views` (reports).
"""
