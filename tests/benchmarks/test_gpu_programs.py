"""The command that compiles the layers for an H200: what it reads in small programs; and with the compiler, what it must find."""

import importlib.metadata
import json
import math
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from packages import assert_lack_is_said_in_a_line, install

from jaxnorm.benchmarks import gpu_programs
from jaxnorm.benchmarks._compiled_steps import STEPS, Step, perceptron
from jaxnorm.benchmarks._gpu_compiler import VARIABLE, find_compiler
from jaxnorm.benchmarks._gpu_kernels import (
    Code,
    Kernel,
    Launch,
    Program,
    parse_code,
    parse_computations,
    parse_kernels,
    parse_launches,
)
from jaxnorm.benchmarks.gpu_programs import BANDWIDTH, DIRECTIONS, LAYERS, SHAPE, figures, main

PTX = """\
.version 9.4
.visible .entry loop_select_fusion(
	.param .u64 .ptr .align 256 loop_select_fusion_param_0
)
.reqntid 128, 1, 1
{
	ld.global.nc.v4.b16 	{%rs1, %rs2, %rs3, %rs4}, [%rd14];
	shf.l.wrap.b32 	%r15, %r14, %r14, 13;
	shf.r.wrap.b32 	%r18, %r17, %r17, 15;
	prmt.b32 	%r19, %r18, %r18, 0x1032U;
	prmt.b32 	%r20, %r19, 0, 0x1032U;
	shf.l.wrap.b32 	%r21, %r14, %r15, 13;
	prmt.b32 	%r22, %r20, %r21, 0x3340U;
	shr.u32 	%r23, %r22, 6;
	ret;
}
.visible .entry loop_add_fusion(
	.param .u64 .ptr .align 256 loop_add_fusion_param_0
)
{
	add.s32 	%r1, %r2, %r3;
	@%p1 xor.b64 	%rd1, %rd2, %rd3;
	mul.wide.s32 	%rd4, %r1, 4;
	add.f32 	%f1, %f2, %f3;
	and.pred 	%p2, %p3, %p1;
	mov.b32 	%r4, 7;
	ret;
}
"""

SEQUENCE = """\
001: kCustomKernel [source       | next=002 (1)] loop_xor_fusion grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
002: kCustomKernel [prev=001 (1) | next=003 (1)] loop_select_fusion_1 grid: [64, 2, 1] threads: [128, 1, 1]
003: kCustomKernel [prev=002 (1) | next=004 (1)] loop_select_fusion_1 grid: [64, 2, 1] threads: [128, 1, 1]
004: kCopy [prev=003 (1) | sink        ] 1024 bytes
"""

METADATA = """\
thunk_metadata {
  thunk_info {
    profile_annotation: "loop_xor_fusion"
    thunk_id: 1
  }
  thunk_kind: "kCustomKernel"
}
thunk_metadata {
  thunk_info {
    profile_annotation: "loop_select_fusion.1"
    thunk_id: 2
  }
}
thunk_metadata {
  thunk_info {
    profile_annotation: "loop_select_fusion"
    thunk_id: 3
  }
}
thunk_metadata {
  thunk_info {
    profile_annotation: "copy.2"
    thunk_id: 4
  }
}
"""

