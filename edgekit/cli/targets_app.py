"""``edgekit targets``: the device files. As in app.py, Typer reads the annotations at run time."""

from typing import Annotated

import typer

from edgekit.cli import console
from edgekit.cli.arguments import Json, Model, Offline, Revision, numbers
from edgekit.cli.commands import Commands
from edgekit.cli.progress import Bars
from edgekit.errors import GateFailed
from edgekit.types import Activations, Precision

targets = Commands(
    help="List, show and check device files.", epilog="Example:  edgekit targets show cpu", no_args_is_help=True
)


@targets.command("list", epilog="Example:  edgekit targets list --json")
def targets_list(json: Json = False) -> None:
    """List the devices that ship with edgekit."""
    from edgekit.cli.documents import TargetList
    from edgekit.cli.target_tables import targets_table
    from edgekit.config.measured import measured_speeds, read_records, with_measured
    from edgekit.config.recipe import list_targets, load_target

    records = read_records()
    known = tuple(with_measured(t, measured_speeds(t, records)) for t in map(load_target, list_targets()))
    console.emit(TargetList(known)) if json else console.show(targets_table(known))


@targets.command("show", epilog="Example:  edgekit targets show portable")
def targets_show(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A name from the list, or a .toml file.")],
    json: Json = False,
) -> None:
    """Show a device: every number with its source, and the rewrites its graphs go through."""
    from edgekit.cli.documents import TargetCard
    from edgekit.cli.target_tables import target_tables
    from edgekit.config.measured import measured_speeds, read_records, with_measured
    from edgekit.config.recipe import load_target
    from edgekit.lower import fixes

    described = load_target(target)
    speeds = measured_speeds(described, read_records())
    card = TargetCard.of(with_measured(described, speeds), fixes(), speeds)
    console.emit(card) if json else console.show(*target_tables(card))


@targets.command("lint", epilog="Example:  edgekit targets lint my-phone.toml")
def targets_lint(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TARGET...]", help="Names from the list, or .toml files.", show_default="all"),
    ] = None,
    json: Json = False,
) -> None:
    """Look for problems in device files.

    Finds numbers without a source, unknown names, and missing operators that no rewrite replaces, in the files of
    devices and NPU families. Exits with code 3 when there is a problem.
    """
    from edgekit.build.target_lint import lint_targets
    from edgekit.cli.target_tables import lint_tables

    lint = lint_targets(names or ())
    console.emit(lint) if json else console.show(*lint_tables(lint))
    if lint.problems:
        files = dict.fromkeys(p.file for p in lint.problems)
        count = f"{len(lint.problems)} problem{'s' * (len(lint.problems) > 1)}"
        raise GateFailed(f"{count} in {', '.join(files)}", lint.problems[0].hint)


@targets.command("check", epilog="Example:  edgekit targets check smollm2-135m --target galaxy-s24 --context 256,1024")
def targets_check(
    model: Model,
    *,
    target: Annotated[list[str], typer.Option(help="A device with an NPU, or a .toml file; repeatable.")],
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the weights.", show_default="the device's first")
    ] = None,
    activations: Annotated[
        Activations | None,
        typer.Option(help="Number format of the NPU's activations.", show_default="the device's first"),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(help="Sizes of the KV cache in tokens, separated by commas.", show_default="the device's"),
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Compile all layers (minutes).")] = False,
    offline: Offline = False,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Check whether a model compiles for a device's NPU.

    Compiles one layer and the head, which takes seconds, and writes no files. Shows where each node runs, why nodes are
    refused and which rewrite in edgekit/lower helps, and the DRAM bytes of a token at each context. Exits with code 3
    when a node would run on the CPU.
    """
    from edgekit.build.dry_run import check_targets, require_compiled
    from edgekit.cli.npu_tables import check_tables

    contexts = numbers("--context", context, 2) if context else ()
    with Bars() as progress:
        check = check_targets(
            model,
            target,
            precision=precision,
            activations=activations,
            contexts=contexts,
            whole=whole,
            revision=revision,
            offline=offline,
            progress=progress,
        )
    console.emit(check) if json else console.show(*check_tables(check))
    require_compiled(check)
