"""Whole pictures: the chosen networks together, then ways to walk with them, all beside the plain loops."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from stillhouse.accelerate.attempt import asked
from stillhouse.accelerate.candidate import PIPELINE, Candidate
from stillhouse.accelerate.check import check_pictures, missed, paired_gain
from stillhouse.accelerate.choose import best_of
from stillhouse.accelerate.prompts import captions, compared, has_oracle, is_heavy
from stillhouse.accelerate.race import Effort, race
from stillhouse.accelerate.report import Bounds, Report
from stillhouse.accelerate.strip import Drawn, read_drawn, write_strip
from stillhouse.accelerate.subject import LOG, Subject, SubjectFailed
from stillhouse.accelerate.target import TRIALS, Target, original
from stillhouse.accelerate.task import Task
from stillhouse.accelerate.trial import Pictures, Trial
from stillhouse.accelerate.walks import combinations, cost, ladders, other_samplers, request_fields, walk
from stillhouse.backends.cut import cut_unet
from stillhouse.core import ImageRequest
from stillhouse.errors import PipelineError, RuntimeMissing
from stillhouse.measure.clock import alternate, paired_ratio, summarise
from stillhouse.models.manifest import Component, Manifest, StepCache, read_manifest

ROUGH, SURE = 24, 128
"""Pictures by which a way to walk is first looked at, and by which it is accepted, where an oracle reads them."""
_LOOKS = 8
"""Combinations that are looked at, from the cheapest."""
_FEW = 4
"""Pictures of the plain loops, which differ by rounding only."""
_TRIES = 4
"""Combinations that are drawn in full before the search is content with less."""
_SLACK = 4.2
"""Points that a rough score may fall beyond the bound: one picture of `ROUGH`."""
_PAYS = 1.05
"""Of the plain walk's speed, what a way to walk must reach to be gone on with."""
_FINAL_ROUNDS = 10
_BEFORE_FINAL = 0.9
"""Of a time budget, what may be gone before the final."""
_EFFORT = Effort(least=3, most=4, seconds=3.0)
_GLANCE = Effort(least=3, most=3)
_LIKELY = 30.0
"""dB to the plain walk's pictures below which no way to walk was seen to keep its score; it is not drawn in full."""


class Sweeping(Protocol):
    """What the search needs of the sweep that it is a part of."""

    target: Target
    report: Report
    tell: Callable[[str, float, float], None]

    @property
    def requests(self) -> Sequence[ImageRequest]:
        """What the user wants drawn; empty: whatever is usual."""

    @property
    def threads(self) -> int | None:
        """At most so many for each network."""

    @property
    def limit(self) -> float:
        """Seconds that a child may take for one answer."""

    def add(self, trial: Trial) -> None:
        """Put a trial into the report."""

    def known(self, candidate: Candidate) -> Trial | None:
        """What was found out of it before."""

    def left(self, share: float) -> float:
        """Seconds left of the budget's share."""

    def chosen(self) -> dict[str, Component]:
        """The best components found so far."""


PLAIN = Candidate(PIPELINE, "onnxruntime", "loop")
"""The pipeline's own walk on onnxruntime in float32: what ratios of whole pictures refer to."""
DEFAULT = Candidate(PIPELINE, "openvino", "loop", "auto")
"""The same on OpenVINO as it comes, in whatever precision it prefers."""
CHOSEN = walk({})
"""The same on the chosen networks."""


def sweep_walks(sweep: Sweeping) -> None:
    """Try whole pictures; every trial goes into the sweep's report."""
    manifest = read_manifest(sweep.target.directory)
    if is_heavy(manifest):
        for ladder in ladders(manifest, caches=False):
            for rung in ladder.rungs:
                reason = "one picture takes minutes on this machine, so whole pictures are not compared"
                sweep.add(Trial(walk(rung), "skipped", reason))
        return
    with ExitStack() as stack:
        search = _Search(sweep, manifest, stack)
        if search.begin():
            search.climb()
            search.combine()
            search.final()


