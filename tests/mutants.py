"""Plants faults of algebra in the CUDA kernels of both Omega rules; the registry must catch each.

A fault is a change of the source text. Its kernel is compiled by g++ into a copy of the emulated
library, on which the registry's cases run against the float64 reference: at least one must fail.
Without a fault all must pass. Usage, after `make emulate`::

    python tests/mutants.py [part of a name ...]
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "emulated"


class Fault(NamedTuple):
    name: str
    unit: str  # the .cu that sees the change
    file: str
    before: str
    after: str


FORWARD, BACKWARD, UPDATE = "omega_rule.cu", "omega_rule_backward.cu", "omega_update.cu"
TEAM_FORWARD, TEAM_BACKWARD = "omega_team_forward.cu", "omega_team_backward.cu"
EXP_FORWARD, EXP_BACKWARD, EXP_UPDATE = (f"exp_{unit}" for unit in (FORWARD, BACKWARD, UPDATE))
# The operator whose cases see a unit, and what of them.
SEEN_BY = {
    FORWARD: ("omega_rule", "values"),
    BACKWARD: ("omega_rule", "gradients"),
    UPDATE: ("omega_rule_update", "values"),
    TEAM_FORWARD: ("omega_rule", "values"),
    TEAM_BACKWARD: ("omega_rule", "gradients"),
    EXP_FORWARD: ("exp_omega_rule", "values"),
    EXP_BACKWARD: ("exp_omega_rule", "gradients"),
    EXP_UPDATE: ("exp_omega_rule_update", "values"),
}

# fmt: off
FAULTS = [
    Fault("overhang dropped", FORWARD, "omega_chunk.cuh",
          "static_cast<int>(smaller(o.window - 1, c.position))", "0"),
    Fault("read before write", FORWARD, "omega_dual.cuh",
          "-w.cf[at] * kernel_of_score",
          "(i < c.overhang + t ? -w.cf[at] : 0.0f) * kernel_of_score"),
    Fault("wrong decay index", FORWARD, "omega_chunk.cuh",
          "cf = w.alpha[t] * cf", "cf = w.alpha[t > 0 ? t - 1 : 0] * cf"),
    Fault("momentum decays from the wrong token", FORWARD, "omega_chunk.cuh",
          "a = w.theta[t] * a + band", "a = w.theta[c.tokens - 1 - t] * a + band"),
    Fault("eta inside Newton-Schulz", FORWARD, "omega_muon.cuh",
          "keep * w.weights[at] - eta * value", "keep * w.weights[at] - value"),
    Fault("Newton-Schulz on the memory", FORWARD, "omega_muon.cuh",
          "each_orthogonal<kArithmetic>(w.momentum,", "each_orthogonal<kArithmetic>(w.weights,"),
    Fault("writes counted from the chunk", FORWARD, "omega_muon.cuh",
          "first + o.ns_every - 1 - (c.position + first) % o.ns_every",
          "first + o.ns_every - 1 - first % o.ns_every"),
    Fault("state shared across the batch", FORWARD, "omega_memory.cuh",
          "return item.n * t.stride[0] + item.head * t.stride[1] +",
          "return item.head * t.stride[1] +"),
    Fault("state shared across the heads", FORWARD, "omega_memory.cuh",
          "return item.n * t.stride[0] + item.head * t.stride[1] +",
          "return item.n * t.stride[0] +"),
    Fault("slices of V share their columns", FORWARD, "omega_memory.cuh",
          "item.head * t.stride[1] + item.value_at * t.stride[2]", "item.head * t.stride[1]"),
    Fault("chunk-end leak", FORWARD, "omega_dual.cuh",
          "  scan_chunk(w, o, in, true);\n  __syncthreads();\n",
          "  scan_chunk(w, o, in, true);\n  __syncthreads();\n"
          "  if (!is_deep(o)) dual_advance<kArithmetic>(w, o, whole_matrix(o, 0));\n"),
    Fault("error signals at the moving memory", FORWARD, "omega_forward.cuh",
          "set_memory(w.reference, args.options, args.in.chunk_weights, item);",
          "set_memory(w.reference, args.options, w.weights);"),
    Fault("gate of W3 forgotten", FORWARD, "omega_memory.cuh",
          "w.d[0][at] = b * gate * act.slope;", "w.d[0][at] = b * act.slope;"),
    Fault("inner gradient detached from M_ref", BACKWARD, "omega_backward.cuh",
          "    reference_backward<kArithmetic>(w, g, o, reference);\n", ""),
    Fault("inner gradient detached from the keys", BACKWARD, "omega_dual_backward.cuh",
          "    signals_to_inputs<kArithmetic>(w, g, o, out, ld, first, count);\n", ""),
    Fault("no second derivative of the activation", BACKWARD, "omega_memory_backward.cuh",
          "g.d[0][at] = d1 * b * act.curve;", "g.d[0][at] = 0;"),
    Fault("gradient detached from Newton-Schulz", BACKWARD, "omega_muon_backward.cuh",
          "each_weight(o, [&](int at) { grad_s[at] += through[at]; });", ""),
    Fault("overhang's gradients lost", BACKWARD, "omega_row_sums.cuh",
          "i < next ? 0.0f : scratch[(i - next) * ld + j]", "0.0f"),
    Fault("overhang's gradients in the next chunk's place", BACKWARD, "omega_row_sums.cuh",
          "store_tokens(sums.tokens, sums.later,", "store_tokens(sums.tokens, sums.summand,"),
    Fault("tail's gradients from the first chunk alone", BACKWARD, "omega_row_sums.cuh",
          "w.chunk.first > 0 ? sums.later : sums.summand", "sums.summand"),
    Fault("every chunk at the first one's adjoint", BACKWARD, "omega_backward.cuh",
          "args.weights_adjoints, o, w.item, checkpoint",
          "args.weights_adjoints, o, w.item, w.item.checkpoint"),
    Fault("residual's gradient in the first slice's columns", BACKWARD, "omega_backward.cuh",
          "g.q[t * sz.kp + w.item.value_at + j] +=", "g.q[t * sz.kp + j] +="),
    Fault("gradient of the entering momentum decays twice", BACKWARD, "omega_dual_backward.cuh",
          "decay * g.momentum[at] - move", "decay * decay * g.momentum[at] - move"),
    Fault("scales' gradient of the kernel forgotten", BACKWARD, "omega_dual_backward.cuh",
          "grad_scale[l] += 2.0f * w.c[l] * power", "grad_scale[l] += w.c[l] * power"),
    Fault("momentum not kept", UPDATE, "omega_update.cuh",
          "momenta[r * momentum_stride + f] = move[r] += theta", "move[r] += theta"),
    Fault("chunk's end a token late", UPDATE, "omega_update.cuh",
          "step.closes = (item.position + 1) % o.chunk_size",
          "step.closes = item.position % o.chunk_size"),
    Fault("token reads before its write", UPDATE, "omega_update.cuh",
          "sums[r] += next * query", "sums[r] += old[r] * query"),
    Fault("tail forgets the newest token", UPDATE, "omega_update.cuh",
          "sign * window[(rows - count + i) * ld + j]", "sign * window[i * ld + j]"),
    Fault("one token's eta inside Newton-Schulz", UPDATE, "omega_update.cuh",
          "next -= eta * move[r]", "next -= (kMove == OmegaMove::apply ? 1.0f : eta) * move[r]"),
    Fault("every head counts the token", UPDATE, "omega_position.cuh",
          "  atomic_or(at, kReading);\n", "  atomic_add(at, 1);\n  return;\n"),
    Fault("last head does not count the token", UPDATE, "omega_position.cuh",
          "if (read == heads)", "if (read > heads)"),
    Fault("token counted before all heads have read", UPDATE, "omega_position.cuh",
          "if (read == heads)", "if (read == heads - 1)"),
    Fault("late heads see the count of the others", UPDATE, "omega_position.cuh",
          "if (found >= kReading) return found & most;", "if (found >= kReading) return found;"),
    Fault("team: rows of another block's window", TEAM_FORWARD, "omega_team.cuh",
          "  w.chunk.overhang -= first;\n", ""),
    Fault("team: tokens do not see their own rows", TEAM_FORWARD, "omega_team_forward.cuh",
          "w.chunk.rows = w.chunk.overhang + count;", "w.chunk.rows = w.chunk.overhang;"),
    Fault("team: tokens decay as the chunk's first ones", TEAM_FORWARD, "omega_team.cuh",
          "  w.s += first;\n  w.m += first;\n", ""),
    Fault("team: states do not take turns", TEAM_FORWARD, "omega_team.cuh",
          "number % 2 != 0", "false"),
    Fault("team: blocks share their columns", TEAM_FORWARD, "omega_team.cuh",
          "part.from = rank * team.columns;", "part.from = 0;"),
    Fault("team: final chunk_weights are the state that the chunk left", TEAM_FORWARD,
          "omega_team_forward.cuh",
          "chunks > 0 ? w.weights : team.weights", "chunks > 0 ? team.weights : w.weights"),
    Fault("team: dots of the first columns alone", TEAM_BACKWARD, "omega_team_backward.cuh",
          "i < parts; i += kWarp", "i < 1; i += kWarp"),
    Fault("team: hidden layer's gradient from other rows", TEAM_BACKWARD, "omega_team.cuh",
          "  g.last_scores += first;\n  g.a_last", "  g.a_last"),
    Fault("team: decays' gradients at the chunk's first tokens", TEAM_BACKWARD, "omega_team.cuh",
          "  g.s += first;\n  g.m += first;\n", ""),
    Fault("team: residual forgotten", TEAM_BACKWARD, "omega_team_backward.cuh",
          "  residual_to_queries(w, g, o);\n", ""),
    Fault("team: gradient of M_ref in that of the memory", TEAM_BACKWARD,
          "omega_team_backward.cuh", "own_reference ? g.reference : g.weights", "g.weights"),
    Fault("team: gradient of the final chunk_weights forgotten", TEAM_BACKWARD,
          "omega_team_backward.cuh", "if (keeps_reference(w, o))", "if (false)"),
    Fault("exp: overhang dropped", EXP_FORWARD, "omega_chunk.cuh",
          "static_cast<int>(smaller(o.window - 1, c.position))", "0"),
    Fault("exp: read before write", EXP_FORWARD, "exp_omega_chunk.cuh",
          "i <= c.overhang + t ? -w.cf[at]", "i < c.overhang + t ? -w.cf[at]"),
    Fault("exp: rows move by the wrong token's decay", EXP_FORWARD, "exp_omega_kernel.cuh",
          "last = w.chunk.tokens - 1;\n  return {w.m", "last = 0;\n  return {w.m"),
    Fault("exp: momentum not carried", EXP_FORWARD, "exp_omega_kernel.cuh",
          "at[0] = move.m * b - move.s * s;", "at[0] = move.m * b;"),
    Fault("exp: sums not brought in line with the maximum", EXP_FORWARD, "exp_omega_kernel.cuh",
          "sums[j] *= factor", "sums[j] *= 1"),
    Fault("exp: normaliser over decayed keys", EXP_FORWARD, "exp_omega_kernel.cuh",
          "w.sum[t] = sum * factor + part;", "w.sum[t] = w.m[t] * sum * factor + part;"),
    Fault("exp: state shared across the batch", EXP_FORWARD, "exp_omega_kernel.cuh",
          "item.n * tensor.stride[0] + first * tensor.stride[1]", "first * tensor.stride[1]"),
    Fault("exp: chunk-end leak", EXP_FORWARD, "exp_omega_kernel.cuh",
          "w.block[i * ld + j] = b;", "w.block[i * ld + j] = moves ? move.m * b : b;"),
    Fault("exp: gradients of rows not decayed", EXP_BACKWARD, "exp_omega_rebuild.cuh",
          "grad_b *= move.m;", ""),
    Fault("exp: moves of several chunks without the momentum's decay", EXP_BACKWARD,
          "exp_omega_rebuild.cuh", "all.m * move[1] + all.s * move[2]", "all.m * move[1] + all.s"),
    Fault("exp: gradient detached from the kernel's sum", EXP_BACKWARD,
          "exp_omega_chunk_backward.cuh", "reads && normalized ? g.centre[t] : 0.0f", "0.0f"),
    Fault("exp: gradient detached from past keys", EXP_BACKWARD, "exp_omega_chunk_backward.cuh",
          "plain(w.k + from * kp, kp), {1, 1}", "plain(w.k + from * kp, kp), {0, 1}"),
    Fault("exp: token reads before its write", EXP_UPDATE, "exp_omega_update.cuh",
          "eta * (theta * rate + direct)", "eta * theta * rate"),
    Fault("exp: window counted twice", EXP_UPDATE, "exp_omega_walk.cuh",
          "walk.far = position - w.chunk.overhang;", "walk.far = position;"),
    Fault("exp: blocks of a past at maxima of their own", EXP_UPDATE, "exp_omega_update.cuh",
          "exponential(finish.factors[part] - most)", "1.0f"),
    Fault("exp: token not counted", EXP_UPDATE, "exp_omega_update.cuh",
          "    count_token(args.omega, work[0].item);\n", ""),
    Fault("exp: token in M_ref at once", EXP_UPDATE, "exp_omega_update.cuh",
          "step.closes ? next : 0.0f", "next"),
]
# fmt: on

RUN = """
import sys, torch
from atlas_ext.testing import *
torch.use_deterministic_algorithms(True)
for case in cases(sys.argv[1]):
    inputs = case.inputs(torch.float32)
    names = case.differentiable(inputs) if sys.argv[2] == "gradients" else []
    def run(call, inputs):
        inputs = require_grad(inputs, names)
        outputs = call(inputs)
        return gradients(outputs, inputs, names, cotangents(outputs)) if names else outputs
    wanted = run(case.run_reference, wide_inputs(inputs))
    with emulated():
        got = run(case.run, inputs)
    for name, value in wanted.items():
        if not relative_error(got[name].detach(), value) <= case.tolerance(torch.float32):
            sys.exit(f"{case.name}: {name}")