BATCH_NORM = """\
HloModule jit_f, is_scheduled=true, frontend_attributes={fingerprint="1"}

FileLocations
1 {file_name_id=1 function_name_id=1}

%region (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%first_of (p: bf16[64,100,16]) -> f32[1,1,16] {
  %p = bf16[64,100,16]{2,1,0} parameter(0)
  %wide = f32[64,100,16]{2,1,0} convert(%p), metadata={op_name="jit(f)/convert"}
  ROOT %slice.1 = f32[1,1,16]{2,1,0} slice(%wide), slice={[0:1], [0:1], [0:16]}
}

%sums (p.1: bf16[64,100,16], s: f32[1,1,16]) -> (f32[16], f32[16]) {
  %p.1 = bf16[64,100,16]{2,1,0} parameter(0)
  %wide.1 = f32[64,100,16]{2,1,0} convert(%p.1)
  %s = f32[1,1,16]{2,1,0} parameter(1)
  %along = f32[64,100,16]{2,1,0} broadcast(%s), dimensions={2}
  %d = f32[64,100,16]{2,1,0} subtract(%wide.1, %along)
  %zero = f32[] constant(0)
  %sum = f32[16]{0} reduce(%d, %zero), dimensions={0,1}, to_apply=%region
  %square = f32[64,100,16]{2,1,0} multiply(%d, %d)
  %sum.1 = f32[16]{0} reduce(%square, %zero), dimensions={0,1}, to_apply=%region
  ROOT %both = (f32[16]{0}, f32[16]{0}) tuple(%sum, %sum.1)
}

%normalized (p.2: bf16[64,100,16], q: f32[16]) -> bf16[64,100,16] {
  %p.2 = bf16[64,100,16]{2,1,0} parameter(0)
  %wide.2 = f32[64,100,16]{2,1,0} convert(%p.2)
  %q = f32[16]{0} parameter(1)
  %along.1 = f32[64,100,16]{2,1,0} broadcast(%q), dimensions={2}
  %product = f32[64,100,16]{2,1,0} multiply(%wide.2, %along.1)
  ROOT %narrow = bf16[64,100,16]{2,1,0} convert(%product)
}

ENTRY %main.5 (x.1: bf16[64,100,16]) -> bf16[64,100,16] {
  %x.1 = bf16[64,100,16]{2,1,0} parameter(0), sharding={mesh['x'=1], [{}, {}, {}]}
  %loop_slice_fusion = f32[1,1,16]{2,1,0} fusion(%x.1), kind=kLoop, calls=%first_of
  %input_reduce_fusion = (f32[16]{0}, f32[16]{0}) fusion(%x.1, %loop_slice_fusion), kind=kInput, calls=%sums
  %get-tuple-element = f32[16]{0} get-tuple-element(%input_reduce_fusion), index=0
  %all-reduce-start = ((f32[16]{0}), f32[16]{0}) all-reduce-start(%get-tuple-element), to_apply=%region
  %all-reduce-done = f32[16]{0} all-reduce-done(%all-reduce-start)
  ROOT %loop_convert_fusion = bf16[64,100,16]{2,1,0} fusion(%x.1, %all-reduce-done), kind=kLoop, calls=%normalized
}
"""

needs_compiler = pytest.mark.skipif(
    not os.environ.get(VARIABLE),
    reason=f"{VARIABLE} names no folder with a compiler for GPUs; python -m jaxnorm.benchmarks.gpu_programs says how to get it",
)


def dropout_program(elements: int) -> str:
    return (
        f"ENTRY %main (x: f32[{elements}]) -> f32[{elements}] {{\n"
        f"  %x = f32[{elements}]{{0}} parameter(0)\n"
        f"  ROOT %loop_select_fusion.1 = f32[{elements}]{{0}} fusion(%x), kind=kLoop, calls=%missing\n"
        "}\n"
    )


def test_operations_of_each_kernel():
    assert parse_code(PTX) == {"loop_select_fusion": Code(4, 7), "loop_add_fusion": Code(0, 1 + 2 + 1)}
    assert parse_code("") == {}


def test_launches_of_each_instruction():
    select = Launch("loop_select_fusion_1", 64 * 2 * 128)
    expected = {"loop_xor_fusion": Launch("loop_xor_fusion", 1), "loop_select_fusion.1": select, "loop_select_fusion": select}
    assert parse_launches(SEQUENCE, METADATA) == expected


def test_kernels_of_a_batch_norm():
    x, channels = 64 * 100 * 16, 16
    assert parse_kernels(BATCH_NORM, {}, {}) == [
        Kernel("loop_slice_fusion", main=False, reductions=0, moved=(2 + 4) * channels, rotations=0.0, integers=0),
        Kernel("input_reduce_fusion", main=True, reductions=2, moved=2 * x + 3 * 4 * channels, rotations=0.0, integers=0),
        Kernel("all-reduce-start", main=False, reductions=0, moved=3 * 4 * channels, rotations=0.0, integers=0),
        Kernel("loop_convert_fusion", main=True, reductions=0, moved=2 * 2 * x + 4 * channels, rotations=0.0, integers=0),
    ]