def step_cache(directory: Path, components: Mapping[str, Component]) -> StepCache | None:
    """The U-Net's graph in two depths, made beside it; None where it cannot be cut, or a made graph has its place."""
    graph = components["unet"].graph
    if graph != original(directory)["unet"].graph:
        return None
    try:
        cut = cut_unet(directory / graph)
    except (PipelineError, RuntimeMissing):
        return None
    return StepCache(*(path.relative_to(directory).as_posix() for path in (cut.full, cut.shallow)))


@dataclass(slots=True)
class _Looked:
    """What was drawn of one way to walk: which pictures were right, and the pictures."""

    drawn: Drawn
    correct: list[bool] | None


@dataclass(slots=True)
class _Search:
    sweep: Sweeping
    manifest: Manifest
    stack: ExitStack
    subjects: dict[str, Subject] = field(default_factory=dict)
    passing: dict[str, list[Mapping[str, str]]] = field(default_factory=dict)
    cache: StepCache | None = None
    secured: Mapping[str, str] = field(default_factory=dict)
    rough: _Looked | None = None
    sure: _Looked | None = None

    def begin(self) -> bool:
        """Open the plain loops and the chosen networks, and draw what others are compared with."""
        before = original(self.sweep.target.directory)
        plain = {name: Component(one.graph, one.weights) for name, one in before.items()}
        default = {name: replace(one, backend="openvino", precision="auto") for name, one in plain.items()}
        chosen = self.sweep.chosen()
        self.cache = step_cache(self.sweep.target.directory, chosen)
        for candidate, components in ((PLAIN, plain), (DEFAULT, default), (CHOSEN, chosen)):
            cache = self.cache if candidate is CHOSEN else None
            if not self._open(candidate, components, cache) and candidate is not DEFAULT:
                return False
        self.sweep.report = replace(self.sweep.report, baselines={**self.sweep.report.baselines, PIPELINE: PLAIN.key})
        plain_pictures = self._look(PLAIN, {}, _FEW)
        for candidate in (PLAIN, DEFAULT, CHOSEN):
            if candidate.key in self.subjects:
                looked = plain_pictures if candidate is PLAIN else self._look(candidate, {}, _FEW)
                self._measure(candidate, {}, looked, plain_pictures)
        self.rough = self._look(CHOSEN, {}, ROUGH)
        return True

    def climb(self) -> None:
        """On each ladder, the boldest rung that passes roughly, by bisection."""
        for ladder in ladders(self.manifest, caches=self.cache is not None):
            low, high = 0, len(ladder.rungs)
            while low < high and self.sweep.left(_BEFORE_FINAL) > 0:
                middle = (low + high) // 2
                self.sweep.tell(f"pictures: {ladder.kind}", middle, len(ladder.rungs))
                if self._passes(ladder.rungs[middle]):
                    self.passing.setdefault(ladder.kind, []).append(ladder.rungs[middle])
                    low = middle + 1
                else:
                    high = middle
            if ladder.kind == "steps":
                self._secure()

    def _secure(self) -> None:
        """Of the rungs of steps the boldest that passes in full, before time goes into what may gain more."""
        for rung in self.passing.get("steps", [])[::-1]:
            if self.sweep.left(_BEFORE_FINAL) > 0 and self._passes_surely(rung):
                self.secured = rung
                break
        for options in other_samplers(self.secured) if self.secured else ():
            if self.sweep.left(_BEFORE_FINAL) > 0 and self._passes(options):
                self.passing["steps"].append(options)

    def combine(self) -> None:
        """Combinations of what passed that cost less than what is secured, cheapest first, until one passes in full."""
        enough = cost(self.manifest, self.secured)
        ways = [options for options in combinations(self.passing) if cost(self.manifest, options) < enough]
        ways.sort(key=lambda options: cost(self.manifest, options))
        tries = 0
        for options in ways[:_LOOKS]:
            if self.sweep.left(_BEFORE_FINAL) <= 0 or tries == _TRIES:
                break
            self.sweep.tell("pictures: combinations", tries, _TRIES)
            if not self._passes(options):
                continue
            tries += 1
            if self._passes_surely(options):
                return

    def final(self) -> None:
        """The plain loops and the fastest way to walk, timed in the same rounds."""
        best = best_of([one for one in self.sweep.report.of(PIPELINE) if one.candidate.recipe == "walk"], "latency")
        ways = {PLAIN.key: PLAIN, DEFAULT.key: DEFAULT, CHOSEN.key: CHOSEN}
        if best is not None:
            ways[best.candidate.key] = best.candidate
        laps = {key: self._lap(one) for key, one in ways.items() if self._subject(one)}
        self.sweep.tell("pictures: final", 0, 1)
        seconds = alternate({key: partial(lap, 1) for key, lap in laps.items()}, _FINAL_ROUNDS)
        for key, taken in seconds.items():
            trial = self.sweep.known(ways[key])
            if trial is not None:
                ratio = paired_ratio(seconds[PLAIN.key], taken)
                self.sweep.add(replace(trial, seconds=summarise(taken), ratio=ratio))

    def _open(self, candidate: Candidate, components: Mapping[str, Component], cache: StepCache | None) -> bool:
        folder = self._folder(candidate)
        directory = str(self.sweep.target.directory.resolve())
        task = Task(
            candidate,
            graph="",
            folder=str(folder),
            artefact="",
            threads=self.sweep.threads,
            pipeline=directory,
            components=components,
            step_cache=cache,
        )
        subject = self.stack.enter_context(Subject(task))
        try:
            subject.ask("picture", self._request({}), limit=self.sweep.limit)
        except SubjectFailed as failure:
            self.sweep.add(Trial(candidate, "failed", str(failure), log=self._relative(folder / LOG)))
            return False
        self.subjects[candidate.key] = subject
        return True

    def _passes(self, options: Mapping[str, str]) -> bool:
        """Whether a way to walk pays and passes roughly; its trial is in the report, to be looked at again."""
        candidate = walk(options)
        trial = self.sweep.known(candidate)
        if trial is None:
            assert self.rough is not None
            if not self._pays(candidate):
                return False
            trial = self._measure(candidate, options, self._look(candidate, options, ROUGH), self.rough)
        if trial.pictures is None or trial.pictures.psnr < _LIKELY:
            return False
        return trial.status == "accepted" or "not yet" in trial.reason

    def _pays(self, candidate: Candidate) -> bool:
        """Whether it is faster than the plain walk at all: on cores that each take a row, a row less saves nothing."""
        outcome = race(self._lap(CHOSEN), self._lap(candidate), _GLANCE)
        if outcome.ratio.value >= _PAYS:
            return True
        reason = f"it saves nothing here: {outcome.ratio.value:.2f} times as fast as the plain walk"
        self.sweep.add(Trial(candidate, "rejected", reason))
        return False

    def _passes_surely(self, options: Mapping[str, str]) -> bool:
        """Whether it passes on many pictures, drawn in portions until the answer is no, or all are drawn."""
        candidate = walk(options)
        if not has_oracle(self.sweep.target.directory):
            return (self.sweep.known(candidate) or Trial(candidate, "failed")).status == "accepted"
        if self.sure is None:
            looks = [self.sweep.known(CHOSEN), self.sweep.known(candidate)]
            needed = SURE * sum(one.seconds.median for one in looks if one and one.seconds)
            if self.sweep.left(_BEFORE_FINAL) < needed:
                return False
            self.sure = self._look(CHOSEN, {}, SURE)
            self._measure(CHOSEN, {}, self.sure, self.sure)
        looked = self._look(candidate, options, SURE // 2)
        if _is_lost(self.sure, looked, self.sweep.report.bounds):
            base = _Looked(self.sure.drawn.first(SURE // 2), (self.sure.correct or [])[: SURE // 2])
            return self._measure(candidate, options, looked, base).status == "accepted"
        looked = self._look(candidate, options, SURE)
        return self._measure(candidate, options, looked, self.sure).status == "accepted"

    def _look(self, candidate: Candidate, options: Mapping[str, str], count: int) -> _Looked:
        """Draw with a way to walk, and read the pictures where there is an oracle."""
        subject = self._subject(candidate)
        assert subject is not None
        if not has_oracle(self.sweep.target.directory):
            requests = compared(self.sweep.target.directory, self.sweep.requests)
            return _Looked(self._draw(subject, requests, options), None)
        from stillhouse.models.shapes.oracle import score

        described = captions(count)
        drawn = self._draw(subject, [request for _, request in described], options)
        pairs = zip(drawn.pictures, described, strict=True)
        return _Looked(drawn, [bool(score(picture, one).all_correct) for picture, (one, _) in pairs])

    def _draw(self, subject: Subject, requests: Sequence[ImageRequest], options: Mapping[str, str]) -> Drawn:
        fields = request_fields(options)
        told = [asked(replace(request, **fields)) for request in requests]  # type: ignore[arg-type]
        subject.ask("draw", told, limit=self.sweep.limit)
        return read_drawn(subject.folder)

    def _measure(self, candidate: Candidate, options: Mapping[str, str], looked: _Looked, base: _Looked) -> Trial:
        folder = self._folder(candidate)
        folder.mkdir(parents=True, exist_ok=True)
        files = write_strip(folder, looked.drawn, self.sweep.target.directory)
        correct = None if looked.correct is None or base.correct is None else (base.correct, looked.correct)
        latents = (base.drawn.latents, looked.drawn.latents)
        pictures = check_pictures(base.drawn.pictures, looked.drawn.pictures, latents, correct, files)
        subject = self._subject(candidate)
        assert subject is not None
        outcome = race(self._lap(PLAIN), self._lap(candidate), _EFFORT)
        trial = Trial(
            candidate,
            "accepted",
            pictures=pictures,
            seconds=outcome.candidate,
            ratio=outcome.ratio,
            peak_bytes=subject.peak,
        )
        trial = _judged(trial, self.sweep.report.bounds, pictures)
        self.sweep.add(trial)
        return trial

    def _lap(self, candidate: Candidate) -> Callable[[int], float]:
        subject = self._subject(candidate)
        assert subject is not None
        request = self._request(candidate.options if candidate.recipe == "walk" else {})
        return lambda calls: sum(float(subject.ask("picture", request, limit=self.sweep.limit)) for _ in range(calls))

    def _request(self, options: Mapping[str, str]) -> dict[str, object]:
        (request, *_) = compared(self.sweep.target.directory, self.sweep.requests)
        return asked(replace(request, **request_fields(options)))  # type: ignore[arg-type]

    def _subject(self, candidate: Candidate) -> Subject | None:
        """The process that draws as the candidate does; ways to walk share the one of the chosen networks."""
        return self.subjects.get(CHOSEN.key if candidate.recipe == "walk" else candidate.key)

    def _folder(self, candidate: Candidate) -> Path:
        return (self.sweep.target.directory / TRIALS / PIPELINE / candidate.key).resolve()

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.sweep.target.directory.resolve()).as_posix()


def _is_lost(base: _Looked, looked: _Looked, bounds: Bounds) -> bool:
    """Whether the rest of the pictures can hardly bring the score back: even the interval's upper end misses it."""
    if base.correct is None or looked.correct is None or bounds.max_score_drop is None:
        return False
    mean, _, high = paired_gain(base.correct[: len(looked.correct)], looked.correct)
    return 100 * (mean + high) / 2 < -bounds.max_score_drop


def _judged(trial: Trial, bounds: Bounds, pictures: Pictures) -> Trial:
    """The trial with its verdict. A score over few pictures can reject a way to walk, and cannot accept it."""
    is_loop = trial.candidate.recipe == "loop" or not trial.candidate.options
    if is_loop:
        return trial
    if pictures.score is None or pictures.count >= SURE:
        reason = missed(trial, bounds)
        return replace(trial, status="rejected" if reason else "accepted", reason=reason)
    slack = None if bounds.max_score_drop is None else bounds.max_score_drop + _SLACK
    if pictures.count > ROUGH:
        slack = bounds.max_score_drop
    reason = missed(trial, replace(bounds, max_score_drop=slack, min_score=None))
    if reason:
        return replace(trial, status="rejected", reason=reason)
    reason = f"right on {pictures.count} pictures, not yet looked at on {SURE}: a faster one was tried first"
    return replace(trial, status="skipped", reason=reason)
