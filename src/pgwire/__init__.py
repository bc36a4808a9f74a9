"""The data plane: speaks PostgreSQL, knows no policy, no Vault, no gRPC.

Rooms, from the door inwards:

- ``listener``: accepts connections; ``proxy_protocol``: who is behind a load balancer; ``greeting``, ``client_startup``: up to the
  proof of who it is; ``scram``: both sides of SCRAM; ``parameters``: which settings pass
- ``session``: one session from accept to farewell; ``serving``: what C asks while it serves; ``names``: what SQL does to names
- ``legs``: a connection while Python drives it; ``server_startup``: our own login; ``cancel``: whom a cancel request means
- ``plans``: a row description and the policy's wishes become a mask plan; ``diagnostics``: errors without values
- ``messages``, ``errors``: encoding of what Python says itself; ``ports``: every question to the control plane
- ``hot``: C. ``reactor``: the event set and its thread; ``leg``: socket, TLS, buffers; ``link``, ``relay``: two legs joined;
  ``framing``, ``agent_side``, ``server_side``: what each message means; ``pipeline``: outstanding replies, names, verdicts;
  ``canonical``: statements without their literals; ``masking``: rows rewritten; ``journal``: the audit log; ``budget``: counting

One statement whose verdict is known never leaves C::

    client          reactor's thread                         event loop (Python)              server
      | Query          |                                        |                               |
      |--------------->| framing, verdict by text or form       |                               |
      |                | not known: the message waits --------->| policy.judge, approvals       |
      |                |<------------------------- Link.admit --|                               |
      |                | journal: the receipt                   |                               |
      |                | outstanding: forward, swallow, answer  |                               |
      |                |---------------------------------------------------------------------->|
      |                |<----------------------------------------------- RowDescription, rows --|
      |                | no plan yet: the rows wait ----------->| policy.columns, compile_plan  |
      |                |<---------------------- Link.set_plan --|                               |
      |<---------------| rows as they lie, or masked            |                               |
      |<---------------| ReadyForQuery: outcome to the journal  |                               |

Two locks are enough: a reactor's own, held for one event at a time by its thread or for one call by Python, and the journal's.
The thread never wants the interpreter's lock, so neither waits for the other in a circle.
"""
