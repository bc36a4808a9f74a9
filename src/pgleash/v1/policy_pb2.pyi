from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExplainRequest(_message.Message):
    __slots__ = ("subject", "groups", "acts_for", "database", "statement")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    ACTS_FOR_FIELD_NUMBER: _ClassVar[int]
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    subject: str
    groups: _containers.RepeatedScalarFieldContainer[str]
    acts_for: str
    database: str
    statement: str
    def __init__(self, subject: _Optional[str] = ..., groups: _Optional[_Iterable[str]] = ..., acts_for: _Optional[str] = ..., database: _Optional[str] = ..., statement: _Optional[str] = ...) -> None: ...

class ColumnMask(_message.Message):
    __slots__ = ("action", "label")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    action: str
    label: str
    def __init__(self, action: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("effect", "rule", "reasons", "message", "hint", "facts", "masks", "policy_version")
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    effect: str
    rule: str
    reasons: _containers.RepeatedScalarFieldContainer[str]
    message: str
    hint: str
    facts: _struct_pb2.Struct
    masks: _containers.RepeatedCompositeFieldContainer[ColumnMask]
    policy_version: str
    def __init__(self, effect: _Optional[str] = ..., rule: _Optional[str] = ..., reasons: _Optional[_Iterable[str]] = ..., message: _Optional[str] = ..., hint: _Optional[str] = ..., facts: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., masks: _Optional[_Iterable[_Union[ColumnMask, _Mapping]]] = ..., policy_version: _Optional[str] = ...) -> None: ...
