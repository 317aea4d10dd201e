"""The command that compiles the layers for TPUs: what it reads in small programs; and with the compiler, what it must find."""

import functools
import json
import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cases import CASES, Case
from jax.sharding import PartitionSpec as P
from packages import assert_lack_is_said_in_a_line, install
from promises import each_layer, new_key, varied_and_rest

from jaxnorm.benchmarks import tpu_programs
from jaxnorm.benchmarks._compiled_steps import STEPS, Step, perceptron
from jaxnorm.benchmarks._rows import identity, norm
from jaxnorm.benchmarks._tpu_compiler import VARIABLE, TpuProgram, compile_for_tpu, find_compiler, mesh_of, read_program
from jaxnorm.benchmarks.gpu_programs import LAYERS
from jaxnorm.benchmarks.tpu_programs import forward_then_backward, main

PROGRAM = """\
HloModule jit_f, is_scheduled=true

%region (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%rare (p: f32[8,128]) -> f32[128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %sum = f32[128]{0:T(128)} fusion(%p), kind=kLoop, calls=%region, backend_config={"estimated_cycles":"1000"}
  ROOT %all-reduce.9 = f32[128]{0:T(128)} all-reduce(%sum), to_apply=%region
}

%usual (p: f32[8,128]) -> f32[128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %sum = f32[128]{0:T(128)} fusion(%p), kind=kLoop, calls=%region, backend_config={"estimated_cycles":"7"}
}

ENTRY %main (x: f32[8,128], key: u32[2]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %key = u32[2]{0:T(128)} parameter(1)
  %copy.1 = f32[8,128]{0,1:T(8,128)} copy(%x), backend_config={"estimated_cycles":"30"}
  %copy.2 = u32[2]{0:T(128)} copy(%key), backend_config={"estimated_cycles":"5"}
  %fusion = f32[128]{0:T(128)} fusion(%copy.1, %copy.2), kind=kLoop, calls=%region, backend_config={"estimated_cycles":"200"}
  %all-reduce-start = (f32[128]{0:T(128)}, f32[128]{0:T(128)}) all-reduce-start(%fusion), to_apply=%region
  %all-reduce-done = f32[128]{0:T(128)} all-reduce-done(%all-reduce-start)
  %all-gather = f32[128]{0:T(128)} all-gather(%all-reduce-done), dimensions={0}
  %all-reduce.3 = f32[128]{0:T(128)} all-reduce(%all-gather), to_apply=%region
  %conditional = f32[128]{0:T(128)} conditional(%key, %x, %x), branch_computations={%rare, %usual}
  ROOT %fusion.1 = f32[8,128]{1,0:T(8,128)} fusion(%x, %conditional), kind=kLoop, backend_config={"estimated_cycles":"400"}
}
"""


def test_what_a_program_says_of_itself():
    assert read_program(PROGRAM, 7) == TpuProgram(30 + 5 + 200 + 7 + 400, 1, 7, {"all-reduce": 2, "all-gather": 1})


def test_the_compiler_must_be_named_whole_and_of_the_version_that_jax_asks_for(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ValueError, match=rf"^{VARIABLE} must name .*: pip install --no-deps --target DIR libtpu==0\.0\.\d+\.\*$"):
        find_compiler()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match=r"lacks libtpu; all of it: pip install"):
        find_compiler()
    install(tmp_path, "0.0.1", "libtpu")
    with pytest.raises(ValueError, match=r"whose libtpu is 0\.0\.1, and not 0\.0\.\d+\.\*, as the installed jax needs"):
        find_compiler()


def test_the_command_says_in_a_line_what_it_lacks(monkeypatch, capsys):
    assert_lack_is_said_in_a_line(main, VARIABLE, monkeypatch, capsys)


