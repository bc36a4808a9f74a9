# Pseudonyms of integers, floats, numerics and UUIDs, text and binary. Header only. Each answers the length of what it
# wrote, -1 for a cell that is not of its type. Text and binary of one value get the same pseudonym.
# Never add: a result that the type can't have.
from libc.math cimport isnan
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport strtod, strtof
from libc.string cimport memcpy, memset

from pgwire.hot.mask_action cimport (
    _FLOAT_BINARY, _FLOAT_TEXT, _INT_BINARY, _INT_TEXT, _NUMERIC_TEXT, _UUID_BINARY, Mask, mask_hash,
)
from pgwire.hot.sip cimport Sip, sip_byte, sip_end, sip_start
from pgwire.hot.wire cimport load16, load32, store32


cdef inline bint _digit(uint8_t b) noexcept nogil:
    return c'0' <= b <= c'9'


cdef inline uint64_t _load64(const uint8_t* p) noexcept nogil:
    return (<uint64_t>load32(p) << 32) | load32(p + 4)


cdef inline void _store64(uint8_t* p, uint64_t v) noexcept nogil:
    store32(p, <uint32_t>(v >> 32))
    store32(p + 4, <uint32_t>v)


cdef inline void _store16(uint8_t* p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 8)
    p[1] = <uint8_t>v


cdef inline ssize_t _decimal(uint64_t v, uint8_t* out) noexcept nogil:
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


cdef inline ssize_t mask_int(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
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
    mask_hash(m, <const uint8_t*>&v, 8, h)
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


cdef inline ssize_t mask_float(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
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
    mask_hash(m, <const uint8_t*>&w64, 8, h)
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


cdef inline bint _numeric_digits(Groups* g, uint8_t sign, const uint8_t* whole, size_t w, const uint8_t* frac, size_t f) noexcept nogil:
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


cdef inline bint _numeric_text(Groups* g, const uint8_t* p, size_t n) noexcept nogil:
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


cdef inline bint _numeric_binary(Groups* g, const uint8_t* p, size_t n) noexcept nogil:
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


cdef inline ssize_t mask_numeric(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
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


cdef inline int _hex(uint8_t b) noexcept nogil:
    if _digit(b):
        return b - c'0'
    b |= 0x20
    return b - c'a' + 10 if c'a' <= b <= c'f' else -1


cdef inline ssize_t mask_uuid(Mask* m, const uint8_t* p, size_t n, uint8_t* out) noexcept nogil:
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
    mask_hash(m, raw, 16, h)
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
