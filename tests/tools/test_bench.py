"""`whale bench`: the meaning of its numbers, the input it refuses, and the tables that it makes."""

import importlib.util
import json

import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.base.machine import free_memory
from whale_jax.tools.bench.kernels import attention_cases, choose
from whale_jax.tools.bench.stages import bench_stages, mfu

CONFIG = "--config=tests/tiny.py"
BATCH, FRAMES, TOKENS = 8, 4, 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "stages", "mesh"),
    [(1, "behaviour,reward", ()), (8, "tokenizer", ("model=2", "fully_sharded=True"))],
)
def test_every_stage_is_timed_and_its_global_batch_counted(devices, stages, mesh, whale):
    where = (f"--config.mesh.{key}" for key in mesh)
    done = whale("bench", CONFIG, f"--stages={stages}", "--steps=1", "--json", *where, XLA_FLAGS=tiny.devices(devices))
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert len(report["devices"]) == devices and list(report["stages"]) == stages.split(",")
    assert (report["peak_source"], report["compute_type"]) == ("measured", "float32")
    # By hand, a token: 16 d² weights of a block and attention to 16 tokens and 4 frames; then embeddings, heads, codes.
    block, patch, code = 2 * 16 * 16**2 + 4 * 16 * (16 + 4), 4 * 4 * 3, 8
    ends, codes = 2 * 16 * (patch + code), 2 * code * 32
    # Backward twice the forward, but for pictures and distances of codes, which take no gradient.
    a_token = 3 * (2 * block + 2 * ends) - 2 * 16 * patch + codes
    by_hand = BATCH * FRAMES * TOKENS * a_token
    if "tokenizer" in report["stages"]:
        assert report["stages"]["tokenizer"]["flops_per_step"] == pytest.approx(by_hand)
    for stage in report["stages"].values():
        seconds = stage["step_ms"] / 1000
        assert stage["frames_per_second"] * seconds == pytest.approx(BATCH * FRAMES)
        assert stage["tokens_per_second"] * seconds == pytest.approx(BATCH * FRAMES * TOKENS)
        rate = stage["flops_per_step"] / seconds / 1e12
        assert stage["tflops"] == pytest.approx(rate)
        assert stage["mfu"] == pytest.approx(rate / devices / report["peak_tflops"])
        parts = [stage[f"{part}_ms"] for part in ("forward", "backward", "update")]
        assert sum(parts) == pytest.approx(stage["step_ms"], rel=1e-6)
        assert min(stage[key] for key in ("forward_ms", "transfer_ms", "compile_seconds", "temp_bytes")) > 0


def test_mfu_is_the_share_of_what_all_devices_could_do():
    # 3 TFLOP in half a second on eight devices of 1.5 TFLOP/s each.
    assert mfu(3e12 / 0.5, 8, 1.5e12) == 0.5


def test_a_config_too_large_for_the_machine_is_refused_before_anything_is_compiled(whale):
    error = whale("bench", "--config=configs/whale_x.py:large", "--batch=1000000").error()
    assert "Stage tokenizer of whale_x_large with a batch of 1000000 needs" in error and "GiB are free" in error


def test_a_step_whose_working_memory_does_not_fit_is_refused_before_it_is_allocated():
    rows = free_memory() // (8 * FRAMES * tiny.SIDE**2 * 3) // 2 * 2  # frames alone take an eighth of the memory
    with pytest.raises(WhaleError, match=f"Stage reward of tiny with a batch of {rows} needs .* smaller --batch"):
        bench_stages(tiny.get_config(), ("reward",), steps=1, batch_size=rows)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"stages": ("rewrd",)}, "did you mean reward"), ({"steps": 0}, "--steps=0 would time nothing")],
)
def test_what_cannot_be_timed_is_said(arguments, says):
    with pytest.raises(WhaleError, match=says):
        bench_stages(tiny.get_config(), **arguments)


def test_an_ensemble_that_the_config_does_not_train_is_no_stage_of_it():
    config = tiny.get_config()
    config.stages.ensemble.members = 0
    with pytest.raises(WhaleError, match="no stage named 'ensemble'"):
        bench_stages(config, ("ensemble",))


def test_kernels_are_timed_at_the_shapes_that_training_sees(whale):
    done = whale("bench", "kernels", CONFIG, "--steps=1", "--batch=2", "--json")
    assert done.status == 0, done.err
    rows = {(row["transformer"], row["axis"]): row for row in json.loads(done.out)["rows"]}
    assert len(rows) == 12
    for (_, axis), row in rows.items():
        kernels = {"xla", "bounded"} if axis == "space" else {"xla"}
        assert set(row["milliseconds"]) == kernels and not row["failed"], "cuDNN is for GPUs, bounded for no causality"
        assert row["fastest"] in kernels and row["auto"] == ("bounded" if axis == "space" else "xla")
    assert rows["tokenizer.encoder", "space"]["shape"] == [2 * FRAMES, TOKENS, 2, 8]
    assert rows["dynamics", "time"]["shape"] == [2 * TOKENS, FRAMES - 1, 2, 8], "nothing follows the last frame"
    assert rows["behaviour.posterior", "time"]["padded"] and not rows["behaviour.posterior", "time"]["causal"]


def test_every_frame_is_attended_to_where_the_tokens_are_masked():
    config = tiny.get_config()
    config.model.dynamics.decode_mode = "maskgit"
    assert attention_cases(config)[-1].shape == (BATCH * TOKENS, FRAMES, 2, 8)


def test_the_kernel_chosen_is_the_fastest_over_all_blocks_unless_auto_is_as_good():
    def row(blocks, auto="xla", **milliseconds):
        return {"blocks": blocks, "auto": auto, "milliseconds": milliseconds}

    assert choose([row(1, xla=9.0, cudnn=1.0), row(4, xla=1.0, cudnn=2.0)]) == "cudnn"
    assert choose([row(1, xla=9.0, cudnn=1.0), row(9, xla=1.0, cudnn=2.0)]) == "auto"
    assert choose([row(1, xla=1.04, cudnn=1.0)]) == "auto" and choose([row(1, xla=1.06, cudnn=1.0)]) == "cudnn"
    assert choose([row(1, xla=9.0, bounded=1.0), row(1, xla=9.0)]) == "auto", "bounded does not run in the second"


def test_choices_are_measured_once_and_failures_are_rows(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("choices", tiny.ROOT / "benchmarks" / "choices.py")
    choices = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(choices)
    out = tmp_path / "choices.json"
    same = [f"--config={tiny.__file__}", "--stage=reward", "--steps=1", f"--out={out}"]
    arguments = [*same, "time_kernel=xla,bounded"]
    choices.main(arguments)
    first, before = capsys.readouterr(), out.stat()
    assert "2 choices, 2 to do" in first.err
    measured, failed = json.loads(out.read_text())["rows"]
    assert measured["choice"] == {"time_kernel": "xla"} and measured["mfu"] > 0
    assert failed["choice"] == {"time_kernel": "bounded"} and "attends to everything" in failed["failed"]
    assert first.out.count("\n|") == 3 and f"| failed: {failed['failed']} |" in first.out

    choices.main(arguments)
    again, after = capsys.readouterr(), out.stat()
    assert again.out == first.out and "0 to do" in again.err
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)

    with pytest.raises(SystemExit, match="is of other options"):
        choices.main([*same, "--steps=2"])
    with pytest.raises(SystemExit, match="did you mean remat"):
        choices.main([*same, "remt=full"])
