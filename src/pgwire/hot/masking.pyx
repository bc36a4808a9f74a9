"""Masking: a compiled plan applied to runs of DataRow messages, one pass, no Python.

Cells without a mask are copied in spans as they lie; a masked cell is replaced by a valid value of the same type and
format. A cell that its action doesn't understand (a malformed number, a date in a style other than ISO, an infinite
value) becomes NULL: nothing of it passes. NULL stays NULL under every action.

Which action fits which type is decided by :mod:`pgwire.plans`. Never add here: policy, type OIDs, or an action that
passes a cell as it is when it can't be masked.
"""

from libc.math cimport isnan
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, malloc, strtod, strtof
from libc.string cimport memchr, memcpy, memset

from pgwire.hot.wire cimport load16, load32, store32

cdef enum:
    _PASS, _NULL, _FIXED, _KEEP_FIRST, _KEEP_LAST, _EMAIL, _TOKEN, _JSON_TOKEN, _JSONB_TOKEN, _INT_TEXT, _INT_BINARY
    _FLOAT_TEXT, _FLOAT_BINARY, _NUMERIC_TEXT, _NUMERIC_BINARY, _UUID_TEXT, _UUID_BINARY, _YEAR_DATE_TEXT
    _YEAR_DATE_BINARY, _YEAR_TIME_TEXT, _YEAR_TIME_BINARY, _YEAR_ZONED_TEXT, _ACTIONS

PASS, NULL_, FIXED, KEEP_FIRST, KEEP_LAST, EMAIL = _PASS, _NULL, _FIXED, _KEEP_FIRST, _KEEP_LAST, _EMAIL
TOKEN, JSON_TOKEN, JSONB_TOKEN, INT_TEXT, INT_BINARY = _TOKEN, _JSON_TOKEN, _JSONB_TOKEN, _INT_TEXT, _INT_BINARY
FLOAT_TEXT, FLOAT_BINARY, NUMERIC_TEXT, NUMERIC_BINARY = _FLOAT_TEXT, _FLOAT_BINARY, _NUMERIC_TEXT, _NUMERIC_BINARY
UUID_TEXT, UUID_BINARY, YEAR_DATE_TEXT, YEAR_DATE_BINARY = _UUID_TEXT, _UUID_BINARY, _YEAR_DATE_TEXT, _YEAR_DATE_BINARY
YEAR_TIME_TEXT, YEAR_TIME_BINARY, YEAR_ZONED_TEXT = _YEAR_TIME_TEXT, _YEAR_TIME_BINARY, _YEAR_ZONED_TEXT
globals()["NULL"] = NULL_
OK, NEED_MORE, FULL, BAD = MASK_OK, MASK_NEED_MORE, MASK_FULL, MASK_BAD

cdef struct Mask:
    int op
    uint32_t argument         # characters kept, or bytes of the integer or float, or digits before the point (numeric)
    uint32_t limit            # characters that the value may have (0: any); numeric: digits after the point
    bint padded               # bpchar: trailing blanks are no part of the value
    uint8_t* fixed
    uint32_t fixed_len
    uint64_t k0
    uint64_t k1

cdef struct PlanState:
    uint32_t columns
    size_t growth
    Mask* masks

# ---- SipHash-2-4 with 128 bits of output (Aumasson, Bernstein)

cdef struct Sip:
    uint64_t v0
    uint64_t v1
    uint64_t v2
    uint64_t v3
    uint64_t tail
    uint64_t length


cdef inline uint64_t _rotl(uint64_t x, int b) noexcept nogil:
    return (x << b) | (x >> (64 - b))


cdef inline void _round(Sip* s) noexcept nogil:
    s.v0 += s.v1
    s.v1 = _rotl(s.v1, 13) ^ s.v0
    s.v0 = _rotl(s.v0, 32)
    s.v2 += s.v3
    s.v3 = _rotl(s.v3, 16) ^ s.v2
    s.v0 += s.v3
    s.v3 = _rotl(s.v3, 21) ^ s.v0
    s.v2 += s.v1
    s.v1 = _rotl(s.v1, 17) ^ s.v2
    s.v2 = _rotl(s.v2, 32)


cdef inline void _word(Sip* s, uint64_t m) noexcept nogil:
    s.v3 ^= m
    _round(s)
    _round(s)
    s.v0 ^= m


