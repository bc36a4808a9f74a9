# One column's action, as the plan holds it. Header only.
# Never add: an action that some cell can pass unchanged because it is not understood.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pgwire.hot.sip cimport Sip, sip_bytes, sip_end, sip_start

cdef enum:
    _PASS, _NULL, _FIXED, _KEEP_FIRST, _KEEP_LAST, _EMAIL, _TOKEN, _JSON_TOKEN, _JSONB_TOKEN, _INT_TEXT, _INT_BINARY
    _FLOAT_TEXT, _FLOAT_BINARY, _NUMERIC_TEXT, _NUMERIC_BINARY, _UUID_TEXT, _UUID_BINARY, _YEAR_DATE_TEXT
    _YEAR_DATE_BINARY, _YEAR_TIME_TEXT, _YEAR_TIME_BINARY, _YEAR_ZONED_TEXT, _ACTIONS

cdef struct Mask:
    int op
    uint32_t column
    uint32_t skip             # columns without a mask between the masked one before and this one
    uint32_t argument         # characters kept, or bytes of the integer or float, or digits before the point (numeric)
    uint32_t limit            # characters that the value may have (0: any); numeric: digits after the point
    bint padded               # bpchar: trailing blanks are no part of the value
    uint8_t* fixed
    uint32_t fixed_len
    uint64_t k0
    uint64_t k1


cdef inline void mask_hash(Mask* m, const uint8_t* p, size_t n, uint64_t* h) noexcept nogil:
    cdef Sip s
    sip_start(&s, m.k0, m.k1)
    sip_bytes(&s, p, n)
    sip_end(&s, h)
