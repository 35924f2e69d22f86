"""The launch plan: what it promises for every machine, and what it chooses on some."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stoker.errors import BadSetting, MemoryShort
from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.store.facts import ModelFacts
from stoker.tuning import quants
from stoker.tuning.launch import KvType, Profile, Reason, Speeds, Survey, SurveyPoint, Trial, Tuned
from stoker.tuning.plan import LaunchPlan, Wishes, make_plan
from tests.fakes.hardware import GIB, machine
from tests.fakes.models import BERT, EIGHT_B, EXPERTS, GEMMA, HYBRID, MLA, STARTER

MODELS = (STARTER, GEMMA, EIGHT_B, EXPERTS, HYBRID, MLA, BERT)
PROFILES: tuple[Profile, ...] = ("chat", "coding", "batch", "quiet", "battery")


def plan(
    facts: ModelFacts, hardware: HardwareFacts, wishes: Wishes | None = None, **more: object
) -> LaunchPlan:
    return make_plan("m", Path("m.gguf"), facts, hardware, wishes or Wishes(), **more)  # type: ignore[arg-type]


def plan_or_none(facts: ModelFacts, hardware: HardwareFacts, wishes: Wishes) -> LaunchPlan | None:
    try:
        return plan(facts, hardware, wishes)
    except MemoryShort:
        return None


def reason(made: LaunchPlan, setting: str) -> str:
    return found(made, setting).why


def found(made: LaunchPlan, setting: str) -> Reason:
    return next(item for item in made.reasons if item.setting == setting)


def with_free(free: int) -> HardwareFacts:
    """A 256 GiB machine of which so much is left."""
    return machine(total=256 * GIB, available=free)


NO_RESERVE = Wishes(reserve_bytes=0)


# --- for every machine -----------------------------------------------------------------------


@given(st.sampled_from(MODELS), st.integers(0, 64 * GIB), st.integers(0, 8 * GIB))
def test_a_plan_never_needs_more_than_is_free(facts: ModelFacts, free: int, reserve: int) -> None:
    made = plan_or_none(facts, with_free(free), Wishes(reserve_bytes=reserve))

    assert made is None or made.memory.total_bytes <= free - reserve


@given(st.sampled_from(MODELS), st.integers(0, 48 * GIB), st.integers(0, 48 * GIB))
def test_more_memory_never_gives_a_shorter_context(facts: ModelFacts, one: int, two: int) -> None:
    made = [plan_or_none(facts, with_free(free), NO_RESERVE) for free in sorted((one, two))]

    contexts = [one.context if one else 0 for one in made]
    assert contexts == sorted(contexts)


@given(st.sampled_from(MODELS), st.integers(32 * GIB, 200 * GIB), st.integers(1, 16))
def test_settings_agree_with_each_other(facts: ModelFacts, free: int, slots: int) -> None:
    made = plan(facts, with_free(free), Wishes(parallel=slots, reserve_bytes=0))

    assert made.parallel == slots
    assert made.context <= facts.context_length
    assert made.context <= made.cells <= made.context * slots
    assert 1 <= made.ubatch <= made.batch
    assert made.n_outputs_max == (made.ubatch if made.embedding else slots)
    assert made.cache_ram_mib == 0
    full = made.context * slots
    assert made.kv_unified == (slots == 1 or made.embedding or made.cells < full)


WISHES = st.builds(
    Wishes,
    context=st.none() | st.integers(256, 200_000),
    threads=st.none() | st.integers(1, 64),
    threads_batch=st.none() | st.integers(1, 64),
    parallel=st.none() | st.integers(1, 64),
    reserve_bytes=st.none() | st.integers(0, 8 * GIB),
    safe_mode=st.booleans(),
    profile=st.sampled_from(PROFILES),
    ubatch=st.none() | st.integers(32, 4096),
    flash_attention=st.none() | st.booleans(),
    kv_type=st.none() | st.sampled_from(("f16", "q8_0", "q4_0")),
    gpu_layers=st.none() | st.integers(0, 99),
)


def a_gpu(free: int | None) -> GpuFacts:
    return GpuFacts("Test GPU", "nvidia", free, free)


def with_gpu(hardware: HardwareFacts, free: int | None) -> HardwareFacts:
    return dataclasses.replace(hardware, gpus=(a_gpu(free),))


def made_or_refused(
    facts: ModelFacts, hardware: HardwareFacts, wishes: Wishes, runtime: str
) -> LaunchPlan | MemoryShort | BadSetting:
    try:
        return plan(facts, hardware, wishes, runtime=runtime)
    except (MemoryShort, BadSetting) as error:
        return error


@given(
    st.sampled_from(MODELS),
    st.integers(0, 96 * GIB),
    st.none() | st.integers(0, 48 * GIB),
    WISHES,
    st.sampled_from(("", "native-1", "cuda-1")),
)
def test_whatever_is_asked_for_fits_or_is_refused_with_numbers(
    facts: ModelFacts, free: int, vram: int | None, wishes: Wishes, runtime: str
) -> None:
    """What the user set is kept exactly, everything is explained, and nothing is overcommitted."""
    hardware = with_gpu(with_free(free), vram)
    made = made_or_refused(facts, hardware, wishes, runtime)
    if isinstance(made, MemoryShort):
        assert made.facts["needed_bytes"] > made.facts["free_bytes"]  # type: ignore[operator]
        return
    if isinstance(made, BadSetting):
        assert wishes.kv_type not in {None, "f16"}
        assert wishes.flash_attention is False
        return
    reserve = wishes.reserve_bytes
    assert made.memory.total_bytes <= free - (reserve if reserve is not None else GIB)
    if vram is not None and runtime == "cuda-1":
        assert made.memory.gpu_bytes <= max(0, vram - GIB)
    kept = ("threads", "parallel", "flash_attention", "gpu_layers", "profile", "threads_batch")
    for name in (*kept, *(() if made.embedding else ("ubatch", "kv_type"))):
        wish = getattr(wishes, name)
        assert wish is None or getattr(made, name) == wish, name
    trained = min(facts.context_length, 8192) if made.embedding else facts.context_length
    assert wishes.context is None or made.context == min(wishes.context, trained)
    assert made.flash_attention or made.kv_type == "f16"
    assert made.ubatch <= made.batch
    assert not (wishes.safe_mode and made.extra_buffers)
    assert all(item.value == getattr(made, item.setting) and item.why for item in made.reasons)


@given(
    st.sampled_from(MODELS),
    st.sampled_from(PROFILES),
    st.integers(0, 24 * GIB),
    st.lists(st.integers(0, 64 * GIB), min_size=2, max_size=2),
)
@example(EXPERTS, "coding", 12 * GIB, [14 * GIB, 20 * GIB])
def test_more_memory_never_gives_less_in_any_profile(
    facts: ModelFacts, profile: Profile, vram: int, free: list[int]
) -> None:
    contexts = []
    for size in sorted(free):
        hardware = with_gpu(with_free(size), vram)
        try:
            wishes = Wishes(profile=profile, reserve_bytes=0)
            contexts.append(plan(facts, hardware, wishes, runtime="cuda-1").context)
        except MemoryShort:
            contexts.append(0)

    assert contexts == sorted(contexts)


@given(st.integers(1, 64), st.integers(1, 64), st.floats(0.05, 64))
def test_threads_never_exceed_what_can_run(cores: int, affinity: int, quota: float) -> None:
    made = plan(STARTER, machine(cores=cores, affinity=affinity, quota=quota))

    assert made.threads == made.threads_batch
    assert 1 <= made.threads <= max(1, min(cores, affinity, int(quota)))


@pytest.mark.parametrize("facts", MODELS)
def test_every_setting_has_a_reason_with_its_value(facts: ModelFacts) -> None:
    made = plan(facts, machine(total=64 * GIB))

    for item in made.reasons:
        assert item.value == getattr(made, item.setting), item.setting
        assert item.why
    fields = {field.name for field in dataclasses.fields(LaunchPlan)}
    identity = {"model_id", "model_path", "mmproj_path", "memory", "reasons", "conversations"}
    assert fields - identity == {item.setting for item in made.reasons}


# --- on some machines ------------------------------------------------------------------------


def test_a_small_model_gets_its_whole_context_for_every_slot() -> None:
    made = plan(STARTER, machine())

    assert (made.context, made.parallel, made.cells) == (8192, 4, 32_768)
    assert not made.kv_unified
    assert "of its own" in reason(made, "kv_unified")
    assert "trained for" in reason(made, "context")


def test_where_conversations_are_small_every_slot_has_its_whole_context() -> None:
    """Gemma keeps few layers in full: four times 32,768 tokens are less than four of the others."""
    made = plan(GEMMA, machine())
    less = plan(GEMMA, with_free(made.memory.total_bytes), NO_RESERVE)

    assert (made.context, made.parallel, made.cells) == (32_768, 4, 131_072)
    assert made.memory.kv_bytes <= 512 * 1024 * 1024
    assert less.kv_unified
    assert less.context == made.context
    assert "share" in reason(less, "kv_unified")


def test_a_long_context_takes_half_of_what_is_free_beyond_a_roomy_one() -> None:
    """A 131072-token context would fit 24 GiB entirely, and leave nothing."""
    made = plan(EIGHT_B, with_free(24 * GIB), NO_RESERVE)
    roomy = plan(EIGHT_B, with_free(24 * GIB), Wishes(context=16_384, reserve_bytes=0))

    assert 16_384 < made.context < 131_072
    left = 24 * GIB - made.memory.total_bytes
    assert left >= 0.4 * (24 * GIB - roomy.memory.total_bytes)
    assert "half" in reason(made, "context")


def test_speed_goes_before_context_when_memory_is_short() -> None:
    made = [
        plan(EIGHT_B, with_free(free), NO_RESERVE) for free in range(5 * GIB, 6 * GIB, GIB // 64)
    ]

    hurried = [one for one in made if one.context < 4096]
    assert all(one.ubatch == 128 for one in hurried)
    assert any(one.ubatch < 512 and one.context == 4096 for one in made)


def test_the_context_shrinks_last_but_not_below_a_useful_one() -> None:
    sizes = range(int(4.5 * GIB), int(6.5 * GIB), GIB // 64)

    made = [plan_or_none(EIGHT_B, with_free(free), NO_RESERVE) for free in sizes]

    contexts = [one.context if one else 0 for one in made]

    assert contexts[0] == 0
    assert min(value for value in contexts if value) >= 2048
    assert any(2048 <= value < 4096 for value in contexts)
    assert all(a <= b for a, b in itertools.pairwise(contexts))


def test_what_does_not_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(MemoryShort) as caught:
        plan(EIGHT_B, machine(total=4 * GIB))

    assert caught.value.facts["needed_bytes"] > caught.value.facts["free_bytes"]  # type: ignore[operator]
    assert caught.value.message.count(" GB") == 3
    assert "smaller" in caught.value.hint


def test_a_wish_that_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(MemoryShort) as caught:
        plan(EIGHT_B, with_free(8 * GIB), Wishes(context=131_072, reserve_bytes=0))

    possible = caught.value.facts["possible_context"]
    assert isinstance(possible, int)
    assert f"{possible:,}" in caught.value.hint
    made = plan(EIGHT_B, with_free(8 * GIB), Wishes(context=possible, reserve_bytes=0))
    assert made.context == possible


def test_wishes_win() -> None:
    made = plan(STARTER, machine(), Wishes(context=1024, threads=3, parallel=2))

    assert (made.context, made.threads, made.threads_batch, made.parallel) == (1024, 3, 3, 2)
    sources = {item.setting: item.source for item in made.reasons}
    assert sources["context"] == sources["threads"] == sources["parallel"] == "user"


def test_a_wish_beyond_the_training_is_held_to_it() -> None:
    made = plan(STARTER, machine(), Wishes(context=100_000))

    assert made.context == 8192
    assert "100,000" in reason(made, "context")


def test_too_many_threads_are_named() -> None:
    assert "more than the 8" in reason(plan(STARTER, machine(), Wishes(threads=9)), "threads")


def test_safe_mode_turns_the_extra_buffers_off() -> None:
    assert plan(STARTER, machine()).extra_buffers
    assert not plan(STARTER, machine(), Wishes(safe_mode=True)).extra_buffers


def test_a_gpu_that_fails_the_self_test_is_not_used() -> None:
    """Only the user may know better."""
    hardware = with_gpu(machine(), 24 * GIB)
    safe = plan(STARTER, hardware, Wishes(no_gpu=True), runtime="cuda-1")
    forced = plan(STARTER, hardware, Wishes(no_gpu=True, gpu_layers=9), runtime="cuda-1")

    assert (safe.gpu_layers, safe.memory.gpu_bytes) == (0, 0)
    assert forced.gpu_layers == 9
    for one in (safe, forced):
        assert "self-test" in reason(one, "gpu_layers")


def test_models_that_cannot_go_back_get_checkpoints() -> None:
    assert plan(STARTER, machine()).checkpoints == 0
    assert plan(GEMMA, machine()).checkpoints > 0
    assert plan(HYBRID, machine(total=32 * GIB)).memory.cache_bytes > 0


def test_an_embedder_reads_a_text_in_one_step() -> None:
    made = plan(BERT, machine())

    assert made.embedding
    assert made.pooling == 1
    assert made.context == made.batch == made.ubatch == made.n_outputs_max == 512


def test_an_embedder_with_a_huge_context_is_held_to_a_bound() -> None:
    """Its scratch space grows with the square of the step."""
    causal = dataclasses.replace(EIGHT_B, pooling=3)

    made = plan(causal, with_free(64 * GIB), NO_RESERVE)

    assert made.context == made.ubatch == 8192
    assert "embedders" in reason(made, "context")


def test_the_reserve_is_the_larger_of_1_gib_and_a_tenth() -> None:
    for total, reserve in ((8 * GIB, GIB), (64 * GIB, 64 * GIB // 10), (2 * GIB, GIB // 2)):
        with pytest.raises(MemoryShort) as caught:
            plan(EIGHT_B, machine(total=total, available=0))

        assert caught.value.facts["reserve_bytes"] == reserve


def test_the_reserve_of_a_container_follows_its_limit() -> None:
    with pytest.raises(MemoryShort) as caught:
        plan(EIGHT_B, machine(total=64 * GIB, limit=4 * GIB, headroom=4 * GIB))

    assert caught.value.facts["reserve_bytes"] == GIB
    assert caught.value.facts["free_bytes"] == 3 * GIB


def test_a_file_that_tells_no_training_length_gets_a_modest_context() -> None:
    assert plan(dataclasses.replace(STARTER, context_length=0), machine()).context == 4096


def test_a_projector_is_passed_on_and_counted() -> None:
    made = make_plan(
        "m",
        Path("m.gguf"),
        STARTER,
        machine(),
        Wishes(),
        mmproj_path=Path("p.gguf"),
        mmproj_bytes=GIB,
    )

    assert made.mmproj_path == Path("p.gguf")
    assert made.memory.compute_bytes > GIB


# --- profiles --------------------------------------------------------------------------------


def test_coding_keeps_a_long_context_or_says_that_it_cannot() -> None:
    made = [
        plan_or_none(EIGHT_B, with_free(free), Wishes(profile="coding", reserve_bytes=0))
        for free in range(5 * GIB, 9 * GIB, GIB // 8)
    ]

    assert made[0] is None
    assert min(one.context for one in made if one) == 16_384
    assert any(one.kv_type == "q8_0" for one in made if one)


def test_coding_keeps_what_was_read_when_there_is_memory_to_spare() -> None:
    rich, chat = (plan(STARTER, machine(), Wishes(profile=name)) for name in ("coding", "chat"))
    poor = plan(STARTER, machine(total=2 * GIB), Wishes(profile="coding"))

    assert rich.cache_ram_mib == 512
    assert rich.memory.cache_bytes > 512 * 1024 * 1024  # one conversation more than the limit
    assert chat.cache_ram_mib == 0
    assert poor.cache_ram_mib < 512


def test_batch_serves_more_at_once_than_chat() -> None:
    chat, batch = (plan(STARTER, machine(), Wishes(profile=name)) for name in ("chat", "batch"))

    assert batch.parallel == 16
    assert batch.cells > chat.cells


@pytest.mark.parametrize(
    ("profile", "cores", "threads"),
    [("quiet", 8, (4, 4)), ("quiet", 3, (2, 2)), ("battery", 8, (4, 8)), ("quiet", 1, (1, 1))],
)
def test_quiet_and_battery_leave_cores_alone(
    profile: Profile, cores: int, threads: tuple[int, int]
) -> None:
    made = plan(STARTER, machine(cores=cores), Wishes(profile=profile))

    assert (made.threads, made.threads_batch) == threads
    assert made.parallel == 2
    if threads[0] < cores:
        assert "half" in reason(made, "threads")


# --- precision of the conversation -----------------------------------------------------------


def test_precision_is_given_up_only_for_what_does_not_fit_otherwise() -> None:
    wishes = Wishes(context=16_384, reserve_bytes=0)
    kinds = [
        one.kv_type
        for free in range(5 * GIB, 9 * GIB, GIB // 8)
        if (one := plan_or_none(EIGHT_B, with_free(free), wishes)) is not None
    ]

    assert kinds[0] == "q8_0"
    assert kinds[-1] == "f16"
    assert kinds == sorted(kinds, reverse=True)


def test_without_flash_attention_precision_stays() -> None:
    short = Wishes(context=16_384, reserve_bytes=0)
    free = next(
        with_free(size)
        for size in range(5 * GIB, 9 * GIB, GIB // 8)
        if (one := plan_or_none(EIGHT_B, with_free(size), short)) and one.kv_type == "q8_0"
    )

    with pytest.raises(MemoryShort):
        plan(EIGHT_B, free, dataclasses.replace(short, flash_attention=False))


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_contradicting_wishes_are_refused(kind: KvType) -> None:
    with pytest.raises(BadSetting, match="flash attention"):
        plan(STARTER, machine(), Wishes(kv_type=kind, flash_attention=False))


def test_an_odd_head_cannot_be_stored_in_blocks() -> None:
    odd = dataclasses.replace(STARTER, key_length=40)

    with pytest.raises(BadSetting, match="cannot be stored"):
        plan(odd, machine(), Wishes(kv_type="q8_0"))
    assert plan(odd, machine()).kv_type == "f16"


# --- measured settings -----------------------------------------------------------------------

BEST = Trial("native-1", 3, 4, 1024, flash_attention=False, extra_buffers=False)
TUNED = Tuned(
    "key",
    "chat",
    BEST,
    Speeds(120.0, 22.0, 60.0),
    Speeds(100.0, 20.0, 50.0),
    12,
    60.0,
    "2026-01-02T03:04:05Z",
)


def test_measured_settings_are_used_and_say_what_they_brought() -> None:
    made = plan(STARTER, machine(), runtime="builtin", tuned=TUNED)

    used = (made.runtime, made.threads, made.threads_batch, made.ubatch, made.flash_attention)
    assert used == ("native-1", 3, 4, 1024, False)
    assert not made.extra_buffers
    names = ("runtime", "threads", "threads_batch", "ubatch", "flash_attention", "extra_buffers")
    assert {found(made, name).source for name in names} == {"measured"}
    assert "10% faster" in reason(made, "threads")
    assert "20% faster" in reason(made, "ubatch")


def test_the_user_wins_over_measurements() -> None:
    wishes = Wishes(threads=2, ubatch=64, flash_attention=True)

    made = plan(STARTER, machine(), wishes, tuned=TUNED)

    assert (made.threads, made.threads_batch, made.ubatch) == (2, 2, 64)
    assert made.flash_attention
    assert found(made, "ubatch").source == "user"


def test_a_quantised_cache_wins_over_a_measured_way_without_it() -> None:
    made = plan(STARTER, machine(), Wishes(kv_type="q8_0"), tuned=TUNED)

    assert made.flash_attention
    assert "needs it" in reason(made, "flash_attention")


def test_measured_settings_give_way_when_memory_is_short() -> None:
    made = [
        one
        for free in range(5 * GIB, 8 * GIB, GIB // 16)
        if (one := _tuned_or_none(with_free(free))) is not None
    ]

    assert made[0].ubatch < 1024
    assert "smaller than usual" in reason(made[0], "ubatch")
    assert made[-1].ubatch == 1024


def _tuned_or_none(hardware: HardwareFacts) -> LaunchPlan | None:
    try:
        return plan(EIGHT_B, hardware, NO_RESERVE, tuned=TUNED)
    except MemoryShort:
        return None


def test_quiet_caps_what_was_measured_for_all_cores() -> None:
    tuned = dataclasses.replace(TUNED, best=dataclasses.replace(BEST, threads=8, threads_batch=8))

    made = plan(STARTER, machine(cores=8), Wishes(profile="quiet"), tuned=tuned)

    assert (made.threads, made.threads_batch) == (4, 4)


# --- dry runs --------------------------------------------------------------------------------


def survey(runtime: str, compute: int) -> Survey:
    points = tuple(
        SurveyPoint(cells, parallel, ubatch, flash_attention=True, kv_type="f16",
                    compute_bytes=compute, kv_bytes=None)
        for cells in (1024, 32_768)
        for parallel in (1, 4)
        for ubatch in (128, 512)
    )  # fmt: skip
    return Survey(runtime, STARTER.file_bytes, 0, points)


def test_a_dry_run_is_believed_and_named() -> None:
    dry = survey("native-1", GIB)

    made = plan(STARTER, machine(), runtime="native-1", survey=dry)

    assert made.memory.compute_bytes > GIB
    assert found(made, "context").source == "dry-run"


def test_a_dry_run_of_another_runtime_says_nothing() -> None:
    made = plan(STARTER, machine(), runtime="native-2", survey=survey("native-1", GIB))

    assert made.memory.compute_bytes < GIB
    assert found(made, "context").source == "rule"


# --- GPUs ------------------------------------------------------------------------------------


def test_a_cpu_runtime_leaves_the_gpu_alone() -> None:
    made = plan(EIGHT_B, with_gpu(machine(), 24 * GIB), runtime="native-1")

    assert made.gpu_layers == 0
    assert made.memory.gpu_bytes == 0


def test_a_model_that_fits_goes_on_the_gpu_entirely() -> None:
    made = plan(EIGHT_B, with_gpu(machine(), 24 * GIB), runtime="cuda-1")

    assert made.gpu_layers == EIGHT_B.block_count + 1
    assert made.memory.gpu_bytes <= 24 * GIB - int(2.4 * GIB)
    assert made.memory.weights_bytes < EIGHT_B.file_bytes / 10
    assert "all of it fits" in reason(made, "gpu_layers")


def test_what_does_not_fit_is_shared_with_the_cpu() -> None:
    made = plan(EIGHT_B, with_gpu(machine(total=32 * GIB), 6 * GIB), runtime="vulkan-1")

    assert 0 < made.gpu_layers <= EIGHT_B.block_count
    assert made.memory.gpu_bytes <= 5 * GIB
    assert made.context >= 16_384


def test_experts_stay_beside_the_cpu_and_all_else_goes_on_the_gpu() -> None:
    made = plan(EXPERTS, with_gpu(machine(total=64 * GIB), 10 * GIB), runtime="cuda-1")

    assert made.gpu_layers == EXPERTS.block_count + 1
    assert 0 < made.cpu_experts < EXPERTS.block_count


def test_two_gpus_are_one_room_with_a_margin_each() -> None:
    two = dataclasses.replace(machine(total=64 * GIB), gpus=(a_gpu(5 * GIB), a_gpu(5 * GIB)))

    made = plan(EIGHT_B, two, runtime="cuda-1")

    assert 4 * GIB < made.memory.gpu_bytes <= 8 * GIB


def test_too_many_layers_are_refused_with_the_numbers_of_the_gpu() -> None:
    with pytest.raises(MemoryShort) as caught:
        plan(EIGHT_B, with_gpu(machine(), 4 * GIB), Wishes(gpu_layers=99), runtime="cuda-1")

    assert caught.value.facts["gpu_layers"] == 99
    assert caught.value.facts["free_bytes"] == 3 * GIB


def test_a_wish_for_layers_without_a_gpu_is_kept_and_said_to_do_nothing() -> None:
    made = plan(STARTER, machine(), Wishes(gpu_layers=9))

    assert made.gpu_layers == 9
    assert "without effect" in reason(made, "gpu_layers")
    assert made.memory.gpu_bytes == 0


# --- refusals --------------------------------------------------------------------------------


def test_a_refusal_names_a_smaller_quantisation_that_would_fit() -> None:
    big = dataclasses.replace(EIGHT_B, quantization="Q8_0", file_bytes=8_540_000_000)

    with pytest.raises(MemoryShort) as caught:
        plan(big, with_free(7 * GIB), NO_RESERVE)

    smaller = caught.value.facts["smaller_quantization"]
    assert smaller == "Q6_K"
    assert "Q6_K" in caught.value.hint
    fitting = dataclasses.replace(big, file_bytes=quants.size_bytes("Q6_K", big.parameters))
    assert plan(fitting, with_free(7 * GIB), NO_RESERVE).context >= 2048
