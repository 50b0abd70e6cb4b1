"""fedgraft: the front door. One command, one group of verbs for each room.

Exit status: 0 done; 1 the run failed; 2 the input is wrong (one message: file, key, value, what to
write).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedgraft.client.cli import node
from fedgraft.common.errors import Interrupted, RunFailed, UserError
from fedgraft.common.extensions import offer_extensions
from fedgraft.common.supported_systems import check_system
from fedgraft.common.wire.proxies import spare_loopback
from fedgraft.server.cli import server

app = typer.Typer(
    name="fedgraft",
    help="Federated transfer learning: hospitals graft adapters onto a pre-trained backbone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)

PLAN_HELP = "A plan.yaml, or the name of a ready plan: digits, heart, pneumonia."
PlanArgument = Annotated[str, typer.Argument(help=PLAN_HELP)]
OptionalPlan = Annotated[str | None, typer.Argument(help=PLAN_HELP)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the plan; may be repeated."),
]
DeviceOption = Annotated[
    str,
    typer.Option(help="Where to compute: cpu, cuda, cuda:N, mps, or auto: a card if there is one."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the machine-readable result.")]
WithOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--with",
        metavar="DIR",
        help="Code of your own that the plan's `extensions` name; may be repeated.",
        callback=offer_extensions,
    ),
]

# lines of a table on the screen
MOST_SHOWN = 100


@app.command()
def validate(
    plan: OptionalPlan = None,
    set_: SetOption = None,
    with_: WithOption = None,
    json_: JsonOption = False,
    keys: Annotated[
        bool, typer.Option("--keys", help="Describe every key of a plan instead.")
    ] = False,
) -> None:
    """Check a plan by trying its network, its adapter, its data and one batch, and print its
    identity: the hash of all of it, which results name, and of its agreement, which hospitals
    approve.

    Example: `fedgraft validate pneumonia --set train.rounds=5`
    """
    from fedgraft.common.plan.plan_file import (
        agreement_hash,
        canonical,
        find_plan,
        load_plan,
        plan_hash,
    )
    from fedgraft.common.plan.plan_keys import describe_keys

    if keys:
        _print_table(
            "every key of a plan", ["key", "type", "default", "what it is"], describe_keys()
        )
        return
    if plan is None:
        raise UserError("no plan is named", remedy="write a file's path, or a ready plan's name")
    from fedgraft.client.node.finding import print_findings
    from fedgraft.simulations.try_plan import try_plan

    path = find_plan(plan)
    checked = load_plan(plan, set_ or [])
    findings = list(try_plan(checked, path))
    is_wrong = any(finding.is_wrong for finding in findings)
    if json_:
        identity = {
            "plan_hash": plan_hash(checked),
            "agreement_hash": agreement_hash(checked),
            "plan": json.loads(canonical(checked)),
            "findings": [finding.to_json() for finding in findings],
        }
        _print_json(identity)
    else:
        print(f"{path}: {'cannot be run here' if is_wrong else 'a valid plan'}")
        print_findings(findings)
        print(f"plan       {plan_hash(checked)}")
        print(f"agreement  {agreement_hash(checked)}  (what hospitals approve)")
    if is_wrong:
        raise typer.Exit(2)


@app.command()
def pretrain(
    plan: PlanArgument,
    set_: SetOption = None,
    with_: WithOption = None,
    json_: JsonOption = False,
) -> None:
    """Make the plan's backbone from its `pretrain` section, with its fingerprint and provenance.

    Example: `fedgraft pretrain digits`
    """
    from fedgraft.common.plan.plan_file import find_plan, load_plan
    from fedgraft.simulations.pretraining import pretrain as make

    made = make(load_plan(plan, set_ or []), find_plan(plan))
    if json_:
        _print_json(made)
    else:
        print(f"backbone  {made['path']}\n{made['fingerprint']}")
        for measure in ("accuracy", "perplexity"):
            if made.get(measure) is not None:
                print(f"held-out {measure} {made[measure]:.3f}")
        if made["reference"]:
            print(f"reference {made['reference']}")


@app.command()
def convert(
    model: Annotated[
        Path,
        typer.Argument(help="A .onnx or .keras file, or the folder of a TensorFlow SavedModel."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The .safetensors file; default: beside the model.")
    ] = None,
    pixels: Annotated[
        str | None,
        typer.Option(
            help="How it was trained: imagenet, minus-one-to-one, 0-255, 0-1 or caffe; or by --mean"
            " and --std."
        ),
    ] = None,
    mean: Annotated[str | None, typer.Option(metavar="R,G,B", help="On 0–1.")] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="On 0–1.")] = None,
    input_size: Annotated[
        int | None, typer.Option(help="Pixels of a side, where the model takes any.")
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(help="An image's shorter side before its centre is cut out; default: as is."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Of a model for texts: its tokenizer.json.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=4, max=8192, help="Tokens of a text; default 128.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="A Python that has Keras or TensorFlow; default: this one.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Make a backbone of an ONNX, Keras or TensorFlow model, for `backbone: {name: onnx}`, or of an
    ONNX model for texts, for `onnx-text`; compare it with the original before it is written.

    Example: `fedgraft convert mobilenet.onnx --pixels imagenet`
    """
    from fedgraft.simulations.conversion.convert import ConvertRequest, convert_model, describe

    request = ConvertRequest(
        model, out, input_size, resize, pixels, mean, std, tokenizer, max_length, python
    )
    made = convert_model(request)
    if json_:
        _print_json(made)
    else:
        print("\n".join(describe(made)))


