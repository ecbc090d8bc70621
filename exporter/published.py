"""Import of the statistics that the authors of arXiv:2503.21730 have published: NumPy arrays in pickle files.

A pickle is a program, and unpickling runs it. Here it is read first, without being run, and refused unless it uses
nothing but the few instructions of the authors' files; then it is run with stand-ins for NumPy's names, so that
neither NumPy nor anything else is called by it. What the stand-ins have noted becomes arrays at the very end.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import pickletools
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import safetensors.torch
import torch
from torch import Tensor

from exporter.errors import BadInput, first_line
from exporter.staging import write_errors

NEURON_ADJUST, KEY_SPACE = "neuron-adjust", "key-space"
KINDS = {"gate": NEURON_ADJUST, "down": KEY_SPACE}
KEY = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.mlp\.(gate|down)_proj")
FIELDS = {
    NEURON_ADJUST: {"mu1_lst", "sigma1_lst", "mu2_lst", "sigma2_lst", "neuron_lst"},
    KEY_SPACE: {"mean", "std", "k"},
}

MAX_BYTES = 512 << 20
# Every neuron of a 70B model would take 2.3 million. Instructions make objects far larger than themselves.
MAX_INSTRUCTIONS = 1 << 22
# About 16 a layer. Tuples are hashed by recursion in C, which deep ones would crash.
MAX_TUPLES = 1 << 12

# What the published files use; APPEND and LONG_BINGET, which lists of 1001 neurons and files with more than 256
# objects used again need; TUPLE2 and EMPTY_TUPLE, so that calls and shapes that are refused are refused by name.
INSTRUCTIONS = re.compile(
    r"PROTO|FRAME|STOP|MARK|MEMOIZE|(LONG_)?BINGET|STACK_GLOBAL|REDUCE|BUILD|EMPTY_(DICT|LIST)|SETITEMS?|APPENDS?|"
    r"TUPLE[123]?|EMPTY_TUPLE|NONE|NEWTRUE|NEWFALSE|BININT[12]?|BINFLOAT|SHORT_BINUNICODE|(SHORT_)?BINBYTES"
)
# Objects that may be used again: text, names, arrays and b"b". No container, so that everything is a finite tree, and
# no large bytes, so that nothing grows beyond the size of the file.
REUSABLE = frozenset({"SHORT_BINUNICODE", "SHORT_BINBYTES", "STACK_GLOBAL", "REDUCE"})

# What else than BadInput the scan, the unpickler and the stand-ins raise on garbage.
_DATA_ERRORS = (AttributeError, LookupError, OverflowError, TypeError, ValueError)
GARBAGE_ERRORS = (*_DATA_ERRORS, pickle.UnpicklingError, EOFError, MemoryError, RecursionError)


@dataclass(frozen=True)
class Published:
    """What a file holds.

    Attributes:
        kind: "neuron-adjust" or "key-space".
        tensors: By name, for every layer N that has any. Neuron Adjust: `neurons.N.index` (n,) int64, ascending, and
            `neurons.N.params` (4, n) float64, rows mu_f, sd_f, mu_r, sd_r. Key Space Detection: `cube.N.mean` (d_ff,),
            `cube.N.deviation` (d_ff,) and `cube.N.k` (), all float64.
    """

    kind: str
    tensors: dict[str, Tensor]


def read_published(path: Path) -> Published:
    """Read a file of the authors' `experiment_results`, as their `get_adjust_info.py` and the like write them.

    Raises:
        BadInput: The file cannot be read, or is anything else than such statistics: one line that names the file and,
            where there is one, the field. Nothing of what the file asks for has been done then.
    """
    return _published(_unpickled(_bytes_of(path), path), path)


def import_published(source: Path, target: Path, overwrite: bool) -> dict[str, Any]:
    """Write the tensors of `read_published` as a safetensors file, whole or not at all.

    Its metadata say in `unskill_statistics`, as JSON, where they are from: version, kind, source (base name), sha256.

    Returns:
        A summary for JSON: kind, source, layers, out, and neurons by layer or d_ff and k by layer.

    Raises:
        BadInput: As `read_published`; target exists without `overwrite`, or is a folder or the source; no parent.
        RunFailed: The disk is full or fails.
    """
    out = target.resolve()  # a link's target is replaced, not the link
    if os.path.lexists(target) and not overwrite:
        raise BadInput(f"{target} exists: choose another file or give --overwrite")
    if os.path.isdir(out):
        raise BadInput(f"{target} is a folder: name a file in it")
    if not os.path.isdir(out.parent):
        raise BadInput(f"{target}: the folder {target.parent} does not exist")
    if out == source.resolve():
        raise BadInput(f"{target} is the file to be imported: choose another")
    data = _bytes_of(source)
    published = _published(_unpickled(data, source), source)
    digest = hashlib.sha256(data).hexdigest()
    origin = {"version": 1, "kind": published.kind, "source": source.name, "sha256": digest}
    content = safetensors.torch.save(published.tensors, {"format": "pt", "unskill_statistics": json.dumps(origin)})
    temporary = out.with_name(f".unskill-{secrets.token_hex(4)}")  # short: out's own name may be as long as may be
    with write_errors(out, len(content)):
        try:
            with temporary.open("xb") as file:
                file.write(content)
            os.replace(temporary, out)
        finally:
            temporary.unlink(missing_ok=True)
    return {"kind": published.kind, "source": source.name, **_summary(published.tensors), "out": target.name}


def _summary(tensors: dict[str, Tensor]) -> dict[str, Any]:
    layers = sorted({int(name.split(".")[1]) for name in tensors})
    first = tensors.get(f"cube.{layers[0]}.mean")
    if first is None:
        return {"layers": layers, "neurons": {str(each): len(tensors[f"neurons.{each}.index"]) for each in layers}}
    return {
        "layers": layers,
        "d_ff": len(first),
        "k": {str(each): tensors[f"cube.{each}.k"].item() for each in layers},
    }


# --- the file, without running it


def _bytes_of(path: Path) -> bytes:
    if os.path.isdir(path):
        raise BadInput(f"{path} is a folder: name one file in it")
    if not os.path.isfile(path):  # nor a pipe, which would be waited for
        raise BadInput(f"no such file: {path}")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BadInput(f"{path} is not a file of published statistics: {size} bytes are more than {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error


def _shown(text: str) -> str:
    """Text of a file as part of one line: without control characters, and not endless."""
    clean = "".join(each if each.isprintable() else "?" for each in text[:120])
    return clean if len(text) <= 120 else f"{clean}..."


def _scan(data: bytes, path: Path) -> None:
    """BadInput for every instruction, or use of one, that the published files do without; nothing is run."""
    previous, objects, tuples, last = "", 0, 0, 0
    reusable = set()
    for count, (instruction, argument, position) in enumerate(pickletools.genops(data)):
        name, last = instruction.name, position or 0
        if not INSTRUCTIONS.fullmatch(name):
            what = f"{name} {_shown(argument)}" if isinstance(argument, str) else name
            raise BadInput(f"{path}: uses the pickle instruction {what}, which no statistics file needs; refused")
        tuples += name.startswith("TUPLE")
        if count >= MAX_INSTRUCTIONS or tuples > MAX_TUPLES:
            raise BadInput(f"{path}: has more pickle instructions than any statistics file needs; refused")
        if name == "MEMOIZE":  # numbers them itself: the only way in that is allowed
            if previous in REUSABLE:
                reusable.add(objects)
            objects += 1
        elif name.endswith("BINGET") and (argument or 0) not in reusable:
            raise BadInput(f"{path}: uses a container or bytes twice, which no statistics file needs; refused")
        if name != "FRAME":  # may stand between an object and its MEMOIZE, and does nothing
            previous = name
    if last != len(data) - 1:
        raise BadInput(f"{path}: goes on for {len(data) - 1 - last} bytes after its end; refused")


# --- the stand-ins


class _Name:
    """What a pickle gets for a name that it may ask for: nothing can be set on it. By itself, `numpy.ndarray`."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise ValueError("sets the state of a name")


