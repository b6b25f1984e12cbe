"""The sweep: every candidate of every component tried, the whole pictures after them, and a choice at the end.

The report on disk is the state: it is written after every trial, so that a sweep that was cut off goes on from it.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic

from stillhouse.accelerate.calibration.calibration_data import PROBES, read_probes
from stillhouse.accelerate.calibration.prompts import compared, shortened
from stillhouse.accelerate.calibration.record_calibration import probe_network, probe_pipeline
from stillhouse.accelerate.evaluation.accuracy import UNSEEN
from stillhouse.accelerate.evaluation.candidate_process import SubjectFailed
from stillhouse.accelerate.evaluation.evaluate import Bench, Reference, attempt, prebuild, resume, revive
from stillhouse.accelerate.evaluation.latency import Effort
from stillhouse.accelerate.evaluation.sample_images import SHOWN
from stillhouse.accelerate.options import Asked, allowed, is_asked, ranges_of
from stillhouse.accelerate.records.candidate import DECODER, DISTILLED, Candidate
from stillhouse.accelerate.records.report import Report, write_report
from stillhouse.accelerate.records.trial import BUDGET_ENDED, Trial
from stillhouse.accelerate.resume import beginning
from stillhouse.accelerate.search.candidates import HEAVY, Surroundings, outrun, plan
from stillhouse.accelerate.search.mixed_precision import rescue
from stillhouse.accelerate.search.pipeline_search import sweep_walks
from stillhouse.accelerate.search.students import decoders, lay_decoder
from stillhouse.accelerate.selection.apply import apply
from stillhouse.accelerate.selection.choose import best_of, choose
from stillhouse.accelerate.selection.runoff import FINAL, final
from stillhouse.accelerate.workspace import Part, Target, original_manifest
from stillhouse.backends.registry import backends
from stillhouse.backends.runtime import BackendStatus
from stillhouse.check import check_choice
from stillhouse.core import ImageRequest
from stillhouse.pipelines.manifest import TRIALS, Component

_ORDER = ("unet", "network", "vae_decoder", "text_encoder", "text_encoder_2", "vae_encoder")
_SHARES = {"unet": 0.4, DECODER: 0.44}
_COMPONENTS_SHARE = 0.48
"""Of a time budget, by when the U-Net, the decoder and the rest are to be done; what is left is for whole pictures."""
_FOR_TRIALS = 0.95
"""Of a time budget, what trials may take: the views are written after them, and a call is not cut in two."""
_LEAST_LIMIT = 20.0
"""Seconds that a child may always take for one answer."""

Tell = Callable[[str, float, float], None]


def sweep(target: Target, asked: Asked, tell: Tell = lambda what, done, total: None) -> Report:
    """Try everything, choose, and leave a pipeline directory with its evidence.

    KeyboardInterrupt ends it early: what was found is kept and chosen from.
    """
    state = Sweep(target, asked, tell)
    try:
        state.run()
    except KeyboardInterrupt:
        if not state.report.trials:
            raise
    return state.end()


class Sweep:
    """The state of one sweep: its report, which grows, and its clock."""

    def __init__(self, target: Target, asked: Asked, tell: Tell) -> None:
        self.target, self.asked, self.tell = target, asked, tell
        self.began = monotonic()
        self.around = _engines(asked)
        self.parts = _wanted(target, asked)
        self.report = beginning(target, asked)
        self.before = self.report.seconds

    def run(self) -> None:
        """Every component, then whole pictures."""
        probes = self._probes()
        if self.target.is_pipeline:
            shown = compared(original_manifest(self.target.directory), self.asked.requests)[:SHOWN]
            self._keep(replace(self.report, prompts=tuple(request.prompt for request in shown)))
        for part in self.parts:
            alone = len(self.parts) == 1 or not self.target.is_pipeline
            share = 1.0 if alone else _SHARES.get(part.name, _COMPONENTS_SHARE)
            surroundings = Surroundings(
                backends=self.around,
                machine=self.report.machine,
                has_modules=(part.graph.parent / "config.json").is_file(),
                dynamic_rows=part.dynamic_rows,
                threads=self.asked.threads or self.report.machine.cores,
                side=self._side(part, probes[part.name]),
                device=self.asked.device,
                rows=self.asked.rows,
                ranges="" if self.target.is_pipeline else ranges_of(self.asked.limits, part.signature.inputs),
            )
            others = decoders(self.target.directory, self.asked.students) if part.name == DECODER else ()
            planned = [one for one in plan(part.name, surroundings, others) if is_asked(one, self.asked)]
            self._component(part, planned, probes[part.name], share)
        if self.target.is_pipeline:
            sweep_walks(self)
        self._keep(replace(self.report, finished=True))

    def end(self) -> Report:
        """Choose, write the manifest and every view."""
        self._keep(self.chosen())
        apply(self.target.directory, self.report)
        return self.report

    @property
    def requests(self) -> Sequence[ImageRequest]:
        """What the user wants drawn; empty: whatever is usual."""
        return self.asked.requests

    @property
    def students(self) -> Sequence[str]:
        """Names of the students that are candidates."""
        return self.asked.students

    @property
    def threads(self) -> int | None:
        """At most so many for each network."""
        return self.asked.threads

    @property
    def limit(self) -> float:
        """Seconds that a child may take for one answer: as many as were asked for, and no more than are left."""
        return min(self.asked.limit, max(_LEAST_LIMIT, self.left()))

    @property
    def memory(self) -> int | None:
        """Bytes that all processes may take together; None where the machine does not tell what it has."""
        return allowed(self.asked.memory, self.report.machine)

    def left(self, share: float = 1.0) -> float:
        """Seconds left of the budget's share, which is for this run alone; infinite without one."""
        if self.asked.budget is None:
            return float("inf")
        return share * _FOR_TRIALS * self.asked.budget - (monotonic() - self.began)

    def elapsed(self) -> float:
        """Seconds that the sweep took, those of an earlier run that was cut off included."""
        return self.before + monotonic() - self.began

    def add(self, trial: Trial) -> None:
        """Put a trial into the report, in place of an earlier one of the same candidate."""
        key = (trial.candidate.component, trial.candidate.key)
        kept = [one for one in self.report.trials if (one.candidate.component, one.candidate.key) != key]
        self._keep(replace(self.report, trials=(*kept, trial)))

    def known(self, candidate: Candidate) -> Trial | None:
        """What an earlier run of this sweep found out of the candidate."""
        found = [one for one in self.report.of(candidate.component) if one.candidate.key == candidate.key]
        return next((one for one in found if one.status != "skipped" or one.ratio), None)

    def chosen(self) -> Report:
        """The report with its choice among what was tried so far."""
        return choose(self.report, self.asked.goal, self.report.bounds)

    def _probes(self) -> Mapping[str, Path]:
        folder = self.target.directory / TRIALS
        files = {part.name: folder / part.name / PROBES for part in self.parts}
        if not all(path.is_file() for path in files.values()):
            self.tell("recording probes", 0, 1)
            if self.target.is_pipeline:
                told = probe_pipeline(self.target.directory, files, self.asked.requests, self.asked.threads)
            else:
                graph = self.target.parts[0].graph
                told = probe_network(graph, files, self.asked.inputs, self.asked.shapes, ones=self.asked.ones)
            self._keep(replace(self.report, probes={**self.report.probes, **told}))
        return files

    def _component(self, part: Part, planned: Sequence[Trial | Candidate], probes: Path, share: float) -> None:
        bench = self._bench(part, probes)
        for one in planned:
            if isinstance(one, Trial) and not self.known(one.candidate):
                self.add(one)
        candidates = [one for one in planned if isinstance(one, Candidate)]
        for candidate in candidates:
            if candidate.recipe == DISTILLED:
                lay_decoder(candidate, self.target.directory, bench.made)
        if self.left(share) > 0:
            self.tell(f"{part.name}: building", 0, len(candidates))
            prebuild([one for one in candidates if not self.known(one)], bench, self.report.machine.cores)
        with self._baseline(candidates, bench) as reference:
            for number, candidate in enumerate(candidates):
                self.tell(f"{part.name}: {candidate.name}", number, len(candidates))
                if not self.known(candidate):
                    self.add(self._tried(candidate, bench, reference, share))
            if reference is not None and reference.subject.is_alive:
                for trial in rescue(self.report.of(part.name), bench, reference, lambda: self.left(share)):
                    self.add(trial)
                if part.name in HEAVY and self.left(share) > 0:
                    self.tell(f"{part.name}: final", 1, 1)
                    effort = replace(FINAL, seconds=min(FINAL.seconds, self.left(share)))
                    for trial in final(self.report.of(part.name), bench, reference, effort):
                        self.add(trial)

    def _tried(self, candidate: Candidate, bench: Bench, reference: Reference | None, share: float) -> Trial:
        """The candidate's trial. A baseline that died before it, or while it was tried, is opened again, and the
        candidate has a second chance: it is not blamed for the other's death."""
        if reference is None:
            return Trial(candidate, "skipped", "no candidate ran that others could be compared with")
        if slow := outrun(candidate, self.report.of(candidate.component)):
            return Trial(candidate, "skipped", slow)
        trial = Trial(candidate, "skipped", BUDGET_ENDED)
        for _ in range(2):
            if self.left(share) <= 0:
                return Trial(candidate, "skipped", BUDGET_ENDED)
            bench.limit = self.limit
            bench.effort = replace(bench.effort, hopeless=self._hopeless(candidate.component))
            try:
                if not reference.subject.is_alive:
                    revive(reference, bench)
            except SubjectFailed as failure:
                return Trial(candidate, "skipped", f"the baseline could not be opened again: {failure}")
            trial, _ = attempt(candidate, bench, reference)
            if trial.status != "failed" or reference.subject.is_alive:
                break
        ended = trial.status == "failed" and self.left() <= 0
        return Trial(candidate, "skipped", BUDGET_ENDED) if ended else trial

    def _hopeless(self, component: str) -> float:
        best = best_of(self.report.of(component), "latency")
        return 0.8 * best.ratio.value if best and best.ratio else 0.0

    @contextmanager
    def _baseline(self, candidates: Sequence[Candidate], bench: Bench) -> Iterator[Reference | None]:
        """The first candidate that works is what all others are compared with."""
        reference = None
        for candidate in candidates:
            if reference is None and candidate.recipe == "f32" and candidate.precision == "f32":
                reference = self._opened(candidate, bench)
        try:
            yield reference
        finally:
            if reference is not None:
                reference.subject.kill()

    def _opened(self, candidate: Candidate, bench: Bench) -> Reference | None:
        """The candidate as the baseline, tried now or in an earlier run; None where it does not serve."""
        if self.known(candidate) and (again := resume(candidate, bench)):
            return again
        trial, reference = attempt(candidate, bench, None)
        try:
            self.add(trial)
            if reference is not None:
                baselines = {**self.report.baselines, candidate.component: candidate.key}
                report = replace(self.report, baselines=baselines)
                if not self.target.is_pipeline:
                    apply(self.target.directory, report)  # from here on the directory can be opened
                self._keep(report)
        except BaseException:
            if reference is not None:
                reference.subject.kill()
            raise
        return reference

    def _bench(self, part: Part, probes: Path) -> Bench:
        return Bench(
            folder=self.target.directory / TRIALS / part.name,
            root=self.target.directory,
            graph=part.graph,
            probes=probes,
            bounds=self.report.bounds,
            rows=rows_of(probes),
            pipeline=self.target.directory if self.target.is_pipeline else None,
            components=self._others(),
            defaults=original_manifest(self.target.directory).defaults if self.target.is_pipeline else None,
            requests=self._compared(part),
            threads=self.asked.threads,
            memory=self.memory,
            limit=self.limit,
            effort=self.asked.effort or (Effort() if part.name in HEAVY else Effort(most=12, seconds=3.0)),
            batches=part.name in HEAVY and part.dynamic_rows,
        )

    def _others(self) -> dict[str, Component]:
        if not self.target.is_pipeline:
            return {}
        return {part.name: part.component for part in self.target.parts}

    def _compared(self, part: Part) -> Sequence[ImageRequest]:
        if not self.target.is_pipeline or part.name == UNSEEN:
            return ()
        manifest = original_manifest(self.target.directory)
        return shortened(manifest, compared(manifest, self.asked.requests))

    def _side(self, part: Part, probes: Path) -> int | None:
        """Pixels of the longer side of what a decoder was recorded with."""
        if part.name != DECODER:
            return None
        _, _, *sides = next(iter(read_probes(probes)[0].feeds.values())).shape
        return int(max(sides)) * original_manifest(self.target.directory).latent.downscale

    def _keep(self, report: Report) -> None:
        load = (report.load[0], os.getloadavg()[0])
        self.report = replace(report, seconds=self.elapsed(), load=load)
        write_report(self.target.directory, self.report)


def _engines(asked: Asked) -> dict[str, BackendStatus]:
    """The backends that may be used, by name. InvalidRequest where one was asked for that is not known."""
    known = {status.name: status for status in backends()}
    for name in asked.engines:
        check_choice("engine", name, known)
    return {name: status for name, status in known.items() if not asked.engines or name in asked.engines}


def _wanted(target: Target, asked: Asked) -> list[Part]:
    """The networks to sweep, those first in which the time is spent."""
    for name in asked.components:
        check_choice("component", name, [part.name for part in target.parts])
    parts = [part for part in target.parts if not asked.components or part.name in asked.components]
    return sorted(parts, key=lambda part: _ORDER.index(part.name) if part.name in _ORDER else 99)


def rows_of(probes: Path) -> int:
    """Samples in one call: the first axis of what has most axes."""
    most = max(read_probes(probes)[0].feeds.values(), key=lambda array: array.ndim)
    return int(most.shape[0]) if most.ndim else 1