cdef inline void sip_start(Sip* s, uint64_t k0, uint64_t k1) noexcept nogil:
    s.v0 = k0 ^ <uint64_t>0x736f6d6570736575
    s.v1 = k1 ^ <uint64_t>0x646f72616e646f6d ^ 0xee
    s.v2 = k0 ^ <uint64_t>0x6c7967656e657261
    s.v3 = k1 ^ <uint64_t>0x7465646279746573
    s.tail = 0
    s.length = 0


cdef inline void sip_byte(Sip* s, uint8_t b) noexcept nogil:
    s.tail |= <uint64_t>b << (8 * (s.length & 7))
    s.length += 1
    if s.length & 7 == 0:
        _word(s, s.tail)
        s.tail = 0


cdef inline void sip_bytes(Sip* s, const uint8_t* p, size_t n) noexcept nogil:
    # only at an 8-byte boundary: the first and only call on a started state
    cdef uint64_t w
    s.length += n
    while n >= 8:
        memcpy(&w, p, 8)          # little-endian hosts, as everywhere in this package
        _word(s, w)
        p += 8
        n -= 8
    w = 0
    memcpy(&w, p, n)
    s.tail = w


cdef inline void sip_end(Sip* s, uint64_t* out) noexcept nogil:
    _word(s, s.tail | (s.length << 56))
    s.v2 ^= 0xee
    _round(s)
    _round(s)
    _round(s)
    _round(s)
    out[0] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3
    s.v1 ^= 0xdd
    _round(s)
    _round(s)
    _round(s)
    _round(s)
    out[1] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3


cdef inline void _sip(Mask* m, const uint8_t* p, size_t n, uint64_t* h) noexcept nogil:
    cdef Sip s
    sip_start(&s, m.k0, m.k1)
    sip_bytes(&s, p, n)
    sip_end(&s, h)

# ---- text

cdef inline bint _ascii(const uint8_t* p, size_t n) noexcept nogil:
    cdef uint8_t seen = 0
    cdef size_t i
    for i in range(n):
        seen |= p[i]
    return seen < 0x80


cdef inline size_t _char(const uint8_t* p, size_t n) noexcept nogil:
    # bytes of the UTF-8 character at p (n > 0), 0 if there is none
    cdef uint8_t b = p[0]
    cdef size_t k, i
    if b < 0x80:
        return 1
    if b < 0xC2 or b > 0xF4:
        return 0
    k = 2 if b < 0xE0 else (3 if b < 0xF0 else 4)
    if k > n:
        return 0
    for i in range(1, k):
        if p[i] & 0xC0 != 0x80:
            return 0
    if (b == 0xE0 and p[1] < 0xA0) or (b == 0xED and p[1] > 0x9F) or (b == 0xF0 and p[1] < 0x90) or (b == 0xF4 and p[1] > 0x8F):
        return 0
    return k


cdef inline bint _separator(uint8_t b) noexcept nogil:
    return b == c' ' or b == c'-' or b == c'.' or b == c'/' or b == c'(' or b == c')' or b == c'+'


cdef inline bint _digit(uint8_t b) noexcept nogil:
    return c'0' <= b <= c'9'


cdef ssize_t _stars(Mask* m, uint8_t* out) noexcept nogil:
    # What stands for a text that can't be understood: its length is not told.
    cdef ssize_t n = 3
    if m.limit and m.limit < 3:
        n = m.limit
    memset(out, c'*', n)
    return n