class _Dtype:
    """`numpy.dtype(code)`: float32, float64, int32 or int64, in either byte order, and nothing with parts."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order: str | None = None

    def __setstate__(self, state: Any) -> None:
        for order in "<>":
            if state == (3, order, None, None, None, -1, -1, 0):
                self.order = order
                return
        raise ValueError("an array's dtype is not plain numbers")


class _Array:
    """An array of one dimension, as the bytes that it has in the file."""

    __slots__ = ("data", "dtype")

    def __init__(self) -> None:
        self.dtype: str | None = None
        self.data: bytes | None = None

    def __setstate__(self, state: Any) -> None:
        match state:
            case (1, (int(length),), _Dtype(order=str(order), code=code), bool(), bytes(data)):
                if length < 0 or len(data) != length * int(code[1]):
                    raise ValueError("an array has another number of bytes than its shape says")
                self.dtype, self.data = order + code, data
            case _:
                raise ValueError("an array is not one-dimensional, or not of plain numbers")


class _Reconstruct(_Name):
    """`_reconstruct(ndarray, (0,), b"b")`, NumPy's empty array to be filled by BUILD. With another shape it would
    allocate that."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> _Array:
        if arguments != (_NDARRAY, (0,), b"b"):
            raise ValueError("an array is made otherwise than NumPy does")
        return _Array()


class _MakeDtype(_Name):
    __slots__ = ()

    def __call__(self, *arguments: Any) -> _Dtype:
        for code in ("f4", "f8", "i4", "i8"):
            if arguments == (code, False, True):
                return _Dtype(code)
        raise ValueError("an array is not of float32, float64, int32 or int64")


_NDARRAY = _Name()
_NAMES: dict[tuple[str, str], _Name] = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _MakeDtype(),
}


class _Unpickler(pickle.Unpickler):
    """Knows four names, imports nothing."""

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data))
        self.path = path

    def find_class(self, module: str, name: str) -> _Name:
        if (module, name) not in _NAMES:
            asked = _shown(f"{module}.{name}")
            raise BadInput(f"{self.path}: asks for {asked}, which no statistics file needs; refused")
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise BadInput(f"{self.path}: asks for an object outside the file, which no statistics file needs; refused")