def test_a_reduction_of_a_slice_reads_no_more_than_the_slice():
    part = BATCH_NORM.replace("reduce(%square, %zero)", "reduce(%d, %zero)").replace(
        "%d = f32[64,100,16]{2,1,0} subtract(%wide.1, %along)", "%d = f32[64,1,16]{2,1,0} slice(%wide.1), slice={}"
    )
    kernels = {kernel.name: kernel for kernel in parse_kernels(part, {}, {})}
    assert kernels["input_reduce_fusion"].moved == 2 * 64 * 16 + 2 * 4 * 16
    assert not kernels["input_reduce_fusion"].main


@pytest.mark.parametrize(
    ("elements", "threads", "expected"),
    [(2**20, 2**18, 20.0), (2**20, 2**20, 80.0), (2**20 - 4, 2**18, 20.0), (2**20, 2**17, 10.0), (100, 128, 80.0)],
)
def test_rotations_for_four_elements(elements, threads, expected):
    launches = {"loop_select_fusion.1": Launch("loop_select_fusion_1", threads)}
    (kernel,) = parse_kernels(dropout_program(elements), launches, {"loop_select_fusion_1": Code(20, 50)})
    assert kernel == Kernel("loop_select_fusion.1", True, 0, moved=8 * elements, rotations=expected, integers=50 * threads)


def test_a_kernel_takes_as_long_as_its_bytes_or_its_integers_do():
    kernels = (
        Kernel("a", True, 0, moved=300, rotations=0, integers=100),
        Kernel("b", True, 0, moved=10, rotations=0, integers=80),
    )
    program = Program(kernels, temporary_bytes=0)
    assert program.moved == 310
    assert program.roofline(bandwidth=100, integer_speed=50) == 3 + 1.6


@pytest.mark.parametrize(
    ("shape", "nbytes"),
    [
        ("pred[8,4]{1,0}", 32),
        ("bf16[3]", 6),
        ("s32[]", 4),
        ("f64[2,2]{1,0}", 32),
        ("c64[5]", 40),
        ("f8e4m3fn[7]", 7),
        ("u8[0]", 0),
    ],
)
def test_sizes_of_arrays(shape, nbytes):
    program = f"ENTRY %main (x: f32[64]) -> f32[64] {{\n  %x = f32[64]{{0}} parameter(0)\n  ROOT %copy = {shape} copy(%x)\n}}\n"
    (kernel,) = parse_kernels(program, {}, {})
    assert kernel.moved == nbytes + 64 * 4


def test_a_text_that_is_no_program_is_an_error():
    with pytest.raises(ValueError, match="no module in HLO"):
        parse_computations("HloModule jit_f\n\n%f (a: f32[]) -> f32[] {\n  ROOT %a = f32[] parameter(0)\n}\n")


def test_figures_of_a_program():
    x = jax.ShapeDtypeStruct((64, 100, 16), jnp.bfloat16)
    found = figures(Program(tuple(parse_kernels(BATCH_NORM, {}, {})), temporary_bytes=7))
    main, all_kernels = found.pop("moved_by_main"), found.pop("moved")
    assert main == pytest.approx(3 * x.size * 2, rel=1e-2)
    assert all_kernels == main + (2 + 4) * 16 + 3 * 4 * 16
    assert found == {
        "main_kernels": 2,
        "reductions": 1,
        "multi_output_reductions": 1,
        "tiny_kernels": 2,
        "rotations": 0.0,
        "roofline_seconds": pytest.approx(all_kernels / BANDWIDTH),
        "temporary_bytes": 7,
    }


