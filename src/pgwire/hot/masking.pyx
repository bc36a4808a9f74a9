"""Masking: a compiled plan applied to runs of DataRow messages, one pass, no Python.

Cells without a mask are copied in spans as they lie; a masked cell is replaced by a valid value of the same type and
format. A cell that its action doesn't understand (a malformed number, a date in a style other than ISO, an infinite
value) becomes NULL: nothing of it passes. NULL stays NULL under every action.

Which action fits which type is decided by :mod:`pgwire.plans`. Never add here: policy, type OIDs, or an action that
passes a cell as it is when it can't be masked.
"""

from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from pgwire.hot.mask_action cimport (
    _ACTIONS, _EMAIL, _FIXED, _FLOAT_BINARY, _FLOAT_TEXT, _INT_BINARY, _INT_TEXT, _JSONB_TOKEN, _JSON_TOKEN, _KEEP_FIRST,
    _KEEP_LAST, _NULL, _NUMERIC_BINARY, _NUMERIC_TEXT, _PASS, _TOKEN, _UUID_BINARY, _UUID_TEXT, _YEAR_DATE_BINARY,
    _YEAR_DATE_TEXT, _YEAR_TIME_BINARY, _YEAR_TIME_TEXT, _YEAR_ZONED_TEXT, Mask, mask_hash,
)
from pgwire.hot.mask_date cimport mask_year_binary, mask_year_text
from pgwire.hot.mask_number cimport mask_float, mask_int, mask_numeric, mask_uuid
from pgwire.hot.mask_text cimport mask_email, mask_keep, mask_token
from pgwire.hot.mask_wide cimport LANES_MOST, MASK_SLACK, Lanes, lanes_add, lanes_flush, lanes_here, mask_copy
from pgwire.hot.wire cimport load16, load32, store32

cdef extern from *:
    bint likely(bint) nogil
    bint unlikely(bint) nogil

PASS, NULL_, FIXED, KEEP_FIRST, KEEP_LAST, EMAIL = _PASS, _NULL, _FIXED, _KEEP_FIRST, _KEEP_LAST, _EMAIL
TOKEN, JSON_TOKEN, JSONB_TOKEN, INT_TEXT, INT_BINARY = _TOKEN, _JSON_TOKEN, _JSONB_TOKEN, _INT_TEXT, _INT_BINARY
FLOAT_TEXT, FLOAT_BINARY, NUMERIC_TEXT, NUMERIC_BINARY = _FLOAT_TEXT, _FLOAT_BINARY, _NUMERIC_TEXT, _NUMERIC_BINARY
UUID_TEXT, UUID_BINARY, YEAR_DATE_TEXT, YEAR_DATE_BINARY = _UUID_TEXT, _UUID_BINARY, _YEAR_DATE_TEXT, _YEAR_DATE_BINARY
YEAR_TIME_TEXT, YEAR_TIME_BINARY, YEAR_ZONED_TEXT = _YEAR_TIME_TEXT, _YEAR_TIME_BINARY, _YEAR_ZONED_TEXT
globals()["NULL"] = NULL_
OK, NEED_MORE, FULL, BAD = MASK_OK, MASK_NEED_MORE, MASK_FULL, MASK_BAD

cdef bint _has_lanes = lanes_here()

cdef struct PlanState:
    uint32_t columns
    uint32_t count            # masked columns; masks has one for each
    uint32_t rest             # columns behind the last masked one
    size_t growth
    Mask* masks


cdef inline ssize_t _cell(Mask* m, const uint8_t* p, size_t n, uint8_t* out, bint wide, Lanes* lanes) noexcept nogil:
    # Writes what stands for the cell, or leaves it to the lanes, and answers its length; -1: NULL.
    cdef int op = m.op
    cdef size_t blanks = 0
    cdef ssize_t r
    if op == _FIXED:
        mask_copy(out, m.fixed, m.fixed_len)
        return m.fixed_len
    if m.padded:
        while blanks < n and p[n - blanks - 1] == c' ':
            blanks += 1
        n -= blanks
    if op == _KEEP_LAST or op == _KEEP_FIRST:
        r = mask_keep(m, p, n, out, wide)
        if blanks:
            memset(out + r, c' ', blanks)
        return r + blanks
    if op == _TOKEN:
        if wide and lanes != NULL and n <= LANES_MOST and (m.limit == 0 or m.limit >= 18):
            lanes_add(lanes, p, n, out, m.k0, m.k1)
            return 18
        return mask_token(m, p, n, out)
    if op == _EMAIL:
        return mask_email(m, p, n, out, wide)
    return _cell_of_type(m, p, n, out)


