import datetime

from attune.reward.v1 import guidance_pb2 as _guidance_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FitMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIT_METHOD_UNSPECIFIED: _ClassVar[FitMethod]
    FIT_METHOD_WEIGHTS: _ClassVar[FitMethod]
    FIT_METHOD_LATENT: _ClassVar[FitMethod]
FIT_METHOD_UNSPECIFIED: FitMethod
FIT_METHOD_WEIGHTS: FitMethod
FIT_METHOD_LATENT: FitMethod

class Profile(_message.Message):
    __slots__ = ("name", "text", "weights", "model_revision", "reference", "revision", "created_at", "updated_at", "latent", "model_id", "kept_feedback", "fit")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    KEPT_FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    weights: _guidance_pb2.Weights
    model_revision: str
    reference: _guidance_pb2.Reference
    revision: int
    created_at: _timestamp_pb2.Timestamp
    updated_at: _timestamp_pb2.Timestamp
    latent: _guidance_pb2.Latent
    model_id: str
    kept_feedback: int
    fit: FitReport
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ..., weights: _Optional[_Union[_guidance_pb2.Weights, _Mapping]] = ..., model_revision: _Optional[str] = ..., reference: _Optional[_Union[_guidance_pb2.Reference, str]] = ..., revision: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., updated_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., latent: _Optional[_Union[_guidance_pb2.Latent, _Mapping]] = ..., model_id: _Optional[str] = ..., kept_feedback: _Optional[int] = ..., fit: _Optional[_Union[FitReport, _Mapping]] = ...) -> None: ...

class FitReport(_message.Message):
    __slots__ = ("method", "feedback", "held_out", "accuracy_before", "accuracy_after", "loss_before", "loss_after", "seconds")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_BEFORE_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_AFTER_FIELD_NUMBER: _ClassVar[int]
    LOSS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    LOSS_AFTER_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    method: FitMethod
    feedback: int
    held_out: int
    accuracy_before: float
    accuracy_after: float
    loss_before: float
    loss_after: float
    seconds: float
    def __init__(self, method: _Optional[_Union[FitMethod, str]] = ..., feedback: _Optional[int] = ..., held_out: _Optional[int] = ..., accuracy_before: _Optional[float] = ..., accuracy_after: _Optional[float] = ..., loss_before: _Optional[float] = ..., loss_after: _Optional[float] = ..., seconds: _Optional[float] = ...) -> None: ...

class PutRequest(_message.Message):
    __slots__ = ("profile", "expected_revision", "imported", "feedback")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    IMPORTED_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    profile: Profile
    expected_revision: int
    imported: bool
    feedback: _containers.RepeatedCompositeFieldContainer[Feedback]
    def __init__(self, profile: _Optional[_Union[Profile, _Mapping]] = ..., expected_revision: _Optional[int] = ..., imported: _Optional[bool] = ..., feedback: _Optional[_Iterable[_Union[Feedback, _Mapping]]] = ...) -> None: ...

class PutResponse(_message.Message):
    __slots__ = ("profile",)
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    profile: Profile
    def __init__(self, profile: _Optional[_Union[Profile, _Mapping]] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("name", "with_feedback")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WITH_FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    name: str
    with_feedback: bool
    def __init__(self, name: _Optional[str] = ..., with_feedback: _Optional[bool] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("profile", "feedback")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    profile: Profile
    feedback: _containers.RepeatedCompositeFieldContainer[Feedback]
    def __init__(self, profile: _Optional[_Union[Profile, _Mapping]] = ..., feedback: _Optional[_Iterable[_Union[Feedback, _Mapping]]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("profiles", "next_page_token")
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    profiles: _containers.RepeatedCompositeFieldContainer[Profile]
    next_page_token: str
    def __init__(self, profiles: _Optional[_Iterable[_Union[Profile, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Feedback(_message.Message):
    __slots__ = ("prompt", "pair", "thumb")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    THUMB_FIELD_NUMBER: _ClassVar[int]
    prompt: _guidance_pb2.Prompt
    pair: Pair
    thumb: Thumb
    def __init__(self, prompt: _Optional[_Union[_guidance_pb2.Prompt, _Mapping]] = ..., pair: _Optional[_Union[Pair, _Mapping]] = ..., thumb: _Optional[_Union[Thumb, _Mapping]] = ...) -> None: ...

class Pair(_message.Message):
    __slots__ = ("chosen", "rejected", "chosen_base_log_prob", "rejected_base_log_prob")
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_BASE_LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    REJECTED_BASE_LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    chosen: str
    rejected: str
    chosen_base_log_prob: float
    rejected_base_log_prob: float
    def __init__(self, chosen: _Optional[str] = ..., rejected: _Optional[str] = ..., chosen_base_log_prob: _Optional[float] = ..., rejected_base_log_prob: _Optional[float] = ...) -> None: ...

class Thumb(_message.Message):
    __slots__ = ("answer", "up", "base_log_prob")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    BASE_LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    answer: str
    up: bool
    base_log_prob: float
    def __init__(self, answer: _Optional[str] = ..., up: _Optional[bool] = ..., base_log_prob: _Optional[float] = ...) -> None: ...

class FitRequest(_message.Message):
    __slots__ = ("name", "feedback", "keep_feedback", "reward_model", "method", "reference", "text", "expected_revision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    KEEP_FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    feedback: _containers.RepeatedCompositeFieldContainer[Feedback]
    keep_feedback: bool
    reward_model: str
    method: FitMethod
    reference: _guidance_pb2.Reference
    text: str
    expected_revision: int
    def __init__(self, name: _Optional[str] = ..., feedback: _Optional[_Iterable[_Union[Feedback, _Mapping]]] = ..., keep_feedback: _Optional[bool] = ..., reward_model: _Optional[str] = ..., method: _Optional[_Union[FitMethod, str]] = ..., reference: _Optional[_Union[_guidance_pb2.Reference, str]] = ..., text: _Optional[str] = ..., expected_revision: _Optional[int] = ...) -> None: ...

class FitResponse(_message.Message):
    __slots__ = ("done", "total", "accuracy", "profile")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    accuracy: float
    profile: Profile
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ..., accuracy: _Optional[float] = ..., profile: _Optional[_Union[Profile, _Mapping]] = ...) -> None: ...
