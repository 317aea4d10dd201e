"""What a program compiled for a GPU consists of, read from its HLO, XLA's lists of launches, and the kernels' code (PTX)."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Kernel(NamedTuple):
    """A kernel of a compiled program.

    Attributes:
      name: the name of its instruction.
      main: whether it reads or writes a good part of the largest array.
      reductions: how many arrays of sums it computes.
      moved: bytes that it reads and writes, each array once.
      rotations: 32-bit rotations for each 4 elements of its largest output.
      integers: operations on 32-bit integers, of all threads.
    """

    name: str
    main: bool
    reductions: int
    moved: int
    rotations: float
    integers: int


class Program(NamedTuple):
    """A compiled program."""

    kernels: tuple[Kernel, ...]
    temporary_bytes: int

    @property
    def moved(self) -> int:
        """Bytes that all kernels read and write."""
        return sum(kernel.moved for kernel in self.kernels)

    def roofline(self, bandwidth: float, integer_speed: float) -> float:
        """Returns the seconds that the kernels take at least: each for its bytes or its integer operations, which takes longer.

        Args:
          bandwidth: of the memory, in bytes a second.
          integer_speed: operations on 32-bit integers a second.
        """
        return sum(max(kernel.moved / bandwidth, kernel.integers / integer_speed) for kernel in self.kernels)


class Code(NamedTuple):
    """How many rotations of 32-bit words a kernel's code has, and how many operations on 32-bit integers in all."""

    rotations: int
    integers: int


class Launch(NamedTuple):
    """How an instruction is launched: the kernel, which may serve several instructions, and on how many threads."""

    kernel: str
    threads: int


class Instruction(NamedTuple):
    """An instruction of a computation in HLO."""

    name: str
    shape: str
    opcode: str
    arguments: str
    called: str | None

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions that it takes."""
        return tuple(re.findall(r"%([\w.\-]+)", self.arguments))


def parse_code(ptx: str) -> dict[str, Code]:
    """Returns how many operations each kernel has in its code; one on 64 bits takes two on 32, and that of a loop counts once.

    PTX has no rotation of its own: it is a funnel shift of a word with itself, or by 16 bits a permutation of its bytes.
    """
    integer = re.compile(
        r"^\s+(?:@!?%\w+\s+)?(?:add|sub|mul|mad|and|or|xor|not|neg|abs|min|max|shl|shr|shf|prmt|lop3|bfe|bfi)"
        r"(?:\.(?:cc|lo|hi|wide|[lr]|wrap|clamp))*\.[sub](32|64)\b",
        re.MULTILINE,
    )
    rotation = re.compile(r"\bshf\.[lr]\.wrap\.b32\s+%\w+, (%\w+), \1,|\bprmt\.b32\s+%\w+, (%\w+), (?:\2|0), (?:0x1032|4146)U?;")
    kernels = re.split(r"\.entry\s+", ptx)[1:]
    return {
        code[: code.index("(")].strip(): Code(len(rotation.findall(code)), sum(int(bits) // 32 for bits in integer.findall(code)))
        for code in kernels
    }


def parse_launches(sequence: str, metadata: str) -> dict[str, Launch]:
    """Returns how each instruction is launched, from XLA's `thunk_sequence.txt` and `thunk_metadata.txt`."""
    grid = re.compile(r"^(\d+): .*\] (\S+) grid: \[(.*?)\] threads: \[(.*?)\]", re.MULTILINE)
    launches = {
        int(number): Launch(kernel, math.prod(int(size) for size in f"{blocks}, {threads}".split(", ")))
        for number, kernel, blocks, threads in grid.findall(sequence)
    }
    names = re.findall(r'profile_annotation: "(.*?)"\s+thunk_id: (\d+)', metadata)
    return {name: launches[int(number)] for name, number in names if int(number) in launches}