def test_the_command_shows_and_writes_everything(monkeypatch, capsys, tmp_path):
    """With a compiler that does nothing: what it gives back are made-up programs, and all that is read of them is written."""
    step = Step(perceptron, (4, 8), "bfloat16", STEPS["perceptron with batch norm and dropout"].contenders)
    monkeypatch.setattr(tpu_programs, "STEPS", {"small": step})
    monkeypatch.setattr(tpu_programs, "SHAPES", ((4, 32), (4, 3, 3, 32)))
    monkeypatch.setattr(tpu_programs, "_IMAGES", (4, 4, 4, 8))
    monkeypatch.setattr(tpu_programs, "mesh_of", lambda *arguments: arguments)
    compiled = []

    def compile_nothing(function: Any, *arguments: Any, mesh: Any, specs: Any) -> TpuProgram:
        compiled.append(mesh)
        return TpuProgram(10**6 * (1 + len(arguments)), 3, 5 * 10**6, {"all-reduce": 2})

    monkeypatch.setattr(tpu_programs, "compile_for_tpu", compile_nothing)
    assert main(["--chips", "v6e", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "tpu_programs.json").read_text())
    assert len(results) == len(compiled)
    names = [f"{name}: {library}" for name, libraries in LAYERS.items() for library in libraries]
    lines = (tmp_path / "tpu_programs.md").read_text().splitlines()
    for name in names:
        narrow = (
            "-"
            if name.split(":")[0] in ("dropout of channels", "batch norm, channels first", "instance norm")
            else "1.00, 3 copies"
        )
        assert lines.count(f"| {name} | {narrow} | {narrow} | 1.00, 3 copies | 1.00, 3 copies |") == 1
    for library in step.contenders:
        assert lines.count(f"| small: {library} | v6e | 7.00 | 1.000 | 3 | 5 |") == 1
    for layer in ("batch norm", "batch norm with where"):
        assert lines.count(f"| {layer}: jaxnorm | v5e:16x16 | explicit | height | 2 all-reduce | 2 all-reduce |") == 1
    assert {("v6e:2x2", (1,)), ("v5e:4x4", (4, 4), jax.sharding.AxisType.Auto)} <= set(compiled)
    assert "small: jaxnorm" in capsys.readouterr().out