@app.command()
def simulate(
    plan: PlanArgument,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; default runs/NAME-TIME.")
    ] = None,
    set_: SetOption = None,
    engine: Annotated[
        str, typer.Option(help="`inprocess`, or `flower`: Flower's Simulation Runtime.")
    ] = "inprocess",
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Repeat with this many seeds, from the plan's.")
    ] = 1,
    baselines: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: one-round, alone, pooled, head, full, random-backbone; `all`,"
            " or `none`. Default: one-round, where the plan allows it."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Nodes trained at once; default: cores.")
    ] = None,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Train many small heads at once, private ones too: faster, the same to 1e-6, not "
            "bit for bit.",
        ),
    ] = False,
    device: DeviceOption = "cpu",
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="Folder of privacy ledgers that outlast the run; default: the run's own."
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="KEY=VALUE",
            help="A clause of every node's policy; may be repeated.",
        ),
    ] = None,
    with_: WithOption = None,
    json_: JsonOption = False,
) -> None:
    """Run a plan's federation on this machine: the same code as a deployment.

    Example: `fedgraft simulate pneumonia --set train.rounds=5 --baselines head,alone`
    """
    from fedgraft.simulations.baselines import choose_baselines
    from fedgraft.simulations.engines.engine import EngineOptions
    from fedgraft.simulations.simulate import SimulationOptions, read_clauses, simulate_plan

    options = SimulationOptions(
        engine=EngineOptions(
            engine, workers=workers, together=together, resume=resume, device=device
        ),
        baselines=None if baselines is None else choose_baselines(baselines),
        ledger=ledger,
        policy=read_clauses(policy or []),
        quiet=json_,
    )
    result = simulate_plan(plan, overrides=set_ or [], out=out, seeds=seeds, options=options)
    if json_:
        _print_json(result)


@app.command()
def study(
    study: Annotated[str, typer.Argument(help="A study.yaml, or the name of a ready study.")],
    out: Annotated[
        Path | None, typer.Option(help="The study's folder; default runs/study-NAME.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells at once, a process each; default: cores.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="`inprocess`, or `flower`: Flower's Simulation Runtime.")
    ] = "inprocess",
    device: DeviceOption = "cpu",
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Cells on the machines of a Ray cluster (`auto`, HOST:PORT) that all see --out.",
        ),
    ] = None,
    with_: WithOption = None,
    json_: JsonOption = False,
) -> None:
    """Put a question to a plan: a grid over its keys and seeds, attacks on each, one table and one
    page.

    Cells that are finished are not run again: the same command goes on after an interruption.

    Ready studies: utility-vs-epsilon, adapters-vs-full, non-iid, membership, few-hospitals.

    Example: `fedgraft study utility-vs-epsilon --workers 2`
    """
    if workers != 1 and engine == "inprocess":
        # before NumPy is imported, or it begins threads, and a process with threads is not forked
        os.environ["OMP_NUM_THREADS"] = "1"
    from fedgraft.simulations.study.run_study import run_study

    done = run_study(
        study, out=out, workers=workers, engine=engine, device=device, ray=ray, quiet=json_
    )
    if json_:
        _print_json(done)
    else:
        print(
            f"{len(done['rows'])} cells, {done['run']} of them run now, in {done['seconds']:.0f} s"
        )
        print(f"{done['folder']}/report.html")


