import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BoundValue(_message.Message):
    __slots__ = ("null", "text")
    NULL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    null: bool
    text: str
    def __init__(self, null: _Optional[bool] = ..., text: _Optional[str] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("subject", "groups", "acts_for", "database", "statement", "claims", "time", "parameters", "bound", "policy")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    ACTS_FOR_FIELD_NUMBER: _ClassVar[int]
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    CLAIMS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    subject: str
    groups: _containers.RepeatedScalarFieldContainer[str]
    acts_for: str
    database: str
    statement: str
    claims: _struct_pb2.Struct
    time: _timestamp_pb2.Timestamp
    parameters: _containers.RepeatedCompositeFieldContainer[BoundValue]
    bound: bool
    policy: str
    def __init__(self, subject: _Optional[str] = ..., groups: _Optional[_Iterable[str]] = ..., acts_for: _Optional[str] = ..., database: _Optional[str] = ..., statement: _Optional[str] = ..., claims: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., parameters: _Optional[_Iterable[_Union[BoundValue, _Mapping]]] = ..., bound: _Optional[bool] = ..., policy: _Optional[str] = ...) -> None: ...

class ColumnMask(_message.Message):
    __slots__ = ("action", "label")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    action: str
    label: str
    def __init__(self, action: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class RuleWord(_message.Message):
    __slots__ = ("name", "effect", "observe", "outcome", "why")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    OBSERVE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    name: str
    effect: str
    observe: bool
    outcome: str
    why: str
    def __init__(self, name: _Optional[str] = ..., effect: _Optional[str] = ..., observe: _Optional[bool] = ..., outcome: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class Obligations(_message.Message):
    __slots__ = ("max_rows", "max_affected", "read_only", "statement_timeout", "lock_timeout", "record")
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_AFFECTED_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    LOCK_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    max_rows: int
    max_affected: int
    read_only: bool
    statement_timeout: _duration_pb2.Duration
    lock_timeout: _duration_pb2.Duration
    record: int
    def __init__(self, max_rows: _Optional[int] = ..., max_affected: _Optional[int] = ..., read_only: _Optional[bool] = ..., statement_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lock_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., record: _Optional[int] = ...) -> None: ...

class HoldTerms(_message.Message):
    __slots__ = ("approvers", "needed", "timeout", "transaction_timeout", "defer")
    APPROVERS_FIELD_NUMBER: _ClassVar[int]
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    DEFER_FIELD_NUMBER: _ClassVar[int]
    approvers: _containers.RepeatedScalarFieldContainer[str]
    needed: int
    timeout: _duration_pb2.Duration
    transaction_timeout: _duration_pb2.Duration
    defer: bool
    def __init__(self, approvers: _Optional[_Iterable[str]] = ..., needed: _Optional[int] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., transaction_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., defer: _Optional[bool] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("effect", "rule", "reasons", "message", "hint", "facts", "masks", "policy_version", "rules", "observed", "obligations", "hold", "sqlstate")
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    OBLIGATIONS_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    SQLSTATE_FIELD_NUMBER: _ClassVar[int]
    effect: str
    rule: str
    reasons: _containers.RepeatedScalarFieldContainer[str]
    message: str
    hint: str
    facts: _struct_pb2.Struct
    masks: _containers.RepeatedCompositeFieldContainer[ColumnMask]
    policy_version: str
    rules: _containers.RepeatedCompositeFieldContainer[RuleWord]
    observed: _containers.RepeatedScalarFieldContainer[str]
    obligations: Obligations
    hold: HoldTerms
    sqlstate: str
    def __init__(self, effect: _Optional[str] = ..., rule: _Optional[str] = ..., reasons: _Optional[_Iterable[str]] = ..., message: _Optional[str] = ..., hint: _Optional[str] = ..., facts: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., masks: _Optional[_Iterable[_Union[ColumnMask, _Mapping]]] = ..., policy_version: _Optional[str] = ..., rules: _Optional[_Iterable[_Union[RuleWord, _Mapping]]] = ..., observed: _Optional[_Iterable[str]] = ..., obligations: _Optional[_Union[Obligations, _Mapping]] = ..., hold: _Optional[_Union[HoldTerms, _Mapping]] = ..., sqlstate: _Optional[str] = ...) -> None: ...

class DiffRequest(_message.Message):
    __slots__ = ("old_policy", "new_policy", "database", "subject", "since", "until", "limit")
    OLD_POLICY_FIELD_NUMBER: _ClassVar[int]
    NEW_POLICY_FIELD_NUMBER: _ClassVar[int]
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    old_policy: str
    new_policy: str
    database: str
    subject: str
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    limit: int
    def __init__(self, old_policy: _Optional[str] = ..., new_policy: _Optional[str] = ..., database: _Optional[str] = ..., subject: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., limit: _Optional[int] = ...) -> None: ...

class PolicyAnswer(_message.Message):
    __slots__ = ("effect", "rule", "reasons", "masks", "obligations")
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    OBLIGATIONS_FIELD_NUMBER: _ClassVar[int]
    effect: str
    rule: str
    reasons: _containers.RepeatedScalarFieldContainer[str]
    masks: _containers.RepeatedCompositeFieldContainer[ColumnMask]
    obligations: Obligations
    def __init__(self, effect: _Optional[str] = ..., rule: _Optional[str] = ..., reasons: _Optional[_Iterable[str]] = ..., masks: _Optional[_Iterable[_Union[ColumnMask, _Mapping]]] = ..., obligations: _Optional[_Union[Obligations, _Mapping]] = ...) -> None: ...

class PolicyChange(_message.Message):
    __slots__ = ("statement", "subject", "acts_for", "database", "count", "before", "after")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ACTS_FOR_FIELD_NUMBER: _ClassVar[int]
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    statement: str
    subject: str
    acts_for: str
    database: str
    count: int
    before: PolicyAnswer
    after: PolicyAnswer
    def __init__(self, statement: _Optional[str] = ..., subject: _Optional[str] = ..., acts_for: _Optional[str] = ..., database: _Optional[str] = ..., count: _Optional[int] = ..., before: _Optional[_Union[PolicyAnswer, _Mapping]] = ..., after: _Optional[_Union[PolicyAnswer, _Mapping]] = ...) -> None: ...

class DiffResponse(_message.Message):
    __slots__ = ("changes", "statements", "cut_off", "old_version", "new_version")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    STATEMENTS_FIELD_NUMBER: _ClassVar[int]
    CUT_OFF_FIELD_NUMBER: _ClassVar[int]
    OLD_VERSION_FIELD_NUMBER: _ClassVar[int]
    NEW_VERSION_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[PolicyChange]
    statements: int
    cut_off: bool
    old_version: str
    new_version: str
    def __init__(self, changes: _Optional[_Iterable[_Union[PolicyChange, _Mapping]]] = ..., statements: _Optional[int] = ..., cut_off: _Optional[bool] = ..., old_version: _Optional[str] = ..., new_version: _Optional[str] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("policy_version", "changed")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    policy_version: str
    changed: bool
    def __init__(self, policy_version: _Optional[str] = ..., changed: _Optional[bool] = ...) -> None: ...
