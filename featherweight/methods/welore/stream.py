"""Compression of a model folder that need not fit into memory: one matrix at a time, from file to file.

Work stands in `.<out>.partial` beside the result until it is complete; a run that was interrupted goes on there. First
the spectra of all matrices are read and kept, then ranks are chosen, then every tensor is written once.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from featherweight.config.files import new_file, new_folder, write_atomically
from featherweight.errors import CheckpointError, ConfigError
from featherweight.linalg.factors import factorize
from featherweight.linalg.spectrum import singular_values
from featherweight.methods.low_rank_model import RECORD_VERSION
from featherweight.methods.options import WeLoreOptions
from featherweight.methods.sealed_folder import RECORD, sealed
from featherweight.methods.welore.method import build_layer
from featherweight.methods.welore.plan import Entry, Plan, Target, find_targets, make_plan
from featherweight.methods.welore.report import plan_report
from featherweight.report import Report

SHARD_BYTES = 2**30
"""Tensors are collected in memory up to this size before they are written."""

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how many matrices or tensors are done, and how many there are."""

_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


@dataclass
class _Source:
    """The weights of a model folder, by key."""

    folder: Path
    files: dict[str, str]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    itemsizes: dict[str, int] = field(default_factory=dict)

    def read(self, key: str) -> Tensor:
        """Return a copy of one tensor; the file is closed at once, so that its pages do not add up."""
        with _reading(self.folder / self.files[key]), safe_open(self.folder / self.files[key], "pt") as file:
            return file.get_tensor(key).clone()


def compress_folder(
    source: str | Path,
    out: str | Path,
    options: WeLoreOptions,
    *,
    plan_only: bool = False,
    progress: Progress | None = None,
    on_plan: Callable[[Report], None] | None = None,
    on_complete: Callable[[Path], None] | None = None,
) -> Report:
    """Compress a Hugging Face folder of safetensors into another one, with less memory than the model has bytes.

    Args:
        source: a model folder.
        out: the folder to make; files beside the weights (tokenizer, generation settings) are copied.
        options: with method="plain"; data need a model in memory.
        plan_only: decide and report, write nothing but the cached spectra.
        progress: is told how far the work is.
        on_plan: is shown what is decided, before any tensor is written.
        on_complete: is given the complete folder under its temporary name, before it takes its place.
    Returns:
        The report, which also stands in `out` as report.html and report.json.
    Raises:
        ConfigError: if the source is no such folder, `out` holds something, or the options do not fit.
        CheckpointError: if a file of the source is missing or damaged, or the disk is full or cannot be written. What
            is done waits beside `out`, and the same call goes on there.
        NumericsError: if a weight is NaN or infinite.
    Cost: two decompositions of each matrix; memory of the largest one in float32 about four times, and of one shard.
    """
    source, out = Path(source), Path(out)
    if options.method != "plain":
        raise ConfigError(
            f"compress_folder: method={options.method} needs the model in memory; expected method=plain. Use fw.apply "
            "with calibration."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"compress: out={out} holds files already; expected a new or empty folder. Choose another.")
    weights = _open(source)
    model = _skeleton(source)
    modules, skipped = find_targets(model, options)
    targets, keys = _match(modules, weights, model, skipped)
    partial = out.with_name(f".{out.name}.partial")
    with _writing(partial):
        _claim(partial, weights, options)
        spectra = _spectra(keys, targets, weights, modules, partial, progress)
    plan = make_plan(
        targets,
        spectra,
        options,
        skipped=skipped,
        total_numel=sum(_numel(shape) for shape in weights.shapes.values()),
        total_bytes=sum(_numel(shape) * weights.itemsizes[key] for key, shape in weights.shapes.items()),
    )
    report = plan_report(plan, f"WeLore of {source.name}")
    if on_plan is not None:
        on_plan(report)
    if plan_only:
        return report
    with _writing(partial):
        _write_tensors(plan, keys, weights, modules, partial, progress)
        _finish(source, out, partial, plan, report, on_complete)
    return report