def test_a_run_that_was_ended_is_resumed(monkeypatch, capsys, tmp_path):
    """The compiler fails at the third program: two are in the folder, and only the others are compiled in the next run."""
    step = Step(perceptron, (4, 8), "float32", dict.fromkeys(("none", "flax linen", "jaxnorm"), identity))
    monkeypatch.setattr(tpu_programs, "STEPS", {"first": step, "second": step})
    monkeypatch.setattr(tpu_programs, "mesh_of", lambda *arguments: arguments)
    left = [2]

    def compile_some(function: Any, *arguments: Any, mesh: Any, specs: Any) -> TpuProgram:
        if not left[0]:
            raise RuntimeError("no more")
        left[0] -= 1
        return TpuProgram(1 + left[0], 0, 0, {})

    monkeypatch.setattr(tpu_programs, "compile_for_tpu", compile_some)
    command = ["--only", "steps", "--chips", "v5e", "--out", str(tmp_path)]
    with pytest.raises(RuntimeError, match="no more"):
        main(command)
    path = tmp_path / "tpu_programs.json"
    assert [result["cycles"] for result in json.loads(path.read_text())] == [2, 1]
    left[0] = 104
    assert main([*command, "--resume"]) == 0
    assert [result["cycles"] for result in json.loads(path.read_text())] == [2, 1, 104, 103, 102, 101]
    other_version = [result | {"jax": "0.1.0"} for result in json.loads(path.read_text())]
    path.write_text(json.dumps(other_version))
    left[0] = 0
    with pytest.raises(RuntimeError, match="no more"):
        main([*command, "--resume"])
    capsys.readouterr()
    path.write_text("no figures")
    for arguments, complaint in (
        (command, "cannot resume from .*tpu_programs.json"),
        (command[:-2], "--resume must come with --out"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main([*arguments, "--resume"])
        assert exit_.value.code == 2
        assert re.search(complaint, capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.jax_defaults
@pytest.mark.parametrize("name", {step.network: name for name, step in STEPS.items()}.values())
def test_steps_differ_in_nothing_but_the_layer(name):
    step = STEPS[name]
    is_image = len(step.shape) == 4
    small = step._replace(shape=(2, 32, 32, step.shape[-1]) if is_image else (2, *step.shape[1:-1], step.shape[-1]))
    parameters = set()
    for library in step.contenders:
        function, arguments = small.program(library)
        loss, *new = jax.eval_shape(function, *arguments)
        assert (loss.shape, loss.dtype) == ((), jnp.float32)
        assert jax.tree.map(jnp.shape, new[0]) == jax.tree.map(jnp.shape, arguments[1])
        parameters.add(tuple(weight.shape for weight in arguments[1][0]))
    assert len(parameters) == 1


@pytest.fixture(scope="module", name="compiler")
def fixture_compiler(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The compiler that the environment names, or one that is brought here: without it nothing is tested."""
    if VARIABLE in os.environ:
        return
    with pytest.raises(ValueError, match="pip install") as error:
        find_compiler()
    folder = tmp_path_factory.mktemp("compiler")
    command = str(error.value).split("pip ")[-1].replace("DIR", str(folder)).split()
    subprocess.run([sys.executable, "-m", "pip", *command], check=True, capture_output=True)
    os.environ[VARIABLE] = str(folder)


@pytest.mark.usefixtures("compiler")
@each_layer
def test_every_layer_compiles_for_chips(case: Case) -> None:
    """For v5e, and for each other chip a part of them."""
    arguments = case.arguments()
    given = {name: value for name, value in arguments.items() if name not in case.amounts}

    def step(key: jax.Array, given: Any) -> Any:
        varied, rest = varied_and_rest({**arguments, **given})
        y, pullback, state = jax.vjp(lambda varied: case(key, {**rest, **varied}), varied, has_aux=True)
        return y, state, pullback(y)[0]

    others = [chip for chip in tpu_programs.SMALLEST if chip != "v5e"]
    for chip in ("v5e", others[CASES.index(case) % len(others)]):
        program = compile_for_tpu(step, new_key(), given, mesh=mesh_of(tpu_programs.SMALLEST[chip], (1,)))
        assert program.cycles > 0
        assert program.collectives == {}


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_an_unknown_topology_is_named():
    with pytest.raises(ValueError, match=r"topology 'v1:9x9' is none that libtpu knows"):
        mesh_of("v1:9x9")


@pytest.mark.slow
@pytest.mark.jax_defaults
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("shape", [(8192, 1024), (4, 16, 1024, 1024), (32, 14, 14, 256), (8192, 4096)], ids=str)
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_dropout_takes_fewer_cycles_than_flax_and_makes_no_copies(shape, bits):
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    ours, flax = (
        compile_for_tpu(*program[:1], *program[1], mesh=mesh_of("v5e:2x2", (1,)))
        for program in (forward_then_backward(LAYERS["dropout"][name], x) for name in (f"jaxnorm, {bits} bits", "flax linen"))
    )
    assert ours.copies == 0
    assert ours.cycles < (0.95 if bits == 32 else 0.7) * flax.cycles


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.jax_defaults
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("six convolutions, 64x14x14x256", 1.07),
        ("residual perceptrons with layer norm", 1.05),
        ("perceptron with batch norm and dropout", 0.7),
        ("transformer with dropout", 0.8),
    ],
)
def test_a_step_takes_no_more_cycles_than_with_flax(name, most):
    """Of a network of one block."""
    step = STEPS[name]
    step = step._replace(network=functools.partial(step.network, depth=1))  # which takes a fraction of the time to compile
    ours, flax = (step.program(which) for which in ("jaxnorm", "flax linen"))
    mesh = mesh_of("v5e:2x2", (1,))
    cycles = [compile_for_tpu(function, *arguments, mesh=mesh).cycles for function, arguments in (ours, flax)]
    assert cycles[0] <= most * cycles[1]


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("topology", "shape"), [("v5e:4x4", (4, 4)), ("v5e:16x16", (16, 16))])
def test_batch_norm_on_many_chips_takes_one_sum_in_each_pass(topology, shape):
    x = jax.ShapeDtypeStruct((256, 32, 32, 256), jnp.bfloat16)
    function, arguments = forward_then_backward(norm(), x)
    specs = (P(), P(), P(), P("a"), P("a"))
    program = compile_for_tpu(function, *arguments, mesh=mesh_of(topology, shape), specs=specs)
    assert program.collectives == {"all-reduce": 2}
