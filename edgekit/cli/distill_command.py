"""``edgekit distill``. As in app.py, Typer reads the annotations at run time."""

from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import typer

from edgekit.cli import console
from edgekit.cli.arguments import LAST_SEED, LEAST_MB, MOST_MB, Json, Offline, Revision
from edgekit.cli.progress import Bars
from edgekit.cli.recover_command import MOST_MINUTES, MOST_STEPS, SmallTraining
from edgekit.errors import ConfigError

CacheMb = Annotated[
    float | None,
    typer.Option(min=0.01, max=MOST_MB, help="Keep the teacher's likeliest tokens on disk, in as many MB."),
]
Divergence = Annotated[Literal["forward", "reverse", "skewed"], typer.Option(help="KL divergence from the teacher.")]
RecipeName = Annotated[
    str,
    typer.Option(help="The recipe that --size-mb counts with and --recover-minutes trains on: int4, small, tiny."),
]
RecoverMinutes = Annotated[
    float | None,
    typer.Option(
        min=0.1, max=MOST_MINUTES, help="Then train on the grids of --recipe, for `build` to take as they are."
    ),
]
StudentMb = Annotated[
    float | None, typer.Option(min=LEAST_MB, max=MOST_MB, help="Size of its bundle built with --recipe, in MB.")
]
Beside = Annotated[
    list[str] | None, typer.Option(help="A smaller model to compare with, of the same vocabulary; repeatable.")
]
Steps = Annotated[
    int | None, typer.Option(min=1, max=MOST_STEPS, help="Steps to heal.", show_default="what fits into --minutes")
]
Keep = Annotated[float | None, typer.Option(min=0.01, max=0.99, help="Share of the weights in the layers to keep.")]
OwnStudent = Annotated[str | None, typer.Option(help="A student of its own: a folder, or one with config.json alone.")]
TextNames = Annotated[
    str,
    typer.Option(
        metavar="TEXT", help="What to learn on: packaged, self (what the teacher writes), or files, by commas."
    ),
]
TeacherName = Annotated[
    str, typer.Argument(metavar="TEACHER", help="A folder, a hub id, a .gguf file or a packaged name.")
]
KvHeads = Annotated[int | None, typer.Option(min=1, max=10_000, help="Key-value heads to keep, with their queries.")]