def _open(folder: Path) -> _Source:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        with _reading(index):
            files = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    elif single.exists():
        with _reading(single), safe_open(single, framework="pt") as file:
            files = dict.fromkeys(file.keys(), "model.safetensors")
    else:
        raise ConfigError(
            f"compress: source={folder} has no model.safetensors; expected a model folder of Hugging Face with "
            "safetensors. Save the model with save_pretrained first."
        )
    source = _Source(folder, files)
    for name in sorted(set(files.values())):
        with _reading(folder / name), safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (the file is no mapping)
                if files.get(key) != name:
                    continue
                part = file.get_slice(key)
                source.shapes[key] = tuple(part.get_shape())
                source.itemsizes[key] = _BYTES.get(part.get_dtype(), 0) or _read_itemsize(file, key)
    if absent := sorted(files.keys() - source.shapes.keys()):
        raise CheckpointError(
            f"compress: file={folder / files[absent[0]]} lacks '{absent[0]}', which the index says is there; expected "
            f"all of its {len(files)} tensors. Load or save the model anew."
        )
    return source


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what goes wrong with a file of the source into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = "is missing" if not file.exists() else f"cannot be read ({_reason(error)})"
        raise CheckpointError(
            f"compress: file={file} {reason}; expected a complete model folder. Load or save the model anew."
        ) from error


@contextmanager
def _writing(partial: Path) -> Iterator[None]:
    """Turn a disk that is full or cannot be written into one sentence; what is done stays for another run."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"compress: folder={partial} cannot be written ({_reason(error)}); expected a writable disk with space. "
            "Free some space and run the command again, which goes on where it was, or choose another folder."
        ) from error


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__


def _read_itemsize(file: Any, key: str) -> int:
    return int(file.get_tensor(key).element_size())


def _skeleton(folder: Path) -> nn.Module:
    """Return the model without numbers, to know its modules."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with _reading(folder / "config.json"):
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise ConfigError(
            f"compress: model_type is missing in {folder / 'config.json'}; expected the name of an architecture. Add "
            '"model_type": "llama", for example, or save the model anew.'
        )
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder)))
    except Exception as error:  # classes of transformers, of its strict configurations and of torch
        raise ConfigError(
            f"compress: source={folder} cannot be built ({_reason(error)}); expected a causal language model of "
            "transformers. Correct config.json."
        ) from error
    return model


