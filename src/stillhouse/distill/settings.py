"""Settings of a distillation with their defaults: entries of `distill.toml`, and options of `stillhouse distill`."""

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
"""Key in `DistillSettings.students` for the overrides of the tiny decoder's training."""
TEACHER = "teacher"
"""Value of `DistillSettings.data` with which the teacher generates the training data from prompts."""
IMG2IMG = "img2img"
TASKS = ("text2img", IMG2IMG)
EDIT_STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Strengths of image-to-image (shares of the noise schedule that are denoised) that a student is trained for."""
WEIGHTINGS = ("v", "snr_trunc")
_FEW_STEPS = 4
_SMALL_NETWORK = 20_000_000
_MOST_HOURS = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningOverrides:
    """Training hyper-parameters that replace the defaults; see `StageRecipe` for each field. None: keep the default."""

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
        """Return a copy of `recipe`; each field of this object that is not None replaces the recipe's field."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(recipe, **{name: value for name, value in values.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """Settings of a distillation: the students to train, the training data and the method.

    Args:
        step_counts: number of sampling steps of the teacher, then of each student in the order of training.
        method: progressive or consistency: each student is the teacher of the next student. trajectories: all students
            learn from stored sampling trajectories of one teacher.
        task: text2img; img2img: the last student (with method trajectories: each student) also uses all of its steps
            for edits of a picture, at any strength.
        guidance: smallest and largest guidance scale that the students are trained for.
        data: a folder of captioned pictures, "shapes" for rendered scenes of geometric figures, or "teacher" for data
            that the teacher generates from `prompts`.
        prompts: path of a text file with one prompt on each line; required where `data` is "teacher".
        samples: number of training pictures; a folder may have fewer. With method trajectories: number of
            trajectories.
        init_from: directory or name of an earlier student of this teacher, whose weights the first student starts
            from; for method trajectories only. None: the first student starts from the teacher's weights.
        lora_rank: rank of LoRA weights; only these weights and the projection of the guidance scale are then trained.
            0: all weights are trained.
        weighting: weight of the squared error of the predicted clean picture by noise level: v (SNR + 1) or snr_trunc
            (max(SNR, 1)).
        huber: width of the pseudo-Huber loss; 0: squared error.
        end_to_end_fraction: share of the examples, 0 to 1, in which a student takes all of its steps and only the end
            is compared; for method trajectories only.
        dmd_weights: weight of the distribution matching loss (DMD) by a student's number of steps; for method
            trajectories only. A student without an entry is trained without DMD.
        gradient_checkpointing: whether activations are recomputed in the backward pass, which saves memory and takes a
            third more time.
        decoder_width: number of channels of a tiny decoder that is also trained and replaces the autoencoder's
            decoder; 0: no tiny decoder.
        eval_samples: number of pictures in each evaluation during training.
        seed: decides all random numbers.
        max_hours: time limit of this run in hours; a later run resumes. None: no limit.
        learning: hyper-parameters that replace the defaults of every student's training.
        students: hyper-parameters that replace those of one student's training, by the student's number of steps or
            "decoder"; with method progressive or consistency also "guidance" (the first student) and "edits" (the
            last student of img2img).

    Raises:
        InvalidRequest: a value is outside its range, does not fit the method, or names a student that is not trained.
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
            raise InvalidRequest(f"init_from does not work with method {self.method}", allowed=f"method {TRAJECTORIES}")
        if self.init_from is not None and self.lora_rank:
            problem = (
                "init_from and lora_rank are both set: LoRA weights cannot hold the difference between the initial "
                "student and its teacher"
            )
            raise InvalidRequest(problem, allowed="only one of init_from and lora_rank")
        check_choice("task", self.task, TASKS)
        check_choice("weighting", self.weighting, WEIGHTINGS)
        if len(self.guidance) != 2:
            raise InvalidRequest(
                f"guidance is {list(self.guidance)}",
                allowed="two numbers, the smallest and the largest scale, such as 1, 8",
            )
        check_number("the smallest guidance", self.guidance[0], 1, 100)
        check_number("the largest guidance", self.guidance[1], self.guidance[0], 100)
        # Trajectory regression needs at least two samples, because one trajectory is kept for evaluation.
        check_integer("samples", self.samples, 2 if self.method == TRAJECTORIES else 1, 100_000_000)
        check_integer("lora_rank", self.lora_rank, 0, 4096)
        check_integer("eval_samples", self.eval_samples, 1, 10_000)
        check_integer("decoder_width", self.decoder_width, 0, 4096)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        check_number("huber", self.huber, 0, 10)
        check_number("end_to_end_fraction", self.end_to_end_fraction, 0, 1)
        for name, value in (("end_to_end_fraction", self.end_to_end_fraction), ("dmd_weights", self.dmd_weights)):
            if value and self.method != TRAJECTORIES:
                raise InvalidRequest(
                    f"{name} does not work with method {self.method}", allowed=f"method {TRAJECTORIES}"
                )
        for steps, weight in self.dmd_weights.items():
            check_choice("student in dmd_weights", steps, tuple(map(str, self.step_counts[1:])))
            check_number("weight of dmd_weights", weight, 0, 100)
        if self.max_hours is not None:
            check_number("max_hours", self.max_hours, 1e-6, _MOST_HOURS)
        chain_students = () if self.method == TRAJECTORIES else (GUIDANCE, EDITS)
        for name in self.students:
            check_choice("student", name, (*chain_students, DECODER, *map(str, self.step_counts[1:])))

    def recipe(self, student: str, parameters: int) -> StageRecipe:
        """Return the training hyper-parameters of a student.

        The student's entry of `students` takes precedence over `learning`, and `learning` over the defaults.

        Args:
            student: "guidance", "edits", "decoder", or the student's number of steps as a string.
            parameters: number of weights of the network, because small networks have a larger default learning rate.
        """
        default = _default_recipe(student, parameters, self.lora_rank)
        return self.students.get(student, LearningOverrides()).apply_to(self.learning.apply_to(default))


def read_distill_settings(path: Path) -> DistillSettings:
    """Read settings from a TOML file; relative paths in the file are relative to the file's directory.

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
    """Return the default training hyper-parameters of a student.

    The numbers of updates are those of Meng et al. (arXiv 2210.03142, appendix): 3,000 to 5,000 to distil guidance,
    2,000 to 5,000 to halve the number of steps, and more for the students with the fewest and longest steps. The
    learning rate decays to zero in the training of each student (Salimans and Ho, arXiv 2202.00512, table of
    hyperparameters). The rate is larger for networks of less than 20 million weights and for LoRA weights.

    Args:
        student: "guidance", "edits", "decoder", or the student's number of steps as a string.
        parameters: number of weights of the network.
        rank: rank of LoRA weights; 0: training without LoRA.
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