cdef ssize_t _keep_ascii(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    cdef size_t keep = m.argument, i, digits = 0, others = 0, seen = 0
    cdef bint first = m.op == _KEEP_FIRST
    for i in range(n):
        if _digit(p[i]):
            digits += 1
        elif not _separator(p[i]):
            others = 1
            break
    if others == 0 and digits:
        # a formatted number: separators stay and don't count
        if digits <= keep:
            keep = 0
        for i in range(n):
            if not _digit(p[i]):
                out[i] = p[i]
                continue
            out[i] = p[i] if (seen < keep if first else seen >= digits - keep) else c'*'
            seen += 1
        return n
    memset(out, c'*', n)
    if keep < n:
        if first:
            memcpy(out, p, keep)
        else:
            memcpy(out + n - keep, p + n - keep, keep)
    return n


cdef ssize_t _keep(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    cdef size_t i = 0, j = 0, k, chars = 0, at = 0, keep = m.argument
    cdef size_t end
    if _ascii(p, n):
        return _keep_ascii(m, p, n, out)
    while i < n:
        k = _char(p + i, n - i)
        if k == 0:
            return _stars(m, out)
        i += k
        chars += 1
    if chars <= keep:
        keep = 0
    i = 0
    while i < n:
        k = _char(p + i, n - i)
        if (at < keep) if m.op == _KEEP_FIRST else (at >= chars - keep):
            memcpy(out + j, p + i, k)
            j += k
        else:
            out[j] = c'*'
            j += 1
        at += 1
        i += k
    return j


cdef size_t _cut(Mask* m, const uint8_t* p, size_t n) noexcept nogil:
    # bytes of the first `limit` characters of a text that is valid UTF-8
    cdef size_t i = 0, chars = 0
    if m.limit == 0:
        return n
    while i < n and chars < m.limit:
        i += _char(p + i, n - i)
        chars += 1
    return i


cdef ssize_t _email(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    # a***@e***.com; a part of one character shows none of it; a last label that isn't 2 to 6 letters shows none either
    cdef const uint8_t* at = <const uint8_t*>memchr(p, c'@', n)
    cdef const uint8_t* domain
    cdef const uint8_t* dot
    cdef size_t local, rest, k, i, j = 0, last, head
    if at == NULL:
        return _stars(m, out)
    local = at - p
    domain = at + 1
    rest = n - local - 1
    if local == 0 or rest == 0 or memchr(domain, c'@', rest) != NULL:
        return _stars(m, out)
    i = 0
    while i < n:
        if p[i] <= 0x20 or p[i] == 0x7F:
            return _stars(m, out)
        k = _char(p + i, n - i)
        if k == 0:
            return _stars(m, out)
        i += k
    dot = <const uint8_t*>memchr(domain, c'.', rest)
    head = dot - domain if dot != NULL else rest
    if head == 0 or domain[rest - 1] == c'.':
        return _stars(m, out)
    k = _char(p, local)
    if k < local:
        memcpy(out, p, k)
        j = k
    memcpy(out + j, b"***@", 4)
    j += 4
    k = _char(domain, head)
    if k < head:
        memcpy(out + j, domain, k)
        j += k
    memcpy(out + j, b"***", 3)
    j += 3
    if dot != NULL:
        last = rest
        while domain[last - 1] != c'.':
            last -= 1
        out[j] = c'.'
        j += 1
        k = rest - last
        for i in range(last, rest):
            if not (c'a' <= (domain[i] | 0x20) <= c'z'):
                k = 0
        if 2 <= k <= 6:
            memcpy(out + j, domain + last, k)
            j += k
        else:
            memcpy(out + j, b"***", 3)
            j += 3
    return _cut(m, out, j)


cdef ssize_t _token(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    # p_ and 80 bits in base 32
    cdef uint64_t h[2]
    cdef uint64_t w
    cdef const char* letters = b"abcdefghijklmnopqrstuvwxyz234567"
    cdef int i
    _sip(m, p, n, h)
    out[0] = c'p'
    out[1] = c'_'
    w = h[0]
    for i in range(8):
        out[2 + i] = letters[w & 31]
        w >>= 5
    w = h[1]
    for i in range(8):
        out[10 + i] = letters[w & 31]
        w >>= 5
    return m.limit if m.limit and m.limit < 18 else 18

# ---- numbers

cdef inline uint64_t _load64(const uint8_t* p) noexcept nogil:
    return (<uint64_t>load32(p) << 32) | load32(p + 4)


cdef inline void _store64(uint8_t* p, uint64_t v) noexcept nogil:
    store32(p, <uint32_t>(v >> 32))
    store32(p + 4, <uint32_t>v)


cdef inline void _store16(uint8_t* p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 8)
    p[1] = <uint8_t>v


cdef ssize_t _decimal(uint64_t v, uint8_t* out) noexcept nogil:
    cdef uint8_t digits[20]
    cdef int n = 0, i
    while True:
        digits[n] = <uint8_t>(c'0' + v % 10)
        n += 1
        v = v // 10
        if v == 0:
            break
    for i in range(n):
        out[i] = digits[n - 1 - i]
    return n


cdef ssize_t _int(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    # A non-negative number of the same type; at most 53 bits, so that every client language has it exactly.
    cdef uint64_t v = 0
    cdef uint64_t h[2]
    cdef size_t i = 0
    cdef bint minus = False
    if m.op == _INT_BINARY:
        if n != m.argument:
            return -1
        if n == 2:
            v = <uint64_t><int64_t><short>load16(p)
        elif n == 4:
            v = <uint64_t><int64_t><int32_t>load32(p)
        else:
            v = _load64(p)
    else:
        if n and p[0] == c'-':
            minus = True
            i = 1
        if n == i or n - i > 19:
            return -1
        while i < n:
            if not _digit(p[i]):
                return -1
            v = v * 10 + (p[i] - c'0')
            i += 1
        if minus:
            v = 0 - v
    _sip(m, <const uint8_t*>&v, 8, h)
    v = h[0] & (<uint64_t>0x7FFF if m.argument == 2 else (<uint64_t>0x7FFFFFFF if m.argument == 4 else <uint64_t>0x1FFFFFFFFFFFFF))
    if m.op == _INT_TEXT:
        return _decimal(v, out)
    if m.argument == 2:
        _store16(out, <uint32_t>v)
    elif m.argument == 4:
        store32(out, <uint32_t>v)
    else:
        _store64(out, v)
    return m.argument


cdef ssize_t _float(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    # A whole number that the type has exactly: below 10^6 for float4, below 10^15 for float8.
    cdef char text[64]
    cdef char* end
    cdef double d
    cdef float f
    cdef uint32_t w32
    cdef uint64_t w64
    cdef uint64_t h[2]
    if m.op == _FLOAT_BINARY:
        if n != m.argument:
            return -1
        if n == 4:
            w32 = load32(p)
            memcpy(&f, &w32, 4)
            d = f
        else:
            w64 = _load64(p)
            memcpy(&d, &w64, 8)
    else:
        if n == 0 or n > 60:
            return -1
        memcpy(text, p, n)
        text[n] = 0
        if m.argument == 4:
            d = strtof(text, &end)
        else:
            d = strtod(text, &end)
        if end != &text[n] or text[0] == c' ':
            return -1
    if isnan(d):
        w64 = <uint64_t>0x7FF8000000000000
    else:
        if d == 0:
            d = 0.0               # also for -0
        memcpy(&w64, &d, 8)
    _sip(m, <const uint8_t*>&w64, 8, h)
    w64 = h[0] % (<uint64_t>1000000 if m.argument == 4 else <uint64_t>1000000000000000)
    if m.op == _FLOAT_TEXT:
        return _decimal(w64, out)
    if m.argument == 4:
        f = <float>w64
        memcpy(&w32, &f, 4)
        store32(out, w32)
        return 4
    d = <double>w64
    memcpy(&w64, &d, 8)
    _store64(out, w64)
    return 8


cdef struct Groups:
    # base-10000 digits on their way into the hash: zeros at both ends left out
    Sip sip
    bint started
    uint32_t zeros


cdef inline void _group(Groups* g, int weight, uint32_t v, uint8_t sign) noexcept nogil:
    if v == 0:
        g.zeros += 1
        return
    if not g.started:
        g.started = True
        sip_byte(&g.sip, sign)
        sip_byte(&g.sip, <uint8_t>(<uint32_t>weight >> 24))
        sip_byte(&g.sip, <uint8_t>(<uint32_t>weight >> 16))
        sip_byte(&g.sip, <uint8_t>(<uint32_t>weight >> 8))
        sip_byte(&g.sip, <uint8_t><uint32_t>weight)
        g.zeros = 0
    while g.zeros:
        sip_byte(&g.sip, 0)
        sip_byte(&g.sip, 0)
        g.zeros -= 1
    sip_byte(&g.sip, <uint8_t>(v >> 8))
    sip_byte(&g.sip, <uint8_t>v)


cdef bint _numeric_text(Groups* g, const uint8_t* p, size_t n) noexcept nogil:
    cdef uint8_t sign = c'+'
    cdef size_t whole = 0, frac, i, lead
    cdef uint32_t v = 0
    cdef int weight
    if n == 3 and p[0] == c'N' and p[1] == c'a' and p[2] == c'N':
        sip_byte(&g.sip, c'N')
        return True
    if n and p[0] == c'-':
        sign = c'-'
        p += 1
        n -= 1
    if n == 8 and p[0] == c'I':
        sip_byte(&g.sip, c'I')
        sip_byte(&g.sip, sign)
        return True
    while whole < n and _digit(p[whole]):
        whole += 1
    if whole == 0 or (whole < n and p[whole] != c'.') or whole + 1 == n:
        return whole == n and whole > 0 and _numeric_digits(g, sign, p, whole, NULL, 0)
    frac = n - whole - 1 if whole < n else 0
    for i in range(frac):
        if not _digit(p[whole + 1 + i]):
            return False
    return _numeric_digits(g, sign, p, whole, p + whole + 1, frac)


cdef bint _numeric_digits(Groups* g, uint8_t sign, const uint8_t* whole, size_t w, const uint8_t* frac, size_t f) noexcept nogil:
    cdef int weight = <int>((w + 3) // 4) - 1
    cdef uint32_t v = 0
    cdef size_t i
    for i in range(w):
        v = v * 10 + (whole[i] - c'0')
        if (w - i - 1) % 4 == 0:
            _group(g, weight, v, sign)
            weight -= 1
            v = 0
    for i in range((f + 3) // 4 * 4):
        v = v * 10 + (frac[i] - c'0' if i < f else 0)
        if i % 4 == 3:
            _group(g, weight, v, sign)
            weight -= 1
            v = 0
    return True


cdef bint _numeric_binary(Groups* g, const uint8_t* p, size_t n) noexcept nogil:
    cdef uint32_t count, sign, i
    cdef int weight
    cdef uint32_t v
    if n < 8:
        return False
    count = load16(p)
    weight = <short>load16(p + 2)
    sign = load16(p + 4)
    if n != 8 + <size_t>count * 2:
        return False
    if sign == 0xC000:
        sip_byte(&g.sip, c'N')
        return True
    if sign == 0xD000 or sign == 0xF000:
        sip_byte(&g.sip, c'I')
        sip_byte(&g.sip, c'+' if sign == 0xD000 else c'-')
        return True
    if sign != 0 and sign != 0x4000:
        return False
    for i in range(count):
        v = load16(p + 8 + 2 * i)
        if v > 9999:
            return False
        _group(g, weight - <int>i, v, c'-' if sign else c'+')
    return True


cdef ssize_t _numeric(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    # A whole number of at most `argument` digits, shown with `limit` zeros after the point.
    cdef Groups g
    cdef uint64_t v, bound = 1
    cdef uint64_t h[2]
    cdef uint32_t groups[5]
    cdef int count = 0, low = 0, i
    cdef ssize_t k
    memset(&g, 0, sizeof(g))
    sip_start(&g.sip, m.k0, m.k1)
    if not (_numeric_text(&g, p, n) if m.op == _NUMERIC_TEXT else _numeric_binary(&g, p, n)):
        return -1
    sip_end(&g.sip, h)
    for i in range(<int>m.argument):
        bound *= 10
    v = h[0] % bound
    if m.op == _NUMERIC_TEXT:
        k = _decimal(v, out)
        if m.limit:
            out[k] = c'.'
            memset(out + k + 1, c'0', m.limit)
            k += 1 + m.limit
        return k
    while v:
        groups[count] = <uint32_t>(v % 10000)
        v = v // 10000
        count += 1
    while low < count and groups[low] == 0:
        low += 1
    _store16(out, count - low)
    _store16(out + 2, count - 1 if count else 0)
    _store16(out + 4, 0)
    _store16(out + 6, m.limit)
    for i in range(count - low):
        _store16(out + 8 + 2 * i, groups[count - 1 - i])
    return 8 + 2 * (count - low)

# ---- uuid

cdef inline int _hex(uint8_t b) noexcept nogil:
    if _digit(b):
        return b - c'0'
    b |= 0x20
    return b - c'a' + 10 if c'a' <= b <= c'f' else -1


cdef ssize_t _uuid(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    # Version 8 (RFC 9562: made by a method of one's own), 122 bits of the hash.
    cdef uint8_t raw[16]
    cdef uint8_t* made
    cdef uint64_t h[2]
    cdef const char* letters = b"0123456789abcdef"
    cdef size_t i, j = 0
    cdef int a, b
    if m.op == _UUID_BINARY:
        if n != 16:
            return -1
        memcpy(raw, p, 16)
    else:
        if n != 36:
            return -1
        for i in range(16):
            if i == 4 or i == 6 or i == 8 or i == 10:
                if p[j] != c'-':
                    return -1
                j += 1
            a = _hex(p[j])
            b = _hex(p[j + 1])
            if a < 0 or b < 0:
                return -1
            raw[i] = <uint8_t>(a << 4 | b)
            j += 2
    _sip(m, raw, 16, h)
    made = <uint8_t*>h
    made[6] = (made[6] & 0x0F) | 0x80
    made[8] = (made[8] & 0x3F) | 0x80
    if m.op == _UUID_BINARY:
        memcpy(out, made, 16)
        return 16
    j = 0
    for i in range(16):
        if i == 4 or i == 6 or i == 8 or i == 10:
            out[j] = c'-'
            j += 1
        out[j] = letters[made[i] >> 4]
        out[j + 1] = letters[made[i] & 15]
        j += 2
    return 36

# ---- dates: the first of January of the same year, for the years 1 to 9999

cdef int64_t _days(int64_t y, int64_t mo, int64_t d) noexcept nogil:
    # days since 2000-01-01 in the proleptic Gregorian calendar
    cdef int64_t era, yoe, doy
    if mo <= 2:
        y -= 1
        mo += 12
    era = y // 400 if y >= 0 else -1
    yoe = y - era * 400
    doy = (153 * (mo - 3) + 2) // 5 + d - 1
    return era * 146097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 730425


cdef int64_t _year(int64_t days) noexcept nogil:
    # the year that has this day, 0 if it is not in 1..9999
    cdef int64_t y
    if days < _days(1, 1, 1) or days >= _days(10000, 1, 1):
        return 0
    y = 1 + (days - _days(1, 1, 1)) * 400 // 146097
    while days < _days(y, 1, 1):
        y -= 1
    while days >= _days(y + 1, 1, 1):
        y += 1
    return y


cdef inline int _two(const uint8_t* p) noexcept nogil:
    return (p[0] - c'0') * 10 + p[1] - c'0' if _digit(p[0]) and _digit(p[1]) else -1


cdef bint _iso_date(const uint8_t* p, size_t n, int64_t* days) noexcept nogil:
    # YYYY-MM-DD at the start of p
    cdef int century, year, month, day
    if n < 10 or p[4] != c'-' or p[7] != c'-':
        return False
    century = _two(p)
    year = _two(p + 2)
    month = _two(p + 5)
    day = _two(p + 8)
    if century < 0 or year < 0 or not 1 <= month <= 12 or not 1 <= day <= 31 or century * 100 + year == 0:
        return False
    days[0] = _days(century * 100 + year, month, day)
    return True


cdef void _put_year(uint8_t* out, int64_t y) noexcept nogil:
    out[0] = <uint8_t>(c'0' + y // 1000)
    out[1] = <uint8_t>(c'0' + y // 100 % 10)
    out[2] = <uint8_t>(c'0' + y // 10 % 10)
    out[3] = <uint8_t>(c'0' + y % 10)
    memcpy(out + 4, b"-01-01", 6)


cdef ssize_t _year_text(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    cdef int64_t days, seconds, y
    cdef int hour, minute, second, a
    cdef int offset = 0
    cdef bint west
    cdef size_t i = 10
    if not _iso_date(p, n, &days):
        return -1
    if m.op != _YEAR_DATE_TEXT:
        if n < 19 or p[10] != c' ' or p[13] != c':' or p[16] != c':':
            return -1
        hour = _two(p + 11)
        minute = _two(p + 14)
        second = _two(p + 17)
        if hour < 0 or minute < 0 or second < 0:
            return -1
        i = 19
        if i < n and p[i] == c'.':
            i += 1
            while i < n and _digit(p[i]):
                i += 1
        if m.op == _YEAR_ZONED_TEXT:
            if n - i < 3 or (p[i] != c'+' and p[i] != c'-'):
                return -1
            west = p[i] == c'-'
            a = _two(p + i + 1)
            if a < 0:
                return -1
            offset = a * 3600
            i += 3
            if n - i >= 3 and p[i] == c':':
                a = _two(p + i + 1)
                if a < 0:
                    return -1
                offset += a * 60
                i += 3
                if n - i >= 3 and p[i] == c':':
                    a = _two(p + i + 1)
                    if a < 0:
                        return -1
                    offset += a
                    i += 3
            if west:
                offset = -offset
        seconds = hour * 3600 + minute * 60 + second - offset
        if seconds < 0:
            days -= 1
        elif seconds >= 86400:
            days += 1
    if i != n:
        return -1
    y = _year(days)
    if y == 0:
        return -1
    _put_year(out, y)
    if m.op == _YEAR_DATE_TEXT:
        return 10
    memcpy(out + 10, b" 00:00:00", 9)
    if m.op == _YEAR_TIME_TEXT:
        return 19
    memcpy(out + 19, b"+00", 3)
    return 22


cdef ssize_t _year_binary(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    cdef int64_t days, micros, y
    if m.op == _YEAR_DATE_BINARY:
        if n != 4:
            return -1
        y = _year(<int32_t>load32(p))
        if y == 0:
            return -1
        store32(out, <uint32_t><int32_t>_days(y, 1, 1))
        return 4
    if n != 8:
        return -1
    micros = <int64_t>_load64(p)
    days = micros // (<int64_t>86400 * 1000000)
    if days * (<int64_t>86400 * 1000000) > micros:
        days -= 1                   # division in C rounds towards zero
    y = _year(days)
    if y == 0:
        return -1
    _store64(out, <uint64_t>(_days(y, 1, 1) * 86400 * 1000000))
    return 8

# ---- cells, rows, runs

cdef ssize_t _cell(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
    # Writes what stands for the cell and answers its length; -1: NULL.
    cdef int op = m.op
    cdef size_t blanks = 0
    cdef ssize_t r
    if op == _FIXED:
        memcpy(out, m.fixed, m.fixed_len)
        return m.fixed_len
    if m.padded:
        while blanks < n and p[n - blanks - 1] == c' ':
            blanks += 1
        n -= blanks
    if op == _TOKEN:
        return _token(m, p, n, out)
    if op == _KEEP_FIRST or op == _KEEP_LAST:
        r = _keep(m, p, n, out)
        memset(out + r, c' ', blanks)
        return r + blanks
    if op == _EMAIL:
        return _email(m, p, n, out)
    if op == _INT_TEXT or op == _INT_BINARY:
        return _int(m, p, n, out)
    if op == _FLOAT_TEXT or op == _FLOAT_BINARY:
        return _float(m, p, n, out)
    if op == _NUMERIC_TEXT or op == _NUMERIC_BINARY:
        return _numeric(m, p, n, out)
    if op == _UUID_TEXT or op == _UUID_BINARY:
        return _uuid(m, p, n, out)
    if op == _YEAR_DATE_TEXT or op == _YEAR_TIME_TEXT or op == _YEAR_ZONED_TEXT:
        return _year_text(m, p, n, out)
    if op == _YEAR_DATE_BINARY or op == _YEAR_TIME_BINARY:
        return _year_binary(m, p, n, out)
    if op == _JSON_TOKEN:
        out[0] = c'"'
        _token(m, p, n, out + 1)
        out[19] = c'"'
        return 20
    if op == _JSONB_TOKEN:
        if n < 1 or p[0] != 1:
            return -1
        out[0] = 1
        out[1] = c'"'
        _token(m, p + 1, n - 1, out + 2)
        out[20] = c'"'
        return 21
    return -1


cdef ssize_t _row(PlanState* plan, const uint8_t* p, size_t total, uint8_t* out) noexcept nogil:
    # One whole DataRow message of `total` bytes; answers the bytes written, -1 if it is malformed.
    cdef const uint8_t* end = p + total
    cdef const uint8_t* span = p
    cdef const uint8_t* at
    cdef uint8_t* to = out
    cdef Mask* m = plan.masks
    cdef Mask* stop
    cdef uint32_t length
    cdef ssize_t r
    cdef size_t k
    if total < 7 or load16(p + 5) != plan.columns:
        return -1
    stop = m + plan.columns
    at = p + 7
    while m < stop:
        if end - at < 4:
            return -1
        length = load32(at)
        at += 4
        if length == 0xFFFFFFFFU:
            m += 1
            continue
        if length > <size_t>(end - at):
            return -1
        if m.op != _PASS:
            k = at - span             # the cell's length is copied too and then overwritten
            memcpy(to, span, k)
            to += k
            r = _cell(m, at, length, to)
            store32(to - 4, <uint32_t><int32_t>r)
            if r > 0:
                to += r
            span = at + length
        at += length
        m += 1
    if at != end:
        return -1
    k = end - span
    memcpy(to, span, k)
    to += k
    if to - out > 0x3FFFFFFF:
        return -1
    store32(out + 1, <uint32_t>(to - out - 1))
    return to - out


cdef size_t mask_bound(PlanState* p, size_t message_bytes) noexcept nogil:
    return message_bytes + p.growth


cdef int mask_run(PlanState* p, const uint8_t* src, size_t n, size_t* consumed, uint8_t* dst, size_t cap, size_t* produced, uint64_t* rows) noexcept nogil:
    cdef size_t off = 0, to = 0, total
    cdef uint64_t count = 0
    cdef ssize_t r
    cdef int status = MASK_OK
    while off < n and src[off] == c'D':
        if n - off < 5:
            status = MASK_NEED_MORE
            break
        total = <size_t>load32(src + off + 1) + 1
        if total < 7 or total > 0x40000000:
            status = MASK_BAD
            break
        if total > n - off:
            status = MASK_NEED_MORE
            break
        if total + p.growth > cap - to:
            status = MASK_FULL
            break
        r = _row(p, src + off, total, dst + to)
        if r < 0:
            status = MASK_BAD
            break
        off += total
        to += r
        count += 1
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
        for i, (op, argument, limit, padded, fixed, key) in enumerate(specs):
            m = &self.st.masks[i]
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
            m.op = op
            m.argument = argument
            m.limit = limit
            m.padded = padded
            m.fixed_len = len(fixed)
            if m.fixed_len:
                m.fixed = <uint8_t*>malloc(m.fixed_len)
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
            elif op != _PASS and op != _NULL:
                self.st.growth += 40

    def __dealloc__(self):
        cdef size_t i
        if self.st != NULL:
            if self.st.masks != NULL:
                for i in range(self.st.columns):
                    free(self.st.masks[i].fixed)
                free(self.st.masks)
            free(self.st)

    @property
    def masked(self):
        """The indexes of the masked columns."""
        return tuple(i for i in range(self.st.columns) if self.st.masks[i].op != _PASS)

    def bound(self, size_t message_bytes):
        """An upper bound in bytes for the output of one DataRow message of ``message_bytes``."""
        return mask_bound(self.st, message_bytes)

    def run(self, bytes data, room=None):
        """Mask ``data`` into at most ``room`` bytes: ``(status, bytes used, output, rows)``. For tests and tools."""
        cdef size_t used = 0, made = 0, cap = <size_t>(len(data) + self.st.growth * (len(data) // 7 + 1) if room is None else room)
        cdef uint64_t rows = 0
        cdef const uint8_t* p = <const uint8_t*><const char*>data
        cdef size_t n = len(data)
        cdef int status
        cdef uint8_t* out = <uint8_t*>malloc(cap or 1)
        if out == NULL:
            raise MemoryError
        try:
            with nogil:
                status = mask_run(self.st, p, n, &used, out, cap, &made, &rows)
            return status, used, (<const char*>out)[:made], rows
        finally:
            free(out)


def siphash128(bytes key, bytes data):
    """SipHash-2-4 of ``data`` under the 16-byte ``key``, 16 bytes; the pseudonyms' hash, for tests."""
    cdef Mask m
    cdef uint64_t h[2]
    if len(key) != 16:
        raise ValueError("a key has 16 bytes")
    memcpy(&m.k0, <const char*>key, 8)
    memcpy(&m.k1, <const char*>key + 8, 8)
    _sip(&m, <const uint8_t*><const char*>data, len(data), h)
    return (<const char*>h)[:16]


def _bench(MaskPlan plan, bytes data, int loops):
    """Seconds to mask ``data``, a run of whole rows, ``loops`` times."""
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
    t = time.perf_counter()
    with nogil:
        for i in range(loops):
            if mask_run(plan.st, p, n, &used, out, cap, &made, &rows) != MASK_OK:
                break
    t = time.perf_counter() - t
    free(out)
    if used != n:
        raise ValueError("not a run of whole rows")
    return t
