from attune.reward.v1 import guidance_pb2 as _guidance_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BaseContext(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BASE_CONTEXT_UNSPECIFIED: _ClassVar[BaseContext]
    BASE_CONTEXT_PLAIN: _ClassVar[BaseContext]
    BASE_CONTEXT_WITH_PREFERENCE: _ClassVar[BaseContext]

class OnRewardLoss(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_REWARD_LOSS_UNSPECIFIED: _ClassVar[OnRewardLoss]
    ON_REWARD_LOSS_FAIL: _ClassVar[OnRewardLoss]
    ON_REWARD_LOSS_CONTINUE_UNGUIDED: _ClassVar[OnRewardLoss]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_EOS: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
BASE_CONTEXT_UNSPECIFIED: BaseContext
BASE_CONTEXT_PLAIN: BaseContext
BASE_CONTEXT_WITH_PREFERENCE: BaseContext
ON_REWARD_LOSS_UNSPECIFIED: OnRewardLoss
ON_REWARD_LOSS_FAIL: OnRewardLoss
ON_REWARD_LOSS_CONTINUE_UNGUIDED: OnRewardLoss
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_EOS: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("model_id", "model_revision", "vocab_size", "tokenizer_fingerprint", "context_length", "dtype", "device", "slots", "queue", "reward_workers", "server_version", "load")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    REWARD_WORKERS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    model_revision: str
    vocab_size: int
    tokenizer_fingerprint: str
    context_length: int
    dtype: str
    device: str
    slots: int
    queue: int
    reward_workers: _containers.RepeatedCompositeFieldContainer[RewardWorker]
    server_version: str
    load: Load
    def __init__(self, model_id: _Optional[str] = ..., model_revision: _Optional[str] = ..., vocab_size: _Optional[int] = ..., tokenizer_fingerprint: _Optional[str] = ..., context_length: _Optional[int] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., slots: _Optional[int] = ..., queue: _Optional[int] = ..., reward_workers: _Optional[_Iterable[_Union[RewardWorker, _Mapping]]] = ..., server_version: _Optional[str] = ..., load: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("running", "waiting", "blocks_used", "blocks_kept", "blocks_total", "asked_tokens", "hit_tokens", "preempted")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_KEPT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ASKED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    blocks_used: int
    blocks_kept: int
    blocks_total: int
    asked_tokens: int
    hit_tokens: int
    preempted: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., blocks_used: _Optional[int] = ..., blocks_kept: _Optional[int] = ..., blocks_total: _Optional[int] = ..., asked_tokens: _Optional[int] = ..., hit_tokens: _Optional[int] = ..., preempted: _Optional[int] = ...) -> None: ...

class RewardWorker(_message.Message):
    __slots__ = ("endpoint", "connected", "model_id", "model_revision", "hidden_size", "methods", "references", "sessions", "slots", "problem")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    connected: bool
    model_id: str
    model_revision: str
    hidden_size: int
    methods: _containers.RepeatedScalarFieldContainer[str]
    references: _containers.RepeatedScalarFieldContainer[_guidance_pb2.Reference]
    sessions: int
    slots: int
    problem: str
    def __init__(self, endpoint: _Optional[str] = ..., connected: _Optional[bool] = ..., model_id: _Optional[str] = ..., model_revision: _Optional[str] = ..., hidden_size: _Optional[int] = ..., methods: _Optional[_Iterable[str]] = ..., references: _Optional[_Iterable[_Union[_guidance_pb2.Reference, str]]] = ..., sessions: _Optional[int] = ..., slots: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class GuidanceTerm(_message.Message):
    __slots__ = ("guidance", "strength", "clip")
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    guidance: _guidance_pb2.Guidance
    strength: float
    clip: float
    def __init__(self, guidance: _Optional[_Union[_guidance_pb2.Guidance, _Mapping]] = ..., strength: _Optional[float] = ..., clip: _Optional[float] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "candidates", "top_p", "min_p", "seed", "max_tokens", "min_tokens", "stop", "ignore_eos", "repetition_penalty", "logit_bias")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    candidates: int
    top_p: float
    min_p: float
    seed: int
    max_tokens: int
    min_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    ignore_eos: bool
    repetition_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    def __init__(self, temperature: _Optional[float] = ..., candidates: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., ignore_eos: _Optional[bool] = ..., repetition_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("token_ids", "seed")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    seed: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., seed: _Optional[int] = ...) -> None: ...

class OutputOptions(_message.Message):
    __slots__ = ("token_rewards", "candidate_tables")
    TOKEN_REWARDS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_TABLES_FIELD_NUMBER: _ClassVar[int]
    token_rewards: bool
    candidate_tables: bool
    def __init__(self, token_rewards: _Optional[bool] = ..., candidate_tables: _Optional[bool] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "guidances", "base_context", "sampling", "on_reward_loss", "resume", "output")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    GUIDANCES_FIELD_NUMBER: _ClassVar[int]
    BASE_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ON_REWARD_LOSS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    prompt: _guidance_pb2.Prompt
    guidances: _containers.RepeatedCompositeFieldContainer[GuidanceTerm]
    base_context: BaseContext
    sampling: Sampling
    on_reward_loss: OnRewardLoss
    resume: Resume
    output: OutputOptions
    def __init__(self, prompt: _Optional[_Union[_guidance_pb2.Prompt, _Mapping]] = ..., guidances: _Optional[_Iterable[_Union[GuidanceTerm, _Mapping]]] = ..., base_context: _Optional[_Union[BaseContext, str]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., on_reward_loss: _Optional[_Union[OnRewardLoss, str]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., output: _Optional[_Union[OutputOptions, _Mapping]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("text", "tokens", "finish")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    text: str
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    finish: Finish
    def __init__(self, text: _Optional[str] = ..., tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("id", "base_log_prob", "fused_log_prob", "guided", "unguided_id", "rewards", "candidates", "contributions")
    ID_FIELD_NUMBER: _ClassVar[int]
    BASE_LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    FUSED_LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    GUIDED_FIELD_NUMBER: _ClassVar[int]
    UNGUIDED_ID_FIELD_NUMBER: _ClassVar[int]
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    id: int
    base_log_prob: float
    fused_log_prob: float
    guided: bool
    unguided_id: int
    rewards: _containers.RepeatedScalarFieldContainer[float]
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    contributions: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, id: _Optional[int] = ..., base_log_prob: _Optional[float] = ..., fused_log_prob: _Optional[float] = ..., guided: _Optional[bool] = ..., unguided_id: _Optional[int] = ..., rewards: _Optional[_Iterable[float]] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., contributions: _Optional[_Iterable[float]] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("id", "base_log_prob", "rewards", "score", "contributions")
    ID_FIELD_NUMBER: _ClassVar[int]
    BASE_LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    id: int
    base_log_prob: float
    rewards: _containers.RepeatedScalarFieldContainer[float]
    score: float
    contributions: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, id: _Optional[int] = ..., base_log_prob: _Optional[float] = ..., rewards: _Optional[_Iterable[float]] = ..., score: _Optional[float] = ..., contributions: _Optional[_Iterable[float]] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("reason", "usage", "timings", "seed", "guidances")
    REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    GUIDANCES_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int
    guidances: _containers.RepeatedCompositeFieldContainer[_guidance_pb2.ResolvedGuidance]
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., seed: _Optional[int] = ..., guidances: _Optional[_Iterable[_Union[_guidance_pb2.ResolvedGuidance, _Mapping]]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "generated_tokens", "cached_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_seconds", "prefill_seconds", "decode_seconds", "reward_wait_seconds")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REWARD_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    reward_wait_seconds: float
    def __init__(self, queue_seconds: _Optional[float] = ..., prefill_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ..., reward_wait_seconds: _Optional[float] = ...) -> None: ...
