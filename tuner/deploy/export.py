"""Write an ensemble as one file for other programs: pixels in, probabilities out.

Running an ONNX file takes onnxruntime and NumPy::

    import json

    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession("ensemble.onnx")
    images = np.load("images.npy")  # uint8, (N, H, W, C): N images of one size, any size
    (probs,) = session.run(None, {"images": images})  # float32, (N, K)
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    print([classes[best] for best in probs.argmax(axis=1)])

A program of ``torch.export`` needs only torch::

    metadata = {"classes": ""}
    program = torch.export.load("ensemble.pt2", extra_files=metadata).module()
    probs = program(torch.from_numpy(images))
"""

import contextlib
import importlib.util
import io
import json
import logging
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from tuner import __version__
from tuner.data.decoding import ValueRange
from tuner.deploy.graph import EnsembleGraph, FixedResize, MemberGraph
from tuner.deploy.preprocessing import Preprocessing
from tuner.deploy.samples import Sample
from tuner.errors import TunerError, UsageError, how_to_get
from tuner.run.ensemble_record import EnsembleMember, EnsembleRecord
from tuner.schema import to_plain
from tuner.storage.files import replacing

Format = Literal["onnx", "pt2"]
"""A file for ONNX runtimes, or a program of ``torch.export``."""
RUNTIMES: dict[Format, str] = {"onnx": "onnxruntime", "pt2": "torch.export"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Maximum difference of a probability from torch's."""
ONNX_MOST_BYTES = 2**31 - 2**24
"""Maximum bytes of weights: a file must stay below 2 GiB, and its graph needs some room, too."""
TIMED_BATCHES = (1, 32)
MOST_REASON = 200
"""Maximum characters of the reason why a network could not be exported."""
OF_ITS_MAKER = frozenset({"source", "path", "run"})
"""Model parameters that hold the text or the path of its maker's own files."""
MIN_SECONDS, MIN_CALLS = 0.1, 5
"""Minimum seconds and calls of each measurement."""

PredictArray = Callable[[np.ndarray], np.ndarray]
"""Maps images, uint8 (N, H, W, C), to probabilities, float32 (N, K)."""
PredictAny = Callable[[np.ndarray | Path], np.ndarray]
"""The same, and for an image file, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportLatency:
    """Median time in milliseconds from uint8 images of the networks' own size to probabilities."""

    num_images: int
    exported_ms: float
    torch_ms: float
    """Time of the ensemble itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Comparison of a file's probabilities with the ensemble's."""

    num_images: int
    """Number of images that both predicted, with the same pixels."""
    max_difference: float
    """Largest difference of a probability."""
    equal_labels: int
    """Number of images with the same most probable class."""
    num_files: int
    """Number of images from files, decoded at full size."""
    equal_labels_of_files: int
    """Number of them with the class that ``predict`` returns for the file; it decodes a large JPEG
    at a smaller scale, and may crop half a pixel away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A written file, and its comparison with the ensemble itself."""

    file: str
    format: Format
    runtime: str
    """Library that ran it for the comparison."""
    num_bytes: int
    num_members: int
    compared: Comparison
    resize: FixedResize
    """How it makes images square."""
    value_range: ValueRange | None
    """Values of deeper images that become 0 and 255 before it takes them; ``None`` if none were
    deeper than 8 bits in training."""
    latency: tuple[ExportLatency, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def format_of(path: Path, asked: str | None) -> Format:
    """Return the requested format, or the one of the path's suffix.

    Raises:
        UsageError: If there is no such format.
    """
    for known in get_args(Format):
        if known == (path.suffix.removeprefix(".") if asked is None else asked):
            return known  # type: ignore[no-any-return]
    if asked is not None:
        raise UsageError(f"format: {asked!r} is none of {', '.join(get_args(Format))}")
    raise UsageError(f"{path}: name it .onnx or .pt2, or say which by --format")


def export_graph(
    graph: EnsembleGraph,
    path: Path,
    to: Format,
    *,
    name: str,
    record: EnsembleRecord,
    predict: PredictAny,
    samples: Iterable[Sample],
) -> Export:
    """Write an ensemble as one file, run it, and compare.

    Args:
        graph: The ensemble, on the CPU.
        path: The file; replaced if it exists, once the comparison has shown no difference.
        to: The format.
        name: Name of the ensemble.
        record: Contents of ``ensemble.json``.
        predict: The ensemble itself.
        samples: Images for the comparison, at least one.

    Raises:
        UsageError: If what it needs is not installed, the file would be too large, or a member's
            network cannot be exported.
        TunerError: If the file gives other probabilities than the ensemble.
    """
    if to == "onnx":
        check_installed()
        check_fits_onnx(graph)
    shape = (graph.size, graph.size, graph.channels)
    batches = [np.zeros((count, *shape), dtype=np.uint8) for count in TIMED_BATCHES]
    with _replacing(path) as temporary:
        _write(graph, temporary, to, metadata_of(graph, name, record))
        # Measured before another runtime is loaded, whose idle threads spin.
        torch_ms = [_milliseconds(predict, images) for images in batches]
        run = open_exported(temporary, to)
        compared = _compare(run, predict, samples)
        if not compared.max_difference <= TOLERANCE or compared.equal_labels < compared.num_images:
            raise TunerError(
                f"{path}: not written, for {RUNTIMES[to]} gives other probabilities than the "
                f"ensemble: by up to {compared.max_difference:.2g} (at most {TOLERANCE:g} is "
                f"rounding), with another class for "
                f"{compared.num_images - compared.equal_labels} of {compared.num_images} images"
            )
        exported_ms = [_milliseconds(run, images) for images in batches]
        return Export(
            file=str(path),
            format=to,
            runtime=RUNTIMES[to],
            num_bytes=temporary.stat().st_size,
            num_members=len(graph.members),
            compared=compared,
            resize=graph.resize,
            value_range=Preprocessing.of(record.preprocessing).value_range,
            latency=tuple(
                ExportLatency(num_images=count, exported_ms=ours, torch_ms=theirs)
                for count, ours, theirs in zip(TIMED_BATCHES, exported_ms, torch_ms, strict=True)
            ),
        )


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield what ``replacing`` yields; report a file that cannot be written in one line."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: is a pipe, a device or a folder; name a file")
        with replacing(path.resolve()) as temporary:
            yield temporary
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from error


def metadata_of(graph: EnsembleGraph, name: str, record: EnsembleRecord) -> dict[str, str]:
    """Return the metadata of a file as texts; the last three are JSON."""
    colours = "grey" if graph.channels == 1 else "RGB"
    origin = {key: getattr(record, key) for key in ("run", "made", "method", "temperature")}
    members = [_without_code(member) for member in record.members]
    versions = {"cifar_tune": __version__, "torch": torch.__version__}
    prepared = record.preprocessing
    images = f"uint8 (N, H, W, {graph.channels}), {colours}, of any one size"
    if scaled := Preprocessing.of(prepared).value_range:
        images += f", values {scaled[0]:g} to {scaled[1]:g} scaled to 0 to 255"
    return {
        "images": images,
        "probabilities": "float32 (N, K), in the order of the classes",
        "classes": json.dumps(record.classes),
        "preprocessing": json.dumps(
            {"resize": graph.resize, "black": prepared.black, "white": prepared.white}
        ),
        "provenance": json.dumps(
            {"ensemble": name, **origin, "members": members, "tta": prepared.tta, **versions}
        ),
    }


def _without_code(member: EnsembleMember) -> dict[str, Any]:
    """Return a member's entry in ``ensemble.json`` without code and paths of its maker."""
    plain: dict[str, Any] = to_plain(member)
    if (model := member.model) is not None:
        kept = {key: value for key, value in model.params.items() if key not in OF_ITS_MAKER}
        plain["model"] = {model.family: kept}
    return plain


def check_installed() -> None:
    """Check that the packages for writing and running ONNX files are installed.

    Raises:
        UsageError: If something is missing.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--format onnx needs packages that are not installed ({', '.join(missing)}): "
            f"{how_to_get('export')}"
        )


def check_fits_onnx(graph: EnsembleGraph) -> None:
    """Check that the weights fit into a file of less than 2 GiB, the limit of ONNX.

    Raises:
        UsageError: If they do not.
    """
    tensors = graph.state_dict().values()
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if num_bytes > ONNX_MOST_BYTES:
        raise UsageError(
            f"one ONNX file holds less than 2 GiB, and the weights of these {len(graph.members)} "
            f"members take {num_bytes / 2**30:.2f} GiB; take --format pt2, or fewer members"
        )


def open_exported(path: Path, to: Format) -> PredictArray:
    """Load an exported file to run it on the CPU."""
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run_session(images: np.ndarray) -> np.ndarray:
            (probs,) = session.run(None, {"images": images})
            return np.asarray(probs)

        return run_session
    with path.open("rb") as file:
        program = torch.export.load(file).module()

    def run_program(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(program(torch.from_numpy(images)))

    return run_program


def _write(graph: EnsembleGraph, path: Path, to: Format, metadata: Mapping[str, str]) -> None:
    write = {"onnx": _write_onnx, "pt2": _write_program}[to]
    try:
        write(_trace(graph), path, metadata)
    except OSError:
        raise
    # Custom networks may raise anything when traced, and ONNX lacks some operations.
    except Exception:
        for member in graph.members:
            assert isinstance(member, MemberGraph)
            alone = EnsembleGraph(
                [member],
                image_shape=(graph.channels, graph.size, graph.size),
                resize=graph.resize,
                temperature=graph.temperature,
            )
            try:
                write(_trace(alone), path, {})
            except Exception as error:
                raise UsageError(
                    f"{member.file}: its network cannot be exported to {to} ({_reason(error)}); "
                    "leave it out, or fix its code"
                ) from error
        raise


def _reason(error: BaseException) -> str:
    """Describe in one line where in custom code an export failed, and why."""
    frames = traceback.extract_tb(error.__traceback__)
    # Custom code has a plain file name; other files have full paths.
    own = [frame for frame in frames if not frame.filename.startswith(("/", "<"))]
    place = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
    while error.__cause__ is not None:
        error = error.__cause__
    first = (str(error).splitlines() or [""])[0].strip()
    return f"{place}{type(error).__name__}: {first[:MOST_REASON]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the hundreds of lines that torch prints and logs when an export fails."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _trace(graph: EnsembleGraph) -> ExportedProgram:
    # Several images, neither square nor of the networks' own size: no dimension is a constant.
    images = torch.zeros(2, graph.size + 8, graph.size + 16, graph.channels, dtype=torch.uint8)
    sides = {0: Dim("N", min=1), 1: Dim("H", min=1), 2: Dim("W", min=1)}
    with _quiet():
        program = torch.export.export(graph, (images,), dynamic_shapes=(sides,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # Paths of this machine.
    return program


def _write_onnx(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    import onnx

    with _quiet():
        exported = torch.onnx.export(program, output_names=["probabilities"], verbose=False)
    assert exported is not None
    model = exported.model_proto
    # Names of dimensions, and notes about the code that a node comes from.
    model.graph.ClearField("value_info")
    for part in (*model.graph.node, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
    (images,), (probs,) = model.graph.input, model.graph.output
    for side, name in zip(images.type.tensor_type.shape.dim, "NHW", strict=False):
        side.dim_param = name
    probs.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.helper.set_model_props(model, dict(metadata))
    path.write_bytes(model.SerializeToString(deterministic=True))


def _write_program(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    with path.open("wb") as file, warnings.catch_warnings():
        # torch takes channels-last weights for parts of larger ones, then writes them whole.
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        torch.export.save(program, file, extra_files=dict(metadata))


def _compare(run: PredictArray, predict: PredictAny, samples: Iterable[Sample]) -> Comparison:
    num_images = equal = num_files = equal_of_files = 0
    differences: list[float] = []
    for sample in samples:
        probs, expected = run(sample.images), predict(sample.images)
        differences.append(np.abs(probs - expected).max())
        labels = probs.argmax(axis=1)
        num_images += len(labels)
        equal += int((labels == expected.argmax(axis=1)).sum())
        if sample.file is not None:
            num_files += 1
            equal_of_files += int(labels[0] == predict(sample.file)[0].argmax())
    return Comparison(
        num_images=num_images,
        max_difference=float(np.max(differences)),
        equal_labels=equal,
        num_files=num_files,
        equal_labels_of_files=equal_of_files,
    )


def _milliseconds(function: PredictArray, images: np.ndarray) -> float:
    """Return the median time of a call, after a warm-up call."""
    function(images)
    times: list[float] = []
    while sum(times) < MIN_SECONDS or len(times) < MIN_CALLS:
        began = time.perf_counter()
        function(images)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)
