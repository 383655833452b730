"""A run checked without running it: data to be had, memory of every GPU, stages and decisions, hours and cost from measured rates.

Nothing is written and no cluster is started.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

from proxymix.artifacts import write_text
from proxymix.config import Config, load_config
from proxymix.errors import UserError
from proxymix.planning.checks import check_windows
from proxymix.planning.geometry import Shape, architecture, shape_of
from proxymix.planning.gpus import gpu_needs, proxies_on_a_gpu
from proxymix.planning.measured import measured_rates
from proxymix.planning.memory import GIB, ScoringMemory, TuningMemory, proxy_memory, scoring_memory, tuning_memory
from proxymix.planning.reach import Found, every_source, reachable
from proxymix.planning.work import Rates, Work, hours_of, read_rates, total_hours, work_of

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Hardware:
    """What there is."""

    gpus: int
    memory_gib: float
    """Of each."""
    name: str

    def __str__(self) -> str:
        return f"{self.gpus} × {self.name} of {self.memory_gib:g} GiB"


def plan(config: Config, *, gpus: int, memory_gib: float, gpu_name: str, rates: Rates, require_data: bool, out: Console) -> None:
    """Prints the plan.

    Args:
        config: of the run.
        gpus: there are.
        memory_gib: of each.
        gpu_name: for the heading.
        rates: measured on them.
        require_data: a model or source that is not known to be reachable is a mistake.
        out: where to print.

    Raises:
        UserError: at once: a model cannot be tuned as it is wanted; or after everything is printed: it does not fit, or data are not to be had.
    """
    check_windows(config, partial(architecture, config))
    shapes = [shape_of(architecture(config, config.proxy.model))]
    target = architecture(config, config.target.model)
    shapes += [shape_of(target), shape_of(target, lora=config.target.lora, precision=config.target.precision)]
    found = reachable(config)
    out.print(_found_table(found), _shape_table(config, shapes))
    if dropping := [spec.label for spec in every_source(config) if spec.unfit == "drop"]:
        out.print(f"rows that do not fit are dropped, and counted when they are read: {', '.join(dropping)}", style="dim")
    hardware = Hardware(gpus, memory_gib, gpu_name)
    faults = _print_memory(config, shapes, hardware, out)
    work = work_of(config)
    out.print(_work_table(work), _hours_table(config, work, rates, gpus))
    if rates.measured_by:
        out.print(f"rates: {rates.measured_by}", style="dim")
    wrong = [one for one in found if one.state == "missing" or (require_data and one.state == "unknown")]
    if require_data and wrong:
        faults.append(f"data: {', '.join(f'{one.name} ({one.origin}): {one.detail or one.state}' for one in wrong)}")
    if faults:
        raise UserError("plan: " + "; ".join(faults))


def _found_table(found: Sequence[Found]) -> Table:
    table = Table("what", "where", "state", "", title="models and data", title_justify="left", box=None, pad_edge=False)
    colours = {"here": "green", "on the hub": "green", "missing": "red", "unknown": "yellow"}
    for one in found:
        table.add_row(one.name, one.origin, f"[{colours[one.state]}]{one.state}[/]", one.detail)
    return table


def _shape_table(config: Config, shapes: Sequence[Shape]) -> Table:
    table = _numbers("model", "parameters", "tuned", "layers × width", "vocabulary", title="shapes")
    proxy, _, target = shapes
    for name, shape in (("proxy", proxy), (f"target{' + LoRA' if config.target.lora else ''}", target)):
        table.add_row(name, f"{shape.num_parameters:,}", f"{shape.num_tuned:,}", f"{shape.layers} × {shape.hidden:,}", f"{shape.vocabulary:,}")
    return table


def _print_memory(config: Config, shapes: Sequence[Shape], hardware: Hardware, out: Console) -> list[str]:
    """The table and the verdict; returns what is wrong."""
    runners, workers, actors = max(1, config.started_env_runners), config.target.parallelism.num_workers, config.evaluation.actors
    learning, tuning = proxy_memory(config, shapes[0]), tuning_memory(config, shapes[2])
    scoring = scoring_memory(config, shapes[1], hardware.memory_gib * GIB)
    place = "GPU" if config.target.parallelism.use_gpu else "process"
    titles = [f"each of {runners} that learn (proxy)", f"each of {workers} that tune", f"each of {actors} that score"]
    table = _numbers("GiB", *titles, title=f"memory per {place}")
    for name in ("weights", "gradients", "optimizer", "activations", "exchange", "reserve"):
        first, second = (f"{getattr(memory, name) / GIB:.2f}" for memory in (learning, tuning))
        table.add_row(name, first, second, f"{scoring.weights / GIB:.2f}" if name == "weights" else "")
    table.add_row("KV cache of a row", "", "", f"{scoring.cache_per_row / GIB:.3f}")
    table.add_row("total", f"{learning.total / GIB:.2f}", f"{tuning.total / GIB:.2f}", f"room for {scoring.rows_at_once:,} rows", style="bold")
    out.print(table)
    needs = gpu_needs(config)
    if not needs.total:
        return []
    faults = _faults(config, hardware, learning, tuning, scoring)
    shared = f"{needs.scoring} score all along, beside them {needs.learning} learn and then {needs.tuning} tune"
    out.print(f"GPUs: {shared}" + (f"; {proxies_on_a_gpu(config)} proxies' processes on each that learns" if needs.learning else ""))
    out.print(f"[bold red]does not fit {hardware}[/]" if faults else f"[bold green]fits {hardware}[/] ({needs.total} needed)")
    return faults


def _faults(config: Config, hardware: Hardware, learning: TuningMemory, tuning: TuningMemory, scoring: ScoringMemory) -> list[str]:
    """What does not fit, each with what to try."""
    needs, room, gib = gpu_needs(config), hardware.memory_gib * GIB, f"{hardware.memory_gib:g}"
    actors, parallel = config.evaluation.actors, config.evaluation.tensor_parallel
    cuts = "gradient_checkpointing, a smaller {0}.micro_batch_size or {0}.pack_tokens"
    faults = []
    if needs.total > hardware.gpus:
        each = f" of {parallel}" if parallel > 1 else ""
        most = f"{needs.tuning} workers" if needs.tuning >= needs.learning else f"{needs.learning} of proxies"
        faults.append(f"needs {needs.total} GPUs ({most} and {actors} evaluation actors{each}), there are {hardware.gpus}")
    if needs.learning and learning.total * proxies_on_a_gpu(config) > room:
        faults.append(
            f"{proxies_on_a_gpu(config)} processes of proxies need {learning.total / GIB:.1f} GiB each, a GPU has {gib}; try a larger "
            f"proxy.gpus_per_runner, fewer controller.proxies_side_by_side, proxy.{cuts.format('proxy')}"
        )
    if needs.tuning and tuning.total > room:
        faults.append(
            f"a worker needs {tuning.total / GIB:.1f} GiB, a GPU has {gib}; try target.{cuts.format('target')}, target.lora, "
            "or target.parallelism.strategy=fsdp"
        )
    if needs.scoring and not scoring.rows_at_once:
        faults.append(f"an evaluation actor cannot hold the weights and one row's cache in {gib} GiB; raise evaluation.tensor_parallel")
    return faults


def _work_table(work: Work) -> Table:
    table = _numbers("part", "runs", "stages = decisions", "optimizer steps", "tokens, at most", title="work")
    stages, steps = f"{work.num_stages:,}", f"{work.num_runs * work.steps_per_run:,}"
    table.add_row(f"target, {work.num_tasks} tasks", f"{work.num_runs:,}", stages, steps, f"{work.target_tokens:.2e}")
    table.add_row("pilots, each side", f"{work.num_pilots:,}", "", "", f"{work.pilot_tokens:.2e}")
    table.add_row("controller, on the proxy", f"{work.num_episodes:,}", "", "", f"{work.proxy_tokens:.2e}")
    table.add_row("scoring, generated", f"{work.num_scored:,}", "", "", f"{work.generated_tokens:.2e}")
    return table


def _hours_table(config: Config, work: Work, rates: Rates, gpus: int) -> Table:
    table = _numbers("part", "hours, at most", title="time and cost")
    hours = hours_of(config, work, rates)
    total, price = total_hours(hours), rates.dollars_per_gpu_hour
    for name, value in hours.items():
        table.add_row(name, NOT_MEASURED if value is None else f"{value:,.2f}")
    table.add_row("total", "unknown: give --rates" if total is None else f"{total:,.2f}", style="bold")
    cost = None if total is None or price is None else total * gpus * price
    table.add_row("cost", "unknown: give --rates with dollars_per_gpu_hour" if cost is None else f"$ {cost:,.0f}", style="bold")
    return table


def _numbers(first: str, *others: str, title: str) -> Table:
    table = Table(first, title=f"\n{title}", title_justify="left", box=None, pad_edge=False)
    for other in others:
        table.add_column(other, justify="right")
    return table


def command(
    config: Annotated[Path, typer.Option("--config", help="YAML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value, values are YAML.", show_default=False)] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs there are.")] = 8,
    memory_gib: Annotated[float, typer.Option(min=0.1, help="Of each GPU.")] = 79.0,
    gpu_name: Annotated[str, typer.Option(help="For the heading.")] = "80 GB GPU",
    rates: Annotated[
        Path | None,
        typer.Option(help="YAML of measured rates, or the folder of a finished run to take them from; else hours stay unknown.", show_default=False),
    ] = None,
    write_rates: Annotated[
        Path | None, typer.Option(help="Write the rates into this YAML file, to edit and to plan with.", show_default=False)
    ] = None,
    require_data: Annotated[bool, typer.Option("--require-data", help="Fail where a model or data set is not known to be reachable.")] = False,
) -> None:
    """Check a run without running it: data, memory per GPU, stages and decisions, hours and cost."""
    out = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    try:
        known = measured_rates(rates) if rates and rates.is_dir() else read_rates(rates)
        if write_rates:
            write_text(write_rates, yaml.safe_dump(known.model_dump(exclude_none=True), sort_keys=False))
        plan(
            load_config(config, overrides or []),
            gpus=gpus,
            memory_gib=memory_gib,
            gpu_name=gpu_name,
            rates=known,
            require_data=require_data,
            out=out,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()