cdef ssize_t _cell_of_type(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    cdef int op = m.op
    if op == _INT_TEXT or op == _INT_BINARY:
        return mask_int(m, p, n, out)
    if op == _FLOAT_TEXT or op == _FLOAT_BINARY:
        return mask_float(m, p, n, out)
    if op == _NUMERIC_TEXT or op == _NUMERIC_BINARY:
        return mask_numeric(m, p, n, out)
    if op == _UUID_TEXT or op == _UUID_BINARY:
        return mask_uuid(m, p, n, out)
    if op == _YEAR_DATE_TEXT or op == _YEAR_TIME_TEXT or op == _YEAR_ZONED_TEXT:
        return mask_year_text(m, p, n, out)
    if op == _YEAR_DATE_BINARY or op == _YEAR_TIME_BINARY:
        return mask_year_binary(m, p, n, out)
    if op == _JSON_TOKEN:
        out[0] = c'"'
        mask_token(m, p, n, out + 1)
        out[19] = c'"'
        return 20
    if op == _JSONB_TOKEN:
        if n < 1 or p[0] != 1:
            return -1
        out[0] = 1
        out[1] = c'"'
        mask_token(m, p + 1, n - 1, out + 2)
        out[20] = c'"'
        return 21
    return -1


cdef inline const uint8_t* _pass(const uint8_t* at, const uint8_t* end, uint32_t columns, bint wide) noexcept nogil:
    # Behind so many cells, NULL if they are not there. Wide: a length may be read before it is known to be in the row.
    cdef size_t length
    while columns:
        if not wide and end - at < 4:
            return NULL
        length = load32(at)
        at += 4 + length
        if unlikely(at > end):
            at -= length
            if length != 0xFFFFFFFFU or at > end:
                return NULL
        columns -= 1
    return at


cdef inline ssize_t _row(PlanState* plan, const uint8_t* p, const uint8_t* end, uint8_t* out, bint wide, const uint8_t* safe, Lanes* lanes) noexcept nogil:
    # One whole DataRow message; answers the bytes written, -1 if it is malformed. Wide: all of it may be read wide; if
    # not, what ends at `safe` or before. Both are one source, compiled twice.
    cdef const uint8_t* span = p          # not copied yet
    cdef const uint8_t* at = p + 7
    cdef uint8_t* to = out
    cdef Mask* m = plan.masks
    cdef Mask* stop = m + plan.count
    cdef size_t length
    cdef ssize_t r
    if load16(p + 5) != plan.columns:
        return -1
    while m < stop:
        if m.skip:
            at = _pass(at, end, m.skip, wide)
        if at == NULL or end - at < 4:
            return -1
        length = load32(at)
        at += 4
        if at - span != 4:                # the cell's length too, which is then overwritten
            if wide or at <= safe:
                mask_copy(to, span, at - span)
            else:
                memcpy(to, span, at - span)
        to += at - span
        span = at + length
        if likely(span <= end):
            r = _cell(m, at, length, to, wide or span <= safe, lanes)
        elif length == 0xFFFFFFFFU:
            r = -1
            span = at
        else:
            return -1
        store32(to - 4, <uint32_t><int32_t>r)
        to += r if r > 0 else 0
        at = span
        m += 1
    if _pass(at, end, plan.rest, wide) != end:
        return -1
    if wide or end <= safe:
        mask_copy(to, span, end - span)
    else:
        memcpy(to, span, end - span)
    to += end - span
    if to - out > 0x3FFFFFFF:
        return -1
    store32(out + 1, <uint32_t>(to - out - 1))
    return to - out


cdef ssize_t _row_at_the_end(PlanState* plan, const uint8_t* p, const uint8_t* end, uint8_t* out, const uint8_t* safe, Lanes* lanes) noexcept nogil:
    return _row(plan, p, end, out, False, safe, lanes)


cdef inline size_t mask_bound(PlanState* p, size_t message_bytes) noexcept nogil:
    return message_bytes + p.growth


cdef inline int mask_run(PlanState* p, const uint8_t* src, size_t n, size_t* consumed, uint8_t* dst, size_t cap, size_t* produced, uint64_t* rows) noexcept nogil:
    cdef size_t off = 0, to = 0, total
    cdef const uint8_t* safe = src + n - MASK_SLACK if n >= MASK_SLACK else NULL
    cdef const uint8_t* row
    cdef Lanes waiting
    cdef Lanes* lanes = &waiting if _has_lanes else NULL
    cdef uint64_t count = 0
    cdef ssize_t r
    cdef int status = MASK_OK
    waiting.count = 0
    while off < n and src[off] == c'D':
        row = src + off
        if n - off < 5:
            status = MASK_NEED_MORE
            break
        total = <size_t>load32(row + 1) + 1
        if total < 7 or total > 0x40000000:
            status = MASK_BAD
            break
        if total > n - off:
            status = MASK_NEED_MORE
            break
        if total + p.growth > cap - to:
            status = MASK_FULL
            break
        if likely(row + total <= safe):
            r = _row(p, row, row + total, dst + to, True, safe, lanes)
        else:
            r = _row_at_the_end(p, row, row + total, dst + to, safe, lanes)
        if r < 0:
            status = MASK_BAD
            break
        off += total
        to += r
        count += 1
    if waiting.count:
        lanes_flush(lanes)
    consumed[0] = off
    produced[0] = to
    rows[0] = count
    return status


cdef class MaskPlan:
    """A compiled plan for one row description.

    ``columns``: one ``(op, argument, limit, padded, fixed, key)`` per column; see :func:`pgwire.plans.compile_plan`,
    the only maker of plans outside tests. ``key`` is 16 bytes for the pseudonym actions and empty otherwise.
    Raises ValueError for a column that no plan can have.
    """

    def __cinit__(self, columns):
        cdef Mask* m
        cdef bytes fixed, key
        cdef size_t i
        cdef uint32_t passed = 0
        specs = list(columns)
        if len(specs) > 65535:
            raise ValueError("more columns than a row can have")
        self.st = <PlanState*>calloc(1, sizeof(PlanState))
        if self.st == NULL:
            raise MemoryError
        self.st.masks = <Mask*>calloc(len(specs) or 1, sizeof(Mask))
        if self.st.masks == NULL:
            raise MemoryError
        self.st.columns = len(specs)
        self.st.growth = MASK_SLACK
        for i, (op, argument, limit, padded, fixed, key) in enumerate(specs):
            if not 0 <= op < _ACTIONS:
                raise ValueError(f"column {i}: no such action: {op}")
            if _TOKEN <= op <= _UUID_BINARY and len(key) != 16:
                raise ValueError(f"column {i}: a pseudonym needs a key of 16 bytes")
            if op in (_INT_TEXT, _INT_BINARY) and argument not in (2, 4, 8):
                raise ValueError(f"column {i}: an integer has 2, 4 or 8 bytes, not {argument}")
            if op in (_FLOAT_TEXT, _FLOAT_BINARY) and argument not in (4, 8):
                raise ValueError(f"column {i}: a float has 4 or 8 bytes, not {argument}")
            if op in (_NUMERIC_TEXT, _NUMERIC_BINARY) and not (1 <= argument <= 15 and 0 <= limit <= 1000):
                raise ValueError(f"column {i}: a numeric pseudonym has 1 to 15 digits and a scale up to 1000")
            if op == _PASS:
                passed += 1
                continue
            m = &self.st.masks[self.st.count]
            self.st.count += 1
            m.column = i
            m.skip = passed
            passed = 0
            m.op = op
            m.argument = argument
            m.limit = limit
            m.padded = padded
            m.fixed_len = len(fixed)
            if op == _FIXED:
                m.fixed = <uint8_t*>calloc(1, m.fixed_len + MASK_SLACK)
                if m.fixed == NULL:
                    raise MemoryError
                memcpy(m.fixed, <const char*>fixed, m.fixed_len)
            if len(key) == 16:
                memcpy(&m.k0, <const char*>key, 8)
                memcpy(&m.k1, <const char*>key + 8, 8)
            if op == _FIXED:
                self.st.growth += m.fixed_len
            elif op in (_NUMERIC_TEXT, _NUMERIC_BINARY):
                self.st.growth += 24 + m.limit
            elif op != _NULL:
                self.st.growth += 40
        self.st.rest = passed

    def __dealloc__(self):
        cdef size_t i
        if self.st != NULL:
            if self.st.masks != NULL:
                for i in range(self.st.count):
                    free(self.st.masks[i].fixed)
                free(self.st.masks)
            free(self.st)

    @property
    def masked(self):
        """The indexes of the masked columns."""
        return tuple(self.st.masks[i].column for i in range(self.st.count))

    def bound(self, size_t message_bytes):
        """An upper bound in bytes for the output of one DataRow message of ``message_bytes``."""
        return mask_bound(self.st, message_bytes)

    def run(self, bytes data, room=None):
        """Mask ``data`` into at most ``room`` bytes: ``(status, bytes used, output, rows)``. For tests and tools.

        The source lies in a block of exactly its size, so that a sanitizer sees a read too far; bytes behind the room
        are looked at afterwards.
        """
        cdef size_t used = 0, made = 0, n = len(data)
        cdef size_t cap = n + self.st.growth * (n // 7 + 1) if room is None else room
        cdef uint64_t rows = 0
        cdef int status
        cdef uint8_t guard[MASK_SLACK]
        cdef uint8_t* p = <uint8_t*>malloc(n or 1)
        cdef uint8_t* out = <uint8_t*>malloc(cap + MASK_SLACK)
        try:
            if p == NULL or out == NULL:
                raise MemoryError
            memcpy(p, <const char*>data, n)
            memset(guard, 0xA5, MASK_SLACK)
            memset(out + cap, 0xA5, MASK_SLACK)
            with nogil:
                status = mask_run(self.st, p, n, &used, out, cap, &made, &rows)
            if memcmp(guard, out + cap, MASK_SLACK) != 0:
                raise SystemError("bytes were written behind the room")
            return status, used, (<const char*>out)[:made], rows
        finally:
            free(p)
            free(out)


def siphash128(bytes key, bytes data):
    """SipHash-2-4 of ``data`` under the 16-byte ``key``, 16 bytes; the pseudonyms' hash, for tests."""
    cdef Mask m
    cdef uint64_t h[2]
    if len(key) != 16:
        raise ValueError("a key has 16 bytes")
    memcpy(&m.k0, <const char*>key, 8)
    memcpy(&m.k1, <const char*>key + 8, 8)
    mask_hash(&m, <const uint8_t*><const char*>data, len(data), h)
    return (<const char*>h)[:16]


def _bench(MaskPlan plan, bytes data, int loops):
    """Seconds of CPU to mask ``data``, a run of whole rows, ``loops`` times."""
    import time
    cdef const uint8_t* p = <const uint8_t*><const char*>data
    cdef size_t n = len(data), used, made, cap = n * 4 + (1 << 20)
    cdef uint64_t rows
    cdef int i
    cdef double t
    cdef uint8_t* out = <uint8_t*>malloc(cap)
    if out == NULL:
        raise MemoryError
    memset(out, 0, cap)
    t = time.thread_time()
    with nogil:
        for i in range(loops):
            if mask_run(plan.st, p, n, &used, out, cap, &made, &rows) != MASK_OK:
                break
    t = time.thread_time() - t
    free(out)
    if used != n:
        raise ValueError("not a run of whole rows")
    return t