def _match(
    modules: dict[str, nn.Linear], weights: _Source, model: nn.Module, skipped: dict[str, str]
) -> tuple[dict[str, Target], dict[str, str]]:
    """Return shape, and key without its ".weight", of each module's weight in the files."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    targets, keys = {}, {}
    for name, module in modules.items():
        stems = [name, name.removeprefix(prefix)]
        stem = next((one for one in stems if weights.shapes.get(f"{one}.weight") == tuple(module.weight.shape)), None)
        if stem is None:
            skipped[name] = "left alone: the files hold no weight of its name and shape"
            continue
        shape = weights.shapes[f"{stem}.weight"]
        rows, columns = shape[::-1] if type(module).__name__ == "Conv1D" else shape
        targets[name], keys[name] = Target(rows, columns, weights.itemsizes[f"{stem}.weight"]), stem
    if not targets:
        raise ConfigError(
            f"compress: source={weights.folder} stores none of the {len(modules)} selected weights under the names of "
            "its architecture; expected them. Save the model with save_pretrained of transformers first."
        )
    return targets, keys


def _claim(partial: Path, weights: _Source, options: WeLoreOptions) -> None:
    """Go on with the work of an interrupted run of the same input, or start anew.

    Spectra depend on the weights alone and survive a change of the options.
    """
    files = sorted(set(weights.files.values()))
    stats = [(weights.folder / name).stat() for name in files]
    identity = {name: [one.st_size, one.st_mtime_ns] for name, one in zip(files, stats, strict=True)}
    inputs = {"weights": identity, "options": options.to_dict()}
    known = partial / "inputs.json"
    before = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    if before.get("weights") != json.loads(json.dumps(identity)):
        shutil.rmtree(partial, ignore_errors=True)
    elif before != json.loads(json.dumps(inputs)):
        for path in [*partial.glob("model-*.safetensors"), partial / "written.json"]:
            path.unlink(missing_ok=True)
    (partial / "spectra").mkdir(parents=True, exist_ok=True)
    write_atomically(known, json.dumps(inputs))


def _spectra(
    keys: dict[str, str],
    targets: dict[str, Target],
    weights: _Source,
    modules: dict[str, nn.Linear],
    partial: Path,
    progress: Progress | None,
) -> dict[str, Tensor]:
    spectra = {}
    for count, (name, stem) in enumerate(keys.items()):
        cached = partial / "spectra" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"
        if not cached.exists():
            values = singular_values(_matrix(weights, stem, modules[name]), name)
            with new_file(cached) as temporary:
                save_file({"values": values}, temporary)
        spectra[name] = load_file(cached)["values"]
        if progress is not None:
            progress("reading spectra", count + 1, len(targets))
    return spectra


def _matrix(weights: _Source, stem: str, module: nn.Module) -> Tensor:
    """Return a weight as (M, N) in float32, or float64 if it is stored so."""
    weight = weights.read(f"{stem}.weight")
    wide = weight if weight.dtype == torch.float64 else weight.float()
    return wide.mT.contiguous() if type(module).__name__ == "Conv1D" else wide


def _write_tensors(
    plan: Plan,
    keys: dict[str, str],
    weights: _Source,
    modules: dict[str, nn.Linear],
    partial: Path,
    progress: Progress | None,
) -> None:
    """Write every tensor of the source, cut or as it is, in shards; those of an earlier run count."""
    names = {stem: name for name, stem in keys.items()}
    order = sorted(weights.files, key=lambda key: (weights.files[key], key))
    log = partial / "written.json"
    written: dict[str, Any] = {"done": 0, "shards": []}
    if log.exists():
        written = json.loads(log.read_text(encoding="utf-8"))
    held: dict[str, Tensor] = {}

    def flush(done: int) -> None:
        if held:
            file = f"model-{len(written['shards']) + 1:05d}.safetensors"
            with new_file(partial / file) as temporary:
                save_file(held, temporary, metadata={"format": "pt"})
            written["shards"].append(
                {"file": file, "keys": sorted(held), "bytes": sum(t.nbytes for t in held.values())}
            )
            held.clear()
        written["done"] = done
        write_atomically(log, json.dumps(written))

    for count in range(written["done"], len(order)):
        key = order[count]
        stem, _, last = key.rpartition(".")
        entry = plan.entries.get(names.get(stem, ""))
        new = (
            {key: None} if entry is None or not entry.is_cut else _cut(entry, stem, last, weights, modules[entry.name])
        )
        held |= {one: weights.read(key) if tensor is None else tensor for one, tensor in new.items()}
        if progress is not None:
            progress("writing tensors", count + 1, len(order))
        if sum(tensor.nbytes for tensor in held.values()) >= SHARD_BYTES:
            flush(count + 1)
    flush(len(order))


def _cut(entry: Entry, stem: str, last: str, weights: _Source, module: nn.Module) -> dict[str, Tensor | None]:
    """Return the tensors that take the place of a weight; None stands for the tensor itself under another name."""
    if last != "weight":
        return {f"{stem}.U.{last}" if entry.storage == "factored" else f"{stem}.{last}": None}
    stored = weights.read(f"{stem}.weight").dtype
    stub = nn.Linear(1, 1, bias=False, dtype=stored)
    layer = build_layer(stub, *factorize(_matrix(weights, stem, module), entry.rank), entry.storage)
    tensors: dict[str, Tensor | None] = {f"{stem}.{one}": t.contiguous() for one, t in layer.state_dict().items()}
    if entry.storage == "dense" and type(module).__name__ == "Conv1D":
        tensors = {one: t.mT.contiguous() for one, t in tensors.items() if t is not None}
    return tensors


def _finish(
    source: Path, out: Path, partial: Path, plan: Plan, report: Report, on_complete: Callable[[Path], None] | None
) -> None:
    """Name the shards, write index, configuration and report, copy the rest, and put the folder in its place."""
    shards = json.loads((partial / "written.json").read_text(encoding="utf-8"))["shards"]
    with new_folder(out) as folder:
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            single = len(shards) == 1
            file = "model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            _place(partial / shard["file"], folder / file)
            weight_map |= dict.fromkeys(shard["keys"], file)
        if len(shards) > 1:
            index = {"metadata": {"total_size": sum(s["bytes"] for s in shards)}, "weight_map": weight_map}
            write_atomically(folder / "model.safetensors.index.json", json.dumps(index, indent=2))
        for path in source.iterdir():
            if path.is_file() and path.suffix not in (".safetensors", ".bin", ".pt", ".pth", ".gguf"):
                if not path.name.endswith(".index.json"):
                    shutil.copyfile(path, folder / path.name)
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        stored = {name: e for name, e in plan.entries.items() if e.is_cut and e.storage != "dense"}
        if stored:
            config[RECORD] = {
                "version": RECORD_VERSION,
                "rank_pattern": {name: entry.rank for name, entry in stored.items()},
                "storage_pattern": {name: entry.storage for name, entry in stored.items()},
            }
        write_atomically(folder / "config.json", json.dumps(sealed(config), indent=2))
        if on_complete is not None:
            on_complete(folder)
        write_atomically(folder / "report.json", report.to_json())
        report.save_html(folder / "report.html")
    shutil.rmtree(partial)


def _place(file: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system knows no links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