"""


def command_of(unit: str) -> list[str]:
    """How the emulated library's build compiles this unit, without optimisation."""
    commands = json.loads((BUILD / "compile_commands.json").read_text())
    found = next(c["command"] for c in commands if c["file"].endswith("/kernels/cuda/" + unit))
    return [word for word in shlex.split(found) if word not in ("-O3", "-g")] + ["-O0", "-w"]


def library_with(fault: Fault | None, folder: Path) -> Path:
    """The emulated library whose `fault.unit` is compiled from the changed source."""
    objects = sorted(BUILD.glob("CMakeFiles/emulated.dir/**/*.o"))
    library = folder / next(ROOT.glob("atlas_ext/_emulated*.so")).name
    if fault is not None:
        sources = folder / "csrc"
        shutil.copytree(ROOT / "csrc", sources)
        file = sources / "kernels" / "cuda" / fault.file
        file.write_text(file.read_text().replace(fault.before, fault.after))
        command = [
            word.replace(str(ROOT / "csrc"), str(sources)) for word in command_of(fault.unit)
        ]
        command[command.index("-o") + 1] = str(folder / "changed.o")
        subprocess.run(command, check=True, cwd=BUILD)
        # First, as the linker keeps the first copy of what several units share.
        others = [path for path in objects if path.name != fault.unit + ".o"]
        objects = [folder / "changed.o", *others]
    torch = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__path__[0])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    link = ["g++", "-shared", "-o", library, *objects, BUILD / "libatlas_emulation.a",
            f"-L{torch}/lib", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl", "-lpthread"]  # fmt: skip
    subprocess.run([str(word) for word in link], check=True)
    return library


def caught_by(fault: Fault | None, what: tuple[str, str]) -> str | None:
    """The first case and tensor that are wrong; None if all are right."""
    with tempfile.TemporaryDirectory() as folder:
        library = library_with(fault, Path(folder))
        environment = {**os.environ, "ATLAS_EXT_EMULATED_LIBRARY": str(library),
                       "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}  # fmt: skip
        done = subprocess.run([sys.executable, "-c", RUN, *what], env=environment,
                              capture_output=True, text=True)  # fmt: skip
    return None if done.returncode == 0 else (done.stderr.strip() or "crash").splitlines()[-1]


def check(fault: Fault) -> bool:
    caught = caught_by(fault, SEEN_BY[fault.unit])
    print(f"{fault.name}: {'NOT CAUGHT' if caught is None else 'caught by ' + caught}", flush=True)
    return caught is not None


def main(parts: list[str]) -> None:
    for fault in FAULTS:
        text = (ROOT / "csrc" / "kernels" / "cuda" / fault.file).read_text()
        if text.count(fault.before) != 1:
            sys.exit(f"{fault.name}: {fault.file} has its text {text.count(fault.before)} times")
    chosen = [f for f in FAULTS if not parts or any(part in f.name for part in parts)]
    for what in sorted({SEEN_BY[fault.unit] for fault in chosen}):
        wrong = caught_by(None, what)
        if wrong is not None:
            sys.exit(f"without a fault: {what[0]}, {wrong}")
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        caught = list(pool.map(check, chosen))
    print(f"{sum(caught)} of {len(chosen)} faults caught")
    sys.exit(not all(caught))


if __name__ == "__main__":
    main(sys.argv[1:])