@app.command()
def partition(
    plan: PlanArgument,
    out: Annotated[Path, typer.Option(help="A new folder for node-K.yaml and its row numbers.")],
    set_: SetOption = None,
    with_: WithOption = None,
) -> None:
    """Deal a plan's data to nodes on disk, for `flwr run .` and for looking at: one node.yaml each,
    and a picture.

    Example: `fedgraft partition pneumonia --out nodes`
    """
    from fedgraft.simulations.simulate import partition_plan

    paths = partition_plan(plan, set_ or [], out)
    print(f"{len(paths)} nodes in {out}, and labels_by_node.png")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run's folder, or its shared_model folder.")],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="An image, a volume, a signal, a folder of them, an .npz, or a table of rows,"
            " texts or signals.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The CSV to write; of masks, a folder for them or a CSV.")
    ] = Path("predictions.csv"),
    backbone: Annotated[Path | None, typer.Option(help="The backbone's file, if it moved.")] = None,
    sliding: Annotated[
        bool,
        typer.Option(
            "--sliding",
            help="Volumes larger than the plan's size: the mean over overlapping crops.",
        ),
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option(help="Answers that are written: of so many tokens at most (default: 64)."),
    ] = None,
    device: DeviceOption = "cpu",
    with_: WithOption = None,
) -> None:
    """Run the shared model of a run on new data and write a CSV of probabilities, or of answers.

    Example: `fedgraft predict runs/pneumonia-1 xrays/ --out predictions.csv`
    """
    from fedgraft.simulations.predict import predict as run_model

    written = run_model(run, data, out, backbone, sliding=sliding, tokens=tokens, device=device)
    print(f"{written} predictions in {out}")


@app.command()
def nearest(
    run: Annotated[Path, typer.Argument(help="A run's folder, or its shared_model folder.")],
    data: Annotated[
        Path, typer.Argument(metavar="INPUT", help="What is asked about, as `predict` takes it.")
    ],
    among: Annotated[
        str,
        typer.Option(
            metavar="PUBLIC",
            help="Examples that anybody may see: as INPUT, or with labels as a hospital's data.",
        ),
    ],
    count: Annotated[int, typer.Option(min=1, help="So many examples for each input.")] = 5,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="A CSV to write, too.")
    ] = None,
    backbone: Annotated[Path | None, typer.Option(help="The backbone's file, if it moved.")] = None,
    with_: WithOption = None,
) -> None:
    """Show for each input the public examples that a shared model sees as most alike: by the cosine
    between what its head reads of them. Nothing leaves this machine.

    Example: `fedgraft nearest runs/digits-1 new.npz --among sklearn:digits --count 3`
    """
    from fedgraft.common.files.foreign_text import as_printable
    from fedgraft.simulations.nearest_examples import HEADER, find_alike, write_alike

    alike = find_alike(run, data, among, count, backbone)
    if out is not None:
        write_alike(alike, out)
    rows: list[tuple[str, ...]] = []
    for each in alike[:MOST_SHOWN]:
        names = [str(each.input), str(each.rank), str(each.example), each.label]
        rows.append((*map(as_printable, names), f"{each.similarity:.3f}"))
    _print_table(f"the nearest of {as_printable(among)}", list(HEADER), rows)
    if len(alike) > MOST_SHOWN:
        print(f"and {len(alike) - MOST_SHOWN} more lines; all of them: --out FILE.csv")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, or its shared_model folder.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    format_: Annotated[
        str, typer.Option("--format", help="`huggingface`, the only one so far.")
    ] = "huggingface",
    backbone: Annotated[Path | None, typer.Option(help="The backbone's file, if it moved.")] = None,
    with_: WithOption = None,
    json_: JsonOption = False,
) -> None:
    """Write the shared model of a run as a folder that Hugging Face's transformers opens by itself:
    adapters merged, safetensors, its tokenizer or how images are prepared; compare the outputs
    first.

    Example: `fedgraft export runs/notes-1 --format huggingface --out notes-model`
    """
    from fedgraft.simulations.huggingface_export import FORMATS, export_model

    if format_ not in FORMATS:
        remedy = f"write {', '.join(FORMATS)}"
        raise UserError(f"no format is called {format_!r}", where="--format", remedy=remedy)
    made = export_model(run, out, backbone)
    if json_:
        _print_json(made)
    else:
        print(f"{made['path']}: {made['model']}, outputs the same to {made['difference']:.0e}")
        print(f"open it with transformers.{made['auto']}.from_pretrained({made['path']!r})")
        for note in made["notes"]:
            print(f"note: {note}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN|STUDY", help="A run's or a study's folder.")],
) -> None:
    """Write report.html of a run or a study: one self-contained page, for people. It prints.

    Example: `fedgraft report runs/study-membership`
    """
    from fedgraft.simulations.write_report import write_report

    print(write_report(run))