def test_the_compiler_must_be_named_whole_and_of_the_same_version(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ValueError, match=rf"^{VARIABLE} must name .*: pip install --no-deps --target DIR jax-cuda13-plugin=="):
        find_compiler()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    install(tmp_path, "13.0", "nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt")
    with pytest.raises(ValueError, match=r"lacks jax-cuda13-plugin, jax-cuda13-pjrt; all of it: pip install"):
        find_compiler()
    installed = importlib.metadata.version("jaxlib")
    install(tmp_path, installed, "jax-cuda13-plugin")
    install(tmp_path / "old", "0.1.2", "jax-cuda13-pjrt")
    (tmp_path / "old" / "jax_cuda13_pjrt-0.1.2.dist-info").rename(tmp_path / "jax_cuda13_pjrt-0.1.2.dist-info")
    with pytest.raises(ValueError, match=rf"whose jax-cuda13-pjrt is 0\.1\.2, and not {installed}"):
        find_compiler()
    (tmp_path / "jax_cuda13_pjrt-0.1.2.dist-info" / "METADATA").unlink()
    (tmp_path / "jax_cuda13_pjrt-0.1.2.dist-info").rmdir()
    install(tmp_path, installed, "jax-cuda13-pjrt")
    assert find_compiler() == tmp_path


def test_the_command_says_in_a_line_what_it_lacks(monkeypatch, capsys):
    assert_lack_is_said_in_a_line(main, VARIABLE, monkeypatch, capsys)


def test_the_command_shows_and_writes_everything(monkeypatch, capsys, tmp_path):
    """With a compiler that only traces: what it gives back are made-up programs, and all that is read of them is written."""
    kernels = tuple(parse_kernels(BATCH_NORM, {}, {}))
    traced = []

    def trace(function: Any, *arguments: Any) -> Program:
        traced.append(function)
        return Program(kernels, temporary_bytes=1234)

    monkeypatch.setattr(gpu_programs, "connect_compiler", lambda: None)
    monkeypatch.setattr(gpu_programs, "compile_for_h200", trace)
    monkeypatch.setattr(gpu_programs, "SHAPE", (4, 3, 3, 32))
    step = Step(perceptron, (4, 8), "float32", STEPS["perceptron with batch norm and dropout"].contenders)
    monkeypatch.setattr(gpu_programs, "STEPS", {"small": step})
    assert main(["--out", str(tmp_path)]) == 0
    names = [f"{layer}: {library}" for layer, libraries in LAYERS.items() for library in libraries]
    results = json.loads((tmp_path / "gpu_programs.json").read_text())
    assert len(results) == len(traced) == 4 * len(names) + len(step.contenders)
    assert {f"{result['layer']}: {result['library']}" for result in results if result["part"] == "layers"} == set(names)
    assert {result["temporary_bytes"] for result in results} == {1234}
    markdown = (tmp_path / "gpu_programs.md").read_text()
    assert "x of the layers is 64x56x56x256." in markdown
    for library in step.contenders:
        assert markdown.count(f"| small: {library} | 2 | 2 | 0.00 | 0.00 | 0 |") == 1
    for name in names:
        assert markdown.count(f"| {name} | 2 | 1 | 1 | 2 | ") == 4
    assert markdown.count("| 1,234 |") == 4 * len(names)
    assert capsys.readouterr().out.count("1,234") == 4 * len(names)


@pytest.mark.jax_defaults
@pytest.mark.parametrize(("layer", "library"), [(layer, library) for layer in LAYERS for library in LAYERS[layer]])
def test_programs_give_what_they_should(layer, library):
    x = jax.ShapeDtypeStruct((4, 3, 3, 32), jnp.bfloat16)
    built = LAYERS[layer][library](x)
    function, arguments = DIRECTIONS["forward"](built, x)
    y, state = jax.eval_shape(function, *arguments)
    shape = (4, 32, 3, 3) if layer == "batch norm, channels first" else x.shape
    assert (y.shape, y.dtype) == (shape, x.dtype)
    function, arguments = DIRECTIONS["forward and backward"](built, x)
    y, (params, dx), same_state = jax.eval_shape(function, *arguments)
    assert (y.shape, y.dtype) == (dx.shape, dx.dtype) == (shape, x.dtype)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, built.params)
    assert same_state == state


