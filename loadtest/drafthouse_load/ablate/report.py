"""From what was measured and replayed to the report's JSON."""

from collections.abc import Sequence
from dataclasses import dataclass

from drafthouse_load.ablate.arms import COSINE, FIXED_K, TARGET_ONLY
from drafthouse_load.ablate.figures import Sample, measured_sample, ratios, row
from drafthouse_load.ablate.measure import SWEEP_TOKENS, AblateSettings, Block, Sweep, choose
from drafthouse_load.prompts import DomainPrompt, digest
from drafthouse_load.records import Segment, differing_prompts
from drafthouse_load.replay.costs import StageProfile

SCHEMA = "drafthouse-bench-ablate/1"
_SHARED = ("tokens_per_s", "latency_ms_mean", "latency_ms_p95", "accepted_len_mean", "verify_idle_share", "draft_idle_share")


@dataclass(frozen=True)
class Measured:
    """The measured half; empty when only replayed."""

    blocks: Sequence[Block] = ()
    sweeps: Sequence[Sweep] = ()

    def samples(self) -> list[Sample]:
        """One per arm and concurrency, over its repeats."""
        groups: dict[tuple[int, str], list[Block]] = {}
        for block in self.blocks:
            groups.setdefault((block.concurrency, block.arm), []).append(block)
        chosen = choose(self.sweeps)
        return [measured_sample(own, chosen.get((arm, concurrency))) for (concurrency, arm), own in groups.items()]


@dataclass(frozen=True)
class Replayed:
    """The replayed half."""

    samples: Sequence[Sample]
    sweeps: Sequence[Sweep]
    profile: StageProfile


def ablate_report(
    settings: AblateSettings, prompts: Sequence[DomainPrompt], measured: Measured, replayed: Replayed | None
) -> dict[str, object]:
    """Everything but the machine; docs/metrics.md defines the entries."""
    samples = measured.samples()
    replay_rows = [] if replayed is None else [row(sample) for sample in replayed.samples]
    return {
        "schema": SCHEMA,
        "settings": {
            "modes": [arm.name for arm in settings.arms],
            "concurrency": list(settings.concurrency),
            "cycles": settings.cycles,
            "max_tokens": settings.max_tokens,
            "prompts": len(prompts),
            "prompts_digest": digest(prompts),
            "domains": {domain: sum(prompt.domain == domain for prompt in prompts) for domain in dict.fromkeys(p.domain for p in prompts)},
            "blocks": [arm.name for arm in settings.order()] if samples else [],
        },
        "results": _with_replay([row(sample) for sample in samples], replay_rows),
        "ratios": ratios(samples, COSINE),
        "fixed_k": _sweeps(
            measured.sweeps, f"tokens/s on the server, a few prompts of {SWEEP_TOKENS} tokens, k upwards and then downwards"
        ),
        "prompts_with_other_tokens_than_target_only": _differing(measured.blocks),
    } | _replay_part(replayed, replay_rows)


def _replay_part(replayed: Replayed | None, rows: list[dict[str, object]]) -> dict[str, object]:
    if replayed is None:
        return {}
    return {
        "replay": {
            "results": rows,
            "ratios": ratios(replayed.samples, COSINE),
            "fixed_k": _sweeps(replayed.sweeps, "tokens/s in the replay, all prompts"),
            "profile": replayed.profile.to_json(),
        }
    }


def _with_replay(rows: list[dict[str, object]], replay_rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Each measured row with the same figures of its replay beside it; the replay's alone where nothing was measured."""
    found = {(own["mode"], own["concurrency"]): {name: own[name] for name in _SHARED} for own in replay_rows}
    if not rows:
        return [{"mode": mode, "concurrency": concurrency, "replay": own} for (mode, concurrency), own in found.items()]
    return [own | ({"replay": found[key]} if (key := (own["mode"], own["concurrency"])) in found else {}) for own in rows]


def _sweeps(sweeps: Sequence[Sweep], how: str) -> dict[str, object]:
    entries = [
        {
            "mode": sweep.arm,
            "concurrency": sweep.concurrency,
            "chosen": sweep.best,
            "tokens_per_s": {str(k): value for k, value in sweep.tokens_per_s.items()},
        }
        for sweep in sweeps
    ]
    return {"chosen_by": how, "among": list(FIXED_K), "sweeps": entries}


def _differing(blocks: Sequence[Block]) -> dict[str, list[int]]:
    """Per arm the prompts whose tokens ever differed from the target's own; empty without the arm `target_only`."""
    if all(block.arm != TARGET_ONLY for block in blocks):
        return {}
    segments = [Segment(block.arm, number, "", block.wall_s, block.requests, block.counters) for number, block in enumerate(blocks)]
    return differing_prompts(segments, TARGET_ONLY)