def distill(
    teacher: TeacherName,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The student's folder; it must not exist yet.")],
    keep: Keep = None,
    layers: Annotated[int | None, typer.Option(min=1, max=10_000, help="Layers to keep.")] = None,
    ffn: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="Feed-forward channels to keep.")] = None,
    kv_heads: KvHeads = None,
    size_mb: StudentMb = None,
    recipe: RecipeName = "small",
    student: OwnStudent = None,
    text: TextNames = "packaged",
    minutes: Annotated[float, typer.Option(min=0.1, max=MOST_MINUTES, help="Time to heal.")] = 30.0,
    recover_minutes: RecoverMinutes = None,
    steps: Steps = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Windows of 512 tokens a step.")] = 2,
    divergence: Divergence = "forward",
    temperature: Annotated[float, typer.Option(min=0.1, max=100, help="Divides the logits of both.")] = 1.0,
    cache_mb: CacheMb = None,
    ce: Annotated[bool, typer.Option("--ce", help="Also train on the text alone, for comparison.")] = False,
    beside: Beside = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Write the weights as bfloat16 instead of float32.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Seed of the order of the text.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out damaged lines, and count them.")] = False,
    small_memory: SmallTraining = False,
    offline: Offline = False,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Make a smaller student of a model: a plain Hugging Face folder.

    Layers and channels are left out, and what is left is trained to predict what the teacher predicts. With
    --recover-minutes it is then trained on the grids of --recipe. The run is kept in OUT.run: Ctrl-C stops, and the
    same command goes on. Needs the extra `learn`.
    """
    from edgekit.learn import require_packages

    require_packages()
    from edgekit.build.pipeline import sampler_of
    from edgekit.cli.documents import Student
    from edgekit.cli.learn_tables import point_line, read_lines, student_lines
    from edgekit.learn.distill import distill, read_text
    from edgekit.learn.heal import Method
    from edgekit.learn.losses import Loss
    from edgekit.learn.student import require_free
    from edgekit.source import open_model

    wish = _Wish(keep, layers, ffn, kv_heads, size_mb, recipe, student)
    require_free(out)
    start = perf_counter()
    method = Method(Loss(divergence, temperature), minutes, steps, batch, seed=seed, small_memory=small_memory)
    recovery = None if recover_minutes is None else _recovery(recipe, recover_minutes, batch, seed)
    with Bars() as progress:
        checkpoint = open_model(teacher, revision=revision, offline=offline, progress=progress)
        wanted = wish.resolve(checkpoint, offline)
        sample = sampler_of(teacher, revision=revision, offline=offline, progress=progress)
        read = read_text(
            text.split(","), checkpoint, method, skip_bad=skip_bad, offline=offline, sample=sample, progress=progress
        )
        for line in read_lines(read):
            console.note(line)
        made = distill(
            checkpoint,
            wanted,
            read,
            method,
            out=out,
            stored="bfloat16" if bf16 else "float32",
            cache_bytes=None if cache_mb is None else int(cache_mb * 1e6),
            recovery=recovery,
            control=ce,
            beside=[open_model(name, offline=offline, progress=progress) for name in beside or ()],
            report=lambda point: console.note(point_line(point)),
            note=console.note,
            progress=progress,
        )
    if made is None:  # not the first of several processes
        return
    result = Student.of(made, recipe if size_mb is not None or recovery else "", perf_counter() - start)
    console.emit(result) if json else console.show(*student_lines(result))


def _recovery(recipe: str, minutes: float, batch: int, seed: int) -> Any:
    """Training on the grids of a recipe for the CPU."""
    from edgekit.config.recipe import load_recipe, load_target
    from edgekit.learn.plan import Effort
    from edgekit.learn.student_on_grid import Recovery

    return Recovery(load_recipe(recipe), load_target("cpu"), Effort(minutes=minutes, batch=batch, seed=seed))


class _Wish:
    """What the student is to be, in one of four ways."""

    def __init__(self, *wishes: Any) -> None:
        self.keep, self.layers, self.ffn, self.kv_heads, self.size_mb, self.recipe, self.student = wishes
        self._require_one()

    def _require_one(self) -> None:
        """Raise ConfigError unless exactly one way was chosen."""
        numbers = (self.layers, self.ffn, self.kv_heads)
        ways = (self.keep, self.size_mb, self.student, next((n for n in numbers if n is not None), None))
        if sum(way is not None for way in ways) != 1:
            raise ConfigError(
                "a student is wanted in one way: `keep`, `size_mb`, `student`, or `layers`, `ffn` and `kv_heads`",
                "give one of them, such as `keep=0.8`",
            )

    def resolve(self, teacher: Any, offline: bool) -> Any:
        """The shape, or the student as a checkpoint."""
        from edgekit.config.recipe import load_recipe, load_target
        from edgekit.learn.shapes import shape_for_share, shape_for_size, shape_of
        from edgekit.source import open_config_only, open_model

        if self.student is not None:
            path = Path(self.student)
            alone = path.is_dir() and not any(path.glob("*.safetensors"))
            return (open_config_only if alone else open_model)(self.student, offline=offline)
        if self.keep is not None:
            return shape_for_share(teacher.spec, self.keep)
        if self.size_mb is not None:
            return shape_for_size(teacher, load_recipe(self.recipe), load_target("cpu"), int(self.size_mb * 1e6))
        return shape_of(teacher.spec, layers=self.layers, ffn=self.ffn, kv_heads=self.kv_heads)