@pytest.fixture(scope="module")
def h200(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the command finds, in a process of its own: here jax has started without the compiler."""
    folder = tmp_path_factory.mktemp("h200")
    command = [sys.executable, "-W", "error", "-m", "jaxnorm.benchmarks.gpu_programs", "--only", "layers", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "gpu_programs.json").read_text())


def found(results: list[dict[str, Any]], layer: str, library: str, direction: str) -> list[dict[str, Any]]:
    chosen = [r for r in results if (r["layer"], r["library"], r["direction"]) == (layer, library, direction)]
    assert [result["dtype"] for result in chosen] == ["float32", "bfloat16"]
    return chosen


def passes(result: dict[str, Any]) -> float:
    return result["moved_by_main"] / (math.prod(SHAPE) * jnp.dtype(result["dtype"]).itemsize)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "bits"),
    [("dropout", 8), *((layer, bits) for layer in ("dropout", "Gaussian dropout", "uniform dropout") for bits in (16, 32))],
)
@pytest.mark.parametrize(("direction", "kernels"), [("forward", 1), ("forward and backward", 2)])
def test_noise_is_one_kernel_each_way_without_temporaries(h200, layer, bits, direction, kernels):
    for result in found(h200, layer, f"jaxnorm, {bits} bits", direction):
        assert result["main_kernels"] <= kernels
        assert passes(result) == pytest.approx(2 * kernels, rel=1e-3)
        assert result["temporary_bytes"] < 1024  # numbers of the key, not arrays
        assert result["rotations"] <= (20 if bits < 32 else 80)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("layer", ["batch norm", "batch norm and ReLU"])
def test_batch_norm_is_one_reduction_and_one_elementwise_kernel(h200, layer):
    for result in found(h200, layer, "jaxnorm", "forward"):
        assert (result["main_kernels"], result["reductions"], result["multi_output_reductions"]) == (2, 1, 1)
        assert passes(result) == pytest.approx(3, rel=1e-2)


@needs_compiler
@pytest.mark.slow
def test_batch_norm_takes_one_more_reduction_backward(h200):
    for result in found(h200, "batch norm", "jaxnorm", "forward and backward"):
        assert (result["main_kernels"], result["reductions"], result["multi_output_reductions"]) == (3, 2, 2)
        assert passes(result) == pytest.approx(1 + 2 + 4, rel=1e-2)  # y and the gradient in one kernel, which reads x once


@needs_compiler
@pytest.mark.slow
def test_inference_is_one_kernel(h200):
    for result in found(h200, "batch norm, inference", "jaxnorm", "forward"):
        assert (result["main_kernels"], result["reductions"]) == (1, 0)
        assert passes(result) == pytest.approx(2, rel=1e-3)


COMPARISON = """
import sys
from jaxnorm.benchmarks._compiled_steps import STEPS
from jaxnorm.benchmarks._gpu_compiler import compile_for_h200, connect_compiler
from jaxnorm.benchmarks.gpu_programs import BANDWIDTH, INTEGER_SPEED

connect_compiler()
for library in "jaxnorm", "flax linen":
    function, arguments = STEPS[sys.argv[1]].program(library)
    program = compile_for_h200(function, *arguments)
    print(program.moved, program.roofline(BANDWIDTH, INTEGER_SPEED), program.temporary_bytes)
"""


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("six convolutions, 128x56x56x64", (0.96, 0.96)),
        ("residual perceptrons with layer norm", (1.01, 1.01)),
        ("perceptron with batch norm and dropout", (0.97, 0.85)),
        ("transformer with dropout", (1.15, 0.82)),
    ],
)
def test_a_step_moves_and_takes_no_more_than_with_flax(name, most):
    command = [sys.executable, "-W", "error", "-c", COMPARISON, name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, flax = ([float(number) for number in line.split()] for line in done.stdout.splitlines())
    assert ours[0] <= most[0] * flax[0]
    assert ours[1] <= most[1] * flax[1]
    assert ours[2] <= 1.01 * flax[2]