def _unpickled(data: bytes, path: Path) -> Any:
    if not data.startswith(b"\x80\x04"):
        raise BadInput(f"{path}: is not a pickle of protocol 4, as the published statistics are")
    try:
        _scan(data, path)
        return _Unpickler(data, path).load()
    except GARBAGE_ERRORS as error:
        raise BadInput(f"{path}: is not a pickle of published statistics ({_shown(first_line(error))})") from error


# --- the content


def _published(content: Any, path: Path) -> Published:
    if not isinstance(content, dict) or not content:
        raise BadInput(f"{path}: holds no layers, which published statistics name model.layers.N.mlp.gate_proj")
    layers: dict[int, Any] = {}
    kind = ""
    for key, fields in content.items():
        match = KEY.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            shown = _shown(key) if isinstance(key, str) else type(key).__name__
            raise BadInput(f"{path}: '{shown}' is not the name of a layer's gate_proj or down_proj")
        if kind not in ("", KINDS[match[2]]):
            raise BadInput(f"{path}: {key} is of another kind than the layers before it")
        kind = KINDS[match[2]]
        if not isinstance(fields, dict) or set(fields) != FIELDS[kind]:
            raise BadInput(f"{path}: {key} must have the fields {', '.join(sorted(FIELDS[kind]))} and no others")
        layers[int(match[1])] = fields, f"{path}: {key}"
    tensors: dict[str, Tensor] = {}
    for layer, (fields, where) in sorted(layers.items()):
        tensors |= (_neurons if kind == NEURON_ADJUST else _cube)(layer, fields, where)
    if not tensors:
        raise BadInput(f"{path}: neuron_lst is empty in every layer")
    if len({len(values) for name, values in tensors.items() if name.endswith(".mean")}) > 1:
        raise BadInput(f"{path}: mean is not of the same length in every layer")
    return Published(kind, tensors)


def _neurons(layer: int, fields: dict[str, Any], where: str) -> dict[str, Tensor]:
    """The tensors of a layer; none where it has no neurons, as `neuron_selection.top` has it.

    The authors' 1 is the retain and 2 the forget set. Their "sigma" is E[x^2] - E[x]^2 (`get_running_mean_std` in
    `utils/netprobe.py`, without a root anywhere after it), which is a variance: its root is the deviation.
    """
    index = _numbers(fields["neuron_lst"], f"{where}: neuron_lst")
    rows = []
    for number in (2, 1):
        mean = _vector(fields[f"mu{number}_lst"], f"{where}: mu{number}_lst", len(index))
        variance = _vector(fields[f"sigma{number}_lst"], f"{where}: sigma{number}_lst", len(index))
        if (variance <= 0).any():
            raise BadInput(f"{where}: sigma{number}_lst holds variances that are not above 0")
        rows += [mean, variance.sqrt()]
    return {f"neurons.{layer}.index": index, f"neurons.{layer}.params": torch.stack(rows)} if len(index) else {}


def _cube(layer: int, fields: dict[str, Any], where: str) -> dict[str, Tensor]:
    """The tensors of a layer. "std" is a deviation indeed; mean +- k * std holds every probed vector of the skill."""
    k = fields["k"]
    if type(k) not in (int, float) or not 0 < k < float("inf"):
        raise BadInput(f"{where}: k must be a finite number above 0")
    mean = _vector(fields["mean"], f"{where}: mean")
    deviation = _vector(fields["std"], f"{where}: std", len(mean))
    if not len(mean):
        raise BadInput(f"{where}: mean is empty")
    if (deviation < 0).any():
        raise BadInput(f"{where}: std holds deviations below 0")
    tensors = {"mean": mean, "deviation": deviation, "k": torch.tensor(k, dtype=torch.float64)}
    return {f"cube.{layer}.{name}": values for name, values in tensors.items()}


def _vector(value: Any, where: str, length: int | None = None) -> Tensor:
    """An array as (n,) float64."""
    array = _array(value, where)
    if length is not None and len(array) != length:
        raise BadInput(f"{where} has {len(array)} values, not {length}")
    if not numpy.isfinite(array).all():
        raise BadInput(f"{where} holds NaN or infinity")
    return torch.from_numpy(array.astype(numpy.float64))


def _numbers(value: Any, where: str) -> Tensor:
    """A list of numbers, or an array of them, as (n,) int64."""
    numbers = _array(value, where).tolist() if isinstance(value, _Array) else value
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise BadInput(f"{where} is not a list of whole numbers")
    index = torch.tensor(numbers, dtype=torch.int64)
    if (index < 0).any() or (index[1:] <= index[:-1]).any():
        raise BadInput(f"{where} must be neuron numbers from 0, strictly increasing")
    return index


def _array(value: Any, where: str) -> numpy.ndarray:
    if not isinstance(value, _Array):
        raise BadInput(f"{where} is not a NumPy array")
    if value.data is None or value.dtype is None:
        raise BadInput(f"{where} is an array without data, or one that another field has too")
    array = numpy.frombuffer(value.data, value.dtype)
    value.data = None  # one array in the place of many would be copied for each of them
    return array