def parse_kernels(hlo: str, launches: Mapping[str, Launch], codes: Mapping[str, Code]) -> list[Kernel]:
    """Returns the kernels of a compiled program, in order, from its HLO and what is known of its launches and kernels.

    Those of branches are left out: whether they run, no program tells.
    """
    computations, entry_name = parse_computations(hlo)
    entry = computations[entry_name]
    shapes = {instruction.name: instruction.shape for instruction in entry}
    largest = max(array.elements for shape in shapes.values() for array in _arrays(shape))
    kernels = []
    for instruction in entry:
        if instruction.opcode in _NO_KERNEL or instruction.opcode.endswith("-done"):
            continue
        body = computations.get(instruction.called or "", [])
        written = _arrays(instruction.shape)
        operands = [_arrays(shapes[name]) for name in instruction.operands]
        read = _elements_read(body, operands) if body else operands
        touched = [*written, *itertools.chain.from_iterable(read)]
        launch = launches.get(instruction.name, Launch("", 0))
        code = codes.get(launch.kernel, Code(0, 0))
        kernels.append(
            Kernel(
                name=instruction.name,
                main=_MAIN_SHARE * max(array.elements for array in touched) >= largest,
                reductions=sum(len(_arrays(inner.shape)) for inner in body if inner.opcode == "reduce"),
                moved=sum(array.nbytes for array in touched),
                rotations=_of_four(written, launch, code.rotations),
                integers=code.integers * launch.threads,
            )
        )
    return kernels


def parse_computations(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the computations of a module in HLO, by name, and the name of the one where it starts."""
    heading = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
    line_of_code = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.+?\)|\S+) ([\w\-]+)\(([^)]*)\)(.*)$")
    computations: dict[str, list[Instruction]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        if match := heading.match(line):
            name = match[2]
            entry = name if match[1] else entry
            computations[name] = []
        elif name and (match := line_of_code.match(line)):
            called = re.search(r"\bcalls=%?([\w.\-]+)", match[5])
            computations[name].append(Instruction(match[1], match[2], match[3], match[4], called[1] if called else None))
    if not entry:
        raise ValueError("this is no module in HLO: it has no ENTRY")
    return computations, entry


class _Array(NamedTuple):
    elements: int
    nbytes: int


_MAIN_SHARE = 16
_NO_KERNEL = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "partition-id", "after-all", "conditional"}
_READS_ALL = {"reduce", "reduce-window", "dot", "convolution", "sort", "scatter"}


def _arrays(shapes: str) -> list[_Array]:
    """Returns the sizes of the arrays in a shape of HLO, as `f32[8,4]{1,0}` or a tuple of such."""
    arrays = []
    for bits, sizes in re.findall(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]", shapes):
        elements = math.prod(int(size) for size in sizes.split(",") if size)
        arrays.append(_Array(elements, elements * int(bits or 8) // 8))
    return arrays


def _elements_read(body: Sequence[Instruction], operands: Sequence[Sequence[_Array]]) -> list[list[_Array]]:
    """Returns what a fused computation reads of its operands: of one that it slices, say, no more than the slice."""
    size = {inner.name: max((array.elements for array in _arrays(inner.shape)), default=0) for inner in body}
    needed = dict.fromkeys(size, 0)
    needed[body[-1].name] = size[body[-1].name]
    for inner in reversed(body):
        for name in inner.operands:
            wanted = size[name] if inner.opcode in _READS_ALL else min(size[name], needed[inner.name])
            needed[name] = max(needed[name], wanted)
    parameters = {int(inner.arguments): needed[inner.name] for inner in body if inner.opcode == "parameter"}
    read = []
    for i, arrays in enumerate(operands):
        shares = [min(1.0, parameters[i] / max(1, array.elements)) for array in arrays]
        read.append([_Array(round(s * a.elements), round(s * a.nbytes)) for s, a in zip(shares, arrays, strict=True)])
    return read


def _of_four(written: Iterable[_Array], launch: Launch, operations: int) -> float:
    """Returns the operations for 4 elements of the largest output, from those in the code of a thread."""
    elements = max(array.elements for array in written) / max(1, launch.threads)
    return 4 * operations / max(1, round(elements))