@app.command()
def manifest(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN|STUDY", help="A run's or a study's folder.")
    ],
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign with this Ed25519 private key.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Name every file that was changed; exit 1 if any.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option(metavar="PUBLIC", help="The key that must have signed it.")
    ] = None,
) -> None:
    """Sign a run's or a study's manifest, or verify it: every file, the signature, the manifest
    itself.

    A deployment's run gets its manifest here, the first time.

    A key: `openssl genpkey -algorithm ed25519 -out key.pem`

    Example: `fedgraft manifest runs/pneumonia-1 --sign key.pem`, then `fedgraft manifest
        runs/pneumonia-1 --verify`
    """
    from fedgraft.common.run_files import MANIFEST, RESULT
    from fedgraft.server.papers.run_manifest import run_facts, write_manifest
    from fedgraft.server.papers.run_manifest import sign as sign_with
    from fedgraft.simulations.reproduce import verify_manifest

    if (folder / RESULT).is_file() and not (folder / MANIFEST).is_file() and not verify:
        print(write_manifest(folder, run_facts(folder)))

    if sign is not None:
        print(sign_with(folder, sign))
    if verify or sign is None:
        print(verify_manifest(folder, key))


@app.command()
def reproduce(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="A manifest.json, or its folder.")
    ],
    cells: Annotated[
        int | None, typer.Option(min=1, help="Of a study: only so many cells; default all.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells at once; default: cores.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only look whether the files are as written.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option(metavar="PUBLIC", help="The key that must have signed it.")
    ] = None,
    with_: WithOption = None,
    json_: JsonOption = False,
) -> None:
    """Run again what a manifest describes, and say what agrees. Exit 1 if something does not.

    Example: `fedgraft reproduce runs/pneumonia-1/manifest.json`
    """
    from dataclasses import asdict

    from fedgraft.simulations.reproduce import list_failures, verify_manifest
    from fedgraft.simulations.reproduce import reproduce as run_again

    if verify or key is not None:
        said = verify_manifest(manifest, key)
        if verify:
            print(said)
            return
    checks = run_again(manifest, cells=cells, workers=workers, quiet=json_)
    if json_:
        _print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            print(
                f"{'✓' if check.agrees else '✗' if check.needed else '≠'} {check.what}:"
                f" {check.said}"
            )
    if wrong := list_failures(checks):
        raise RunFailed(f"{len(wrong)} of {len(checks)} things do not agree")


app.add_typer(
    node, name="node", help="At a hospital: check, approve, start; what came, went and was spent."
)
app.add_typer(
    server, name="server", help="At the coordinator: certificates, the server, its nodes, runs."
)


def main() -> None:
    """Run the command; turn what a person did wrong into one message and status 2."""
    try:
        check_system()
        spare_loopback(os.environ)
        status = app(standalone_mode=False)  # Typer swallows Ctrl-C and gives its status back
        if isinstance(status, int) and status:
            _fail("interrupted" if status == 130 else "", status)
    except UserError as error:
        _fail(str(error), 2)
    except RunFailed as error:
        _fail(str(error), 1)
    except (Interrupted, KeyboardInterrupt) as interrupt:
        _fail(str(interrupt) or "interrupted", 130)
    except OSError as error:  # a full disk, a file that vanished: what was finished is in its place
        where = f"{error.filename}: " if error.filename else ""
        _fail(
            f"{where}{error.strerror or error}\n  → see that the disk has space left and can be"
            " written",
            1,
        )
    except Exception as error:
        import click

        if isinstance(error, click.ClickException):
            error.show()
            sys.exit(2)
        raise


def _fail(message: str, status: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _print_table(title: str, head: list[str], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for number, name in enumerate(head):
        table.add_column(
            name, overflow="fold", no_wrap=number == 0
        )  # a key is one word to search for
    for row in rows:
        # cells may hold brackets, which are no markup
        table.add_row(*map(Text, row))
    Console().print(table)


if __name__ == "__main__":
    main()
