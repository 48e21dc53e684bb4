"""`tracekit bench …`: measurements on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from tracekit.cli._console import JsonOption, console, print_json, progress_reporter
from tracekit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracekit.bench import Bound, Line, PrunersReport

__all__ = ["app"]

app = typer.Typer(help="Measure on this machine, beside the limits it sets.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure on this machine, beside the limits it sets."""


@app.command("model")
def model(
    preset: Annotated[
        str, typer.Option(help="mla-7b, mla-1layer (one layer at full width) or reference.")
    ] = "mla-1layer",
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    rates: Annotated[str, typer.Option(help="Pruned per cent of either modality.", metavar="R[,R…]")] = "50,60,70,80",
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; medians are shown.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads within an operation.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Time one control step with random weights at the widths of the release: as it runs, with reuse, and pruned."""
    from tracekit.bench import bench_model

    if dtype not in {"float32", "bfloat16"}:
        raise ConfigError(f"--dtype {dtype}: choose float32 or bfloat16")
    if rounds < 1:
        raise ConfigError(f"--rounds {rounds}: give at least 1")
    with progress_reporter() as report:
        result = bench_model(
            preset,
            device=device,
            dtype=dtype,
            rates=_rates(rates),
            rounds=rounds,
            threads=threads,
            progress=report,
        )
    if as_json:
        print_json(result.to_json())
        return
    screen = console()
    screen.print(
        f"{preset}, {dtype} on {device}, random weights. Limits, measured beside every line (medians): "
        f"{result.limits.matrix_rate / 1e9:.0f} GFLOP/s, {result.limits.bandwidth / 1e9:.1f} GB/s.",
        highlight=False,
    )
    screen.print(
        _table("Parts", result.parts),
        _table("Control steps (encoders, decoder, action head; no lm_head)", result.steps),
    )
    if result.bounds:
        screen.print(_bounds(result.bounds))


@app.command("capture")
def capture(
    preset: Annotated[str, typer.Option(help="Policy: mla-7b, mla-1layer or reference.")] = "mla-7b",
    as_json: JsonOption = False,
) -> None:
    """Show the bytes that a recorded control step takes, by key and capture preset; from shapes, nothing is run."""
    from tracekit.bench import bench_capture

    report = bench_capture(preset)
    if as_json:
        print_json(report.to_json())
        return
    table = Table(title=f"{preset}: kB per control step, uncompressed", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in report.by_capture:
        table.add_column(name, justify="right")
    largest: dict[str, int] = {}
    for sizes in report.by_capture.values():
        largest |= {key: max(size, largest.get(key, 0)) for key, size in sizes.items()}
    for key in sorted(largest, key=lambda key: (-largest[key], key)):
        row = [sizes.get(key) for sizes in report.by_capture.values()]
        table.add_row(key, *("–" if size is None else f"{size / 1e3:,.1f}" for size in row))
    table.add_section()
    table.add_row("total", *(f"{total / 1e3:,.1f}" for total in report.totals.values()))
    screen = console()
    screen.print(table)
    screen.print(
        f"Beside it: hidden states and attention maps of all layers, {report.eager_per_pass / 1e6:,.0f} MB for each of "
        f"{report.passes} passes.",
        highlight=False,
    )


@app.command("pruners")
def pruners(
    pruner: Annotated[
        list[str] | None, typer.Option("--pruner", metavar="KIND", help="Only this kind. Repeatable; all by default.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; medians are shown.")] = 7,
    as_json: JsonOption = False,
) -> None:
    """Time one decision of every pruner at the sizes of the release, and the tri-stage pruner stage by stage."""
    from tracekit.bench import bench_pruners

    with progress_reporter() as report:
        result = bench_pruners(rounds=rounds, kinds=pruner or (), progress=report)
    if as_json:
        print_json(result.to_json())
        return
    screen = console()
    screen.print(_decisions(result))
    for kind, why in result.skipped.items():
        screen.print(f"{kind} was left out: {why}", highlight=False, markup=False, soft_wrap=True)


def _decisions(report: PrunersReport) -> Table:
    title = "One decision from random inputs: 256 image and 256 point tokens, 32 layers of 32 heads"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    stages = ("stage3", "stage1", "stage2", "fuse")
    headings = ("ms", "± half range", "µs/step in an episode", "reduction ms", "sum ms", *(f"{s} ms" for s in stages))
    for name in headings:
        table.add_column(name, justify="right")
    for name, cost in report.pruners.items():
        table.add_row(
            name,
            f"{cost.single_ms:.3f}",
            f"{cost.spread_ms / 2:.3f}",
            f"{cost.batched_us:,.1f}" + ("" if cost.in_one_call else " *"),
            "" if cost.reduction_ms is None else f"{cost.reduction_ms:.2f}",
            f"{cost.total_ms:.2f}",
            *("" if cost.stages_ms is None else f"{cost.stages_ms[stage]:.3f}" for stage in stages),
        )
    paper = report.to_json()["paper_ms"]
    published = ("" if stage == "fuse" else f"{paper[stage]:.0f}" for stage in stages)
    table.add_section()
    table.add_row("published, on an A100", "", "", "", "", f"{paper['full']:.0f}", *published)
    table.caption = (
        "* decided one by one. Pruners without a reduction read the observables themselves. The published cost is of "
        "undefined scope."
    )
    table.caption_justify = "left"
    return table


def _rates(text: str) -> list[float]:
    try:
        return [float(part) / 100 for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--rates {text}: give per cents separated by commas, such as 50,70") from None


def _table(title: str, lines: Sequence[Line]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in ("ms", "± half range", "visual tokens", "GFLOP", "GB", "limit ms", "limit / measured"):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(
            line.name,
            f"{line.median_ms:.1f}",
            f"{line.spread_ms / 2:.1f}",
            "" if line.tokens is None else str(line.tokens),
            f"{line.flops / 1e9:.1f}",
            f"{line.nbytes / 1e9:.2f}",
            f"{line.limit_ms:.1f}",
            f"{line.efficiency:.2f}",
        )
    return table


def _bounds(bounds: Sequence[Bound]) -> Table:
    table = Table(title="Bounds (medians of the rounds' own ratios)", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in ("measured", "at most", "verdict"):
        table.add_column(name, justify="right")
    for bound in bounds:
        verdict = "holds" if bound.ok else "missed"
        table.add_row(bound.name, f"{bound.ratio:.3f}", f"{bound.most:.2f}", verdict)
    return table
