"""What is to be distilled, and how: `distill.toml`, the command line, and what stands where both are silent."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from stillhouse.check import check_choice, check_integer, check_number
from stillhouse.distill.training.progressive_chain import EDITS, GUIDANCE, METHODS
from stillhouse.distill.training.trajectory_chain import TRAJECTORY
from stillhouse.errors import InvalidRequest
from stillhouse.fit.recipe import Precision, StageRecipe
from stillhouse.json_decode import read_toml

DECODER = "decoder"
"""The name of the tiny decoder among the students."""
TEACHER = "teacher"
"""Data that the teacher draws itself."""
IMG2IMG = "img2img"
TASKS = ("text2img", IMG2IMG)
EDIT_STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of edits that a student is taught."""
WEIGHTINGS = ("v", "snr_trunc")
_FEW_STEPS = 4
_SMALL_NETWORK = 20_000_000
_MOST_HOURS = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningOverrides:
    """How long and how fast, as far as it is said; see `StageRecipe`."""

    updates: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    warmup_updates: int | None = None
    decay_fraction: float | None = None
    weight_decay: float | None = None
    ema_decay: float | None = None
    accumulation_steps: int | None = None
    precision: Precision | None = None
    patience: int | None = None
    report_every: int | None = None
    eval_every: int | None = None

    def apply_to(self, recipe: StageRecipe) -> StageRecipe:
        """The recipe with everything that is said here."""
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(recipe, **{name: value for name, value in said.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """What is to be distilled, and how.

    Args:
        rounds: steps of the teacher, and of each student after it.
        method: of `chain.METHODS`, or walks, by which steps are saved.
        task: text2img; or img2img: the student takes all of its steps for edits, too, whatever their strength.
        guidance: scales that the students will be asked for, the least and the most.
        data: an embedded model's name for its world, a folder of pictures with captions, or TEACHER: it draws them.
        prompts: a file with a prompt a line, for TEACHER.
        items: pictures to learn from; of a folder, at most so many; of walks, that the teacher makes.
        begin: of walks: a student of this teacher, a name or a directory, from which the first one goes on.
        rank: of low-rank factors, which are then all that learns; 0, every weight does.
        through: of walks, see `WalkLesson`.
        match: of walks, by the steps of a student: the weight of its `MatchLesson`; left out, it has none.
        weighting, huber, checkpointing: see `Lesson` and `ChainRecipe`.
        decoder: width of a tiny decoder that learns from the autoencoder's; 0, there is none.
        judged: pictures in each judgement on the way.
        seed: of everything that is drawn.
        max_hours: of this run, after which it stops; the next one goes on.
        learning: for every student.
        students: for some of them, by their steps, "decoder" for the tiny decoder; of a chain "guidance" for the first,
            "edits" for what img2img adds.

    Raises:
        InvalidRequest: a number outside its range, or a student that is not among the rounds.
    """

    step_counts: tuple[int, ...] = (36, 18, 9, 3)
    method: str = "progressive"
    task: str = "text2img"
    guidance: tuple[float, ...] = (1.0, 8.0)
    data: str = TEACHER
    prompts: str | None = None
    samples: int = 20_000
    init_from: str | None = None
    lora_rank: int = 0
    weighting: str = "v"
    huber: float = 0.0
    end_to_end_fraction: float = 0.0
    dmd_weights: Mapping[str, float] = field(default_factory=dict)
    gradient_checkpointing: bool = False
    decoder_width: int = 0
    eval_samples: int = 16
    seed: int = 0
    max_hours: float | None = None
    learning: LearningOverrides = LearningOverrides()
    students: Mapping[str, LearningOverrides] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("method", self.method, (*METHODS, TRAJECTORY))
        if self.init_from is not None and self.method != TRAJECTORY:
            raise InvalidRequest(f"a beginning for method {self.method}", allowed=f"method {TRAJECTORY}")
        if self.init_from is not None and self.lora_rank:
            given = "low-rank factors of one that begins as another student, by which it differs from its teacher, too"
            raise InvalidRequest(given, allowed="a beginning, or factors")
        check_choice("task", self.task, TASKS)
        check_choice("weighting", self.weighting, WEIGHTINGS)
        if len(self.guidance) != 2:
            raise InvalidRequest(f"guidance is {list(self.guidance)}", allowed="the least and the most scale: 1, 8")
        check_number("the least guidance", self.guidance[0], 1, 100)
        check_number("the most guidance", self.guidance[1], self.guidance[0], 100)
        # Of walks one is judged by.
        check_integer("items", self.samples, 2 if self.method == TRAJECTORY else 1, 100_000_000)
        check_integer("rank", self.lora_rank, 0, 4096)
        check_integer("judged", self.eval_samples, 1, 10_000)
        check_integer("decoder", self.decoder_width, 0, 4096)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        check_number("huber", self.huber, 0, 10)
        check_number("through", self.end_to_end_fraction, 0, 1)
        for name, value in (("through", self.end_to_end_fraction), ("match", self.dmd_weights)):
            if value and self.method != TRAJECTORY:
                raise InvalidRequest(f"{name} of method {self.method}", allowed=f"method {TRAJECTORY}")
        for steps, weight in self.dmd_weights.items():
            check_choice("student to match", steps, tuple(map(str, self.step_counts[1:])))
            check_number("weight of matching", weight, 0, 100)
        if self.max_hours is not None:
            check_number("max_hours", self.max_hours, 1e-6, _MOST_HOURS)
        of_a_chain = () if self.method == TRAJECTORY else (GUIDANCE, EDITS)
        for name in self.students:
            check_choice("student", name, (*of_a_chain, DECODER, *map(str, self.step_counts[1:])))

    def recipe(self, student: str, parameters: int) -> StageRecipe:
        """How one of the students learns.

        Args:
            student: GUIDANCE, EDITS, DECODER, or its steps.
            parameters: of the network.
        """
        usual = _default_recipe(student, parameters, self.lora_rank)
        return self.students.get(student, LearningOverrides()).apply_to(self.learning.apply_to(usual))


def read_distill_settings(path: Path) -> DistillSettings:
    """Settings out of a TOML file; paths in it are relative to its directory.

    Raises:
        InvalidRequest: no such file, no TOML, or a setting that does not exist or is out of its range.
    """
    settings = read_toml(DistillSettings, path, "leave --config out, and say what matters by options")
    data, prompts = path.parent / settings.data, settings.prompts
    begin = settings.init_from
    if begin is not None and (path.parent / begin).is_dir():
        begin = str(path.parent / begin)
    return replace(
        settings,
        data=str(data) if data.is_dir() else settings.data,
        prompts=None if prompts is None else str(path.parent / prompts),
        init_from=begin,
    )


def _default_recipe(student: str, parameters: int, rank: int) -> StageRecipe:
    """Where nothing is said.

    Updates are those of Meng et al. (arXiv 2210.03142, appendix): 3,000 to 5,000 for the guidance, 2,000 to 5,000 for a
    halving, and more for the last ones, whose jumps are the longest. Rates fall linearly to zero within each student
    (Salimans and Ho, arXiv 2202.00512, table of hyperparameters). Small networks take larger rates than Stable
    Diffusion does, and so do factors.
    """
    if student == DECODER:
        return StageRecipe(
            updates=5000,
            batch_size=8,
            learning_rate=1e-3,
            warmup_updates=50,
            decay_fraction=0.9,
            ema_decay=0.99,
            eval_every=500,
        )
    few = student == EDITS or (student != GUIDANCE and int(student) <= _FEW_STEPS)
    updates = 3000 if student == GUIDANCE else 5000 if few else 2000
    rate = 2e-4 if parameters < _SMALL_NETWORK else 1e-4 if rank else 1e-5
    return StageRecipe(
        updates=updates,
        batch_size=16,
        learning_rate=rate,
        warmup_updates=50,
        decay_fraction=0.95,
        ema_decay=0.99,
        eval_every=250,
    )
