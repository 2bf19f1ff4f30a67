"""What is trained and for how long: frozen settings and the two presets."""

from __future__ import annotations

from dataclasses import dataclass, field

EXPERTS = ("code", "math", "drama", "docs")
GENERAL = "general"
DRAFTERS = (*EXPERTS, GENERAL)
# What all drafters start from; it is not shipped.
BASE = "base"
EOS_TOKEN = "<|eos|>"
EOS_ID = 0


@dataclass(frozen=True)
class ModelShape:
    """Shape of a Llama model with tied embeddings and as many key/value heads as query heads."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    head_dim: int = 64
    vocab_size: int = 4096
    max_positions: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6

    @property
    def num_heads(self) -> int:
        """Number of attention heads."""
        return self.hidden_size // self.head_dim


@dataclass(frozen=True)
class OptimiserSettings:
    """Learning rates and schedule of one training phase.

    The schedule rises linearly over ``warmup_steps``, stays flat and falls linearly to zero over the
    last ``decay_fraction`` of all steps.
    """

    matrix_lr: float
    vector_lr: float
    warmup_steps: int
    decay_fraction: float
    weight_decay: float = 0.01


@dataclass(frozen=True)
class PhaseSettings:
    """One training phase: ``num_steps`` steps of about ``tokens_per_step`` tokens each."""

    num_steps: int
    tokens_per_step: int
    optimiser: OptimiserSettings

    def times(self, factor: int) -> PhaseSettings:
        """The same phase with ``factor`` times as many steps (and therefore tokens)."""
        return PhaseSettings(self.num_steps * factor, self.tokens_per_step, self.optimiser)


@dataclass(frozen=True)
class RolloutSettings:
    """How many outputs of the target are generated for on-policy training, per domain."""

    tokens_per_domain: int
    batch_size: int
    max_new_tokens: int
    prompt_tokens_min: int = 3
    prompt_tokens_max: int = 48
    sampled_temperature: float = 0.8
    top_logits: int = 64
    # Weight of the cross-entropy with the next token beside the divergence from the target: on greedy
    # outputs that token is what a greedy round will ask for; on sampled ones it is one draw among many.
    label_weight_corpus: float = 0.1
    label_weight_greedy: float = 0.5
    label_weight_sampled: float = 0.0


@dataclass(frozen=True)
class AcceptanceSettings:
    """Size of the acceptance measurement, per domain and per sampling mode."""

    num_prompts: int
    max_new_tokens: int
    draft_lengths: tuple[int, ...] = (3, 5, 7)
    temperature: float = 0.8
    bootstrap_samples: int = 1000


@dataclass(frozen=True)
class Preset:
    """Everything that decides what a run of the training produces, apart from the corpora."""

    name: str
    seed: int
    target_shape: ModelShape
    drafter_shape: ModelShape
    target: PhaseSettings
    distill: PhaseSettings
    on_policy: PhaseSettings
    # Steps of one expert; `general` gets as many as all experts together.
    branch: PhaseSettings
    rollouts: RolloutSettings
    corpus_tokens_per_domain: int
    held_out_tokens_per_domain: int
    acceptance: AcceptanceSettings
    # Share of training tokens per domain; the corpora differ in size by a factor of ten.
    mixture: dict[str, float] = field(default_factory=lambda: {"code": 0.34, "math": 0.28, "drama": 0.16, "docs": 0.22})
    # Every n-th step uses rows as long as the context, so that late positions are trained too.
    row_tokens: int = 256
    long_row_every: int = 8


_TARGET_OPTIMISER = OptimiserSettings(matrix_lr=0.02, vector_lr=0.004, warmup_steps=20, decay_fraction=0.5)
# The corpus only prepares a drafter for the target's outputs: most of the decay belongs to the second phase.
_DISTILL_OPTIMISER = OptimiserSettings(matrix_lr=0.02, vector_lr=0.004, warmup_steps=20, decay_fraction=0.2)
_ON_POLICY_OPTIMISER = OptimiserSettings(matrix_lr=0.02, vector_lr=0.004, warmup_steps=20, decay_fraction=0.7)
_BRANCH_OPTIMISER = OptimiserSettings(matrix_lr=0.01, vector_lr=0.002, warmup_steps=20, decay_fraction=1.0)

FULL = Preset(
    name="full",
    seed=20261120,
    target_shape=ModelShape(num_layers=8, hidden_size=320, intermediate_size=896),
    drafter_shape=ModelShape(num_layers=2, hidden_size=128, intermediate_size=384),
    target=PhaseSettings(560, 8192, _TARGET_OPTIMISER),
    distill=PhaseSettings(640, 2048, _DISTILL_OPTIMISER),
    on_policy=PhaseSettings(5200, 2048, _ON_POLICY_OPTIMISER),
    branch=PhaseSettings(600, 2048, _BRANCH_OPTIMISER),
    rollouts=RolloutSettings(tokens_per_domain=150_000, batch_size=512, max_new_tokens=160),
    corpus_tokens_per_domain=100_000,
    held_out_tokens_per_domain=8_000,
    acceptance=AcceptanceSettings(num_prompts=96, max_new_tokens=96),
)

SMOKE = Preset(
    name="smoke",
    seed=7,
    target_shape=ModelShape(num_layers=2, hidden_size=64, intermediate_size=128, head_dim=32, vocab_size=512, max_positions=256),
    drafter_shape=ModelShape(num_layers=1, hidden_size=32, intermediate_size=64, head_dim=32, vocab_size=512, max_positions=256),
    target=PhaseSettings(40, 1024, _TARGET_OPTIMISER),
    distill=PhaseSettings(10, 512, _DISTILL_OPTIMISER),
    on_policy=PhaseSettings(10, 512, _ON_POLICY_OPTIMISER),
    branch=PhaseSettings(10, 512, _BRANCH_OPTIMISER),
    rollouts=RolloutSettings(tokens_per_domain=800, batch_size=8, max_new_tokens=24, prompt_tokens_max=16, top_logits=16),
    corpus_tokens_per_domain=800,
    held_out_tokens_per_domain=200,
    acceptance=AcceptanceSettings(num_prompts=6, max_new_tokens=16, bootstrap_samples=50),
    row_tokens=64,
)
