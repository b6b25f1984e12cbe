"""Settings of a distillation: fields of `distill.toml` and options of the command line, with their defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from stillhouse.check import check_choice, check_integer, check_number
from stillhouse.distill.training.progressive_chain import EDITS, GUIDANCE, METHODS
from stillhouse.distill.training.trajectory_chain import TRAJECTORIES
from stillhouse.errors import InvalidRequest
from stillhouse.fit.recipe import Precision, StageRecipe
from stillhouse.validation import read_toml

DECODER = "decoder"
"""Name of the tiny decoder in `DistillSettings.students`."""
TEACHER = "teacher"
"""Value of `DistillSettings.data`: the teacher generates the data."""
IMG2IMG = "img2img"
TASKS = ("text2img", IMG2IMG)
EDIT_STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Strengths of image-to-image that a student is trained for."""
WEIGHTINGS = ("v", "snr_trunc")
_FEW_STEPS = 4
_SMALL_NETWORK = 20_000_000
_MOST_HOURS = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningOverrides:
    """Fields of a `StageRecipe` that replace the defaults; None: keep the default."""

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
        """Return a recipe with the fields of this object that are not None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(recipe, **{name: value for name, value in values.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """What is distilled, from which data, and by which method.

    Args:
        step_counts: steps of the teacher, then of each student.
        method: progressive or consistency (a chain of students), or trajectories (regression on stored trajectories).
        task: text2img; img2img: the student also uses all of its steps for edits of any strength.
        guidance: smallest and largest guidance scale of the students.
        data: an embedded model's name (scenes of Shapes), a folder of captioned pictures, or TEACHER.
        prompts: a file with one prompt on each line, for TEACHER.
        samples: number of pictures, of a folder at most; with method trajectories, number of trajectories.
        init_from: of method trajectories: name or directory of a student of this teacher, the initial weights of the
            first student. None: the teacher.
        lora_rank: rank of LoRA weights, which are then the only trained weights; 0: all weights are trained.
        end_to_end_fraction: of method trajectories, see `TrajectoryRegressionStage`.
        dmd_weights: of method trajectories: weight of `DistributionMatching` by a student's number of steps.
        weighting, huber, gradient_checkpointing: see `ChainRecipe`.
        decoder_width: width of a tiny decoder that is trained, too; 0: none.
        eval_samples: pictures of each evaluation during training.
        seed: of everything random.
        max_hours: time limit of this run; the next run resumes. None: no limit.
        learning: overrides for the recipes of all students.
        students: overrides for single students: a number of steps, "decoder", and of a chain "guidance" and "edits".

    Raises:
        InvalidRequest: a number is outside its range, or a student is not among `step_counts`.
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
        check_choice("method", self.method, (*METHODS, TRAJECTORIES))
        if self.init_from is not None and self.method != TRAJECTORIES:
            raise InvalidRequest(f"init_from with method {self.method}", allowed=f"method {TRAJECTORIES}")
        if self.init_from is not None and self.lora_rank:
            problem = (
                "init_from with lora_rank: LoRA weights cannot hold the initial student's difference from its teacher"
            )
            raise InvalidRequest(problem, allowed="one of both")
        check_choice("task", self.task, TASKS)
        check_choice("weighting", self.weighting, WEIGHTINGS)
        if len(self.guidance) != 2:
            raise InvalidRequest(
                f"guidance is {list(self.guidance)}", allowed="the smallest and the largest scale: 1, 8"
            )
        check_number("the smallest guidance", self.guidance[0], 1, 100)
        check_number("the largest guidance", self.guidance[1], self.guidance[0], 100)
        # One trajectory is held out for evaluation.
        check_integer("samples", self.samples, 2 if self.method == TRAJECTORIES else 1, 100_000_000)
        check_integer("lora_rank", self.lora_rank, 0, 4096)
        check_integer("eval_samples", self.eval_samples, 1, 10_000)
        check_integer("decoder_width", self.decoder_width, 0, 4096)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        check_number("huber", self.huber, 0, 10)
        check_number("end_to_end_fraction", self.end_to_end_fraction, 0, 1)
        for name, value in (("end_to_end_fraction", self.end_to_end_fraction), ("dmd_weights", self.dmd_weights)):
            if value and self.method != TRAJECTORIES:
                raise InvalidRequest(f"{name} with method {self.method}", allowed=f"method {TRAJECTORIES}")
        for steps, weight in self.dmd_weights.items():
            check_choice("student in dmd_weights", steps, tuple(map(str, self.step_counts[1:])))
            check_number("weight of dmd_weights", weight, 0, 100)
        if self.max_hours is not None:
            check_number("max_hours", self.max_hours, 1e-6, _MOST_HOURS)
        chain_students = () if self.method == TRAJECTORIES else (GUIDANCE, EDITS)
        for name in self.students:
            check_choice("student", name, (*chain_students, DECODER, *map(str, self.step_counts[1:])))

    def recipe(self, student: str, parameters: int) -> StageRecipe:
        """Return the recipe of a student: defaults, then `learning`, then its entry of `students`.

        Args:
            student: GUIDANCE, EDITS, DECODER, or a number of steps.
            parameters: number of weights of the network.
        """
        default = _default_recipe(student, parameters, self.lora_rank)
        return self.students.get(student, LearningOverrides()).apply_to(self.learning.apply_to(default))


def read_distill_settings(path: Path) -> DistillSettings:
    """Read settings from a TOML file; relative paths are relative to its directory.

    Raises:
        InvalidRequest: the file does not exist or is not TOML, or a setting is unknown or outside its range.
    """
    settings = read_toml(DistillSettings, path, "leave out --config and use options instead")
    data, prompts = path.parent / settings.data, settings.prompts
    init_from = settings.init_from
    if init_from is not None and (path.parent / init_from).is_dir():
        init_from = str(path.parent / init_from)
    return replace(
        settings,
        data=str(data) if data.is_dir() else settings.data,
        prompts=None if prompts is None else str(path.parent / prompts),
        init_from=init_from,
    )


def _default_recipe(student: str, parameters: int, rank: int) -> StageRecipe:
    """Return the default recipe of a student.

    Numbers of updates are those of Meng et al. (arXiv 2210.03142, appendix): 3,000 to 5,000 for guidance, 2,000 to
    5,000 for each halving, and more for the last ones, whose steps are the longest. Learning rates decay linearly to
    zero within each student (Salimans and Ho, arXiv 2202.00512, table of hyperparameters), and are larger for small
    networks and for LoRA weights.
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
    is_few_steps = student == EDITS or (student != GUIDANCE and int(student) <= _FEW_STEPS)
    updates = 3000 if student == GUIDANCE else 5000 if is_few_steps else 2000
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
