from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reference(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFERENCE_UNSPECIFIED: _ClassVar[Reference]
    REFERENCE_MODEL: _ClassVar[Reference]
    REFERENCE_GENERATOR: _ClassVar[Reference]
    REFERENCE_NONE: _ClassVar[Reference]

class Normalization(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NORMALIZATION_UNSPECIFIED: _ClassVar[Normalization]
    NORMALIZATION_CANDIDATES: _ClassVar[Normalization]
    NORMALIZATION_VOCABULARY: _ClassVar[Normalization]

class Context(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTEXT_UNSPECIFIED: _ClassVar[Context]
    CONTEXT_TEMPLATE: _ClassVar[Context]
    CONTEXT_AS_IS: _ClassVar[Context]
REFERENCE_UNSPECIFIED: Reference
REFERENCE_MODEL: Reference
REFERENCE_GENERATOR: Reference
REFERENCE_NONE: Reference
NORMALIZATION_UNSPECIFIED: Normalization
NORMALIZATION_CANDIDATES: Normalization
NORMALIZATION_VOCABULARY: Normalization
CONTEXT_UNSPECIFIED: Context
CONTEXT_TEMPLATE: Context
CONTEXT_AS_IS: Context

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class ChatMessages(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("messages", "text", "token_ids")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    messages: ChatMessages
    text: str
    token_ids: TokenIds
    def __init__(self, messages: _Optional[_Union[ChatMessages, _Mapping]] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ...) -> None: ...

class Weights(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Latent(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Guidance(_message.Message):
    __slots__ = ("reward_model", "method", "text", "profile", "weights", "reference", "normalization", "context", "latent")
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    reward_model: str
    method: str
    text: str
    profile: str
    weights: Weights
    reference: Reference
    normalization: Normalization
    context: Context
    latent: Latent
    def __init__(self, reward_model: _Optional[str] = ..., method: _Optional[str] = ..., text: _Optional[str] = ..., profile: _Optional[str] = ..., weights: _Optional[_Union[Weights, _Mapping]] = ..., reference: _Optional[_Union[Reference, str]] = ..., normalization: _Optional[_Union[Normalization, str]] = ..., context: _Optional[_Union[Context, str]] = ..., latent: _Optional[_Union[Latent, _Mapping]] = ...) -> None: ...

class ResolvedGuidance(_message.Message):
    __slots__ = ("reward_model", "model_revision", "method", "text", "profile", "profile_revision", "weights", "reference", "normalization", "context", "prompt_token_ids", "latent")
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_REVISION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    reward_model: str
    model_revision: str
    method: str
    text: str
    profile: str
    profile_revision: int
    weights: Weights
    reference: Reference
    normalization: Normalization
    context: Context
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    latent: Latent
    def __init__(self, reward_model: _Optional[str] = ..., model_revision: _Optional[str] = ..., method: _Optional[str] = ..., text: _Optional[str] = ..., profile: _Optional[str] = ..., profile_revision: _Optional[int] = ..., weights: _Optional[_Union[Weights, _Mapping]] = ..., reference: _Optional[_Union[Reference, str]] = ..., normalization: _Optional[_Union[Normalization, str]] = ..., context: _Optional[_Union[Context, str]] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., latent: _Optional[_Union[Latent, _Mapping]] = ...) -> None: ...
